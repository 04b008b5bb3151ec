"""The dtype in which a device runs the networks of ITER (arXiv:2312.05616) fastest."""

import torch
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}
PRECISIONS = ("auto", *DTYPES)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the weights for 'bf16', 'fp16', 'float32' or 'auto'.

    'auto' is bfloat16 if the hardware of ``device`` supports it, float16 on a GPU that supports only that, and
    otherwise float32. It is always float32 on Apple's GPUs.

    Raises:
        ValueError: another name, or another precision than float32 on an Apple GPU.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
    if device.type == "mps" and precision not in ("auto", "float32"):
        raise ValueError(f"precision={precision!r} must be float32 on an Apple GPU (mps)")
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "fp16" if has_fp16(device) else "float32"
    return DTYPES[precision]


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices: GPUs since Ampere, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def has_fp16(device: torch.device) -> bool:
    """Whether the hardware multiplies float16 matrices: GPUs since Volta."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)


def widened(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 if it is that: for steps in which half precision would lose too much."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
