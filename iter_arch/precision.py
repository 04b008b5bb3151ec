"""In which dtype a device runs the networks of ITER (arXiv:2312.05616) fastest."""

import torch
from torch import Tensor

PRECISIONS = ("auto", "bf16", "float32")


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the weights for 'bf16', 'float32' or 'auto', which is bfloat16 where ``device`` computes in it.

    Raises:
        ValueError: another name.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "float32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices by itself: GPUs since Ampere, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def widened(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 where it is: for what half precision would lose."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
