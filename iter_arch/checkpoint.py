"""Checkpoints of a whole ITER: weights and architecture in one safetensors file, and the shipped ones by name."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from iter_arch.iter_arch import ITER

WEIGHTS = Path(__file__).parent / "weights"


def shipped() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def load_pretrained(name: str | Path) -> ITER:
    """Load a shipped checkpoint by name or any checkpoint by path.

    Args:
        name: a name of `shipped()` such as 'iter_tiny_x4', or the path of a file by `save_pretrained`.

    Returns:
        ITER in eval mode on the CPU, float32.

    Raises:
        FileNotFoundError: neither a shipped name nor a file.
        ValueError: the file is not a complete ITER checkpoint.
    """
    path = WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"model={name} is neither a file nor one of the shipped weights: {', '.join(shipped())}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key).float() for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file or is damaged ({error})") from None
    if "iter_config" not in metadata:
        raise ValueError(f"{path} carries no iter_config in its metadata: it was not written by iter_arch.save_pretrained")
    net = ITER(**json.loads(metadata["iter_config"]))
    load_strictly(net, state, path)
    return net.eval()


def save_pretrained(net: ITER, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write weights and architecture of ``net`` to one safetensors file that `load_pretrained` reads."""
    state = {key: value.to(dtype).contiguous() for key, value in net.state_dict().items()}
    save_file(state, path, metadata={"format": "pt", "iter_config": json.dumps(net.config)})


def load_strictly(net: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load all of ``state`` into all of ``net``, or raise a ValueError that names the first differing keys and shapes."""
    expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    problems = [f"{key} is missing" for key in expected if key not in found]
    problems += [f"{key} is not part of the network" for key in found if key not in expected]
    problems += [
        f"{key} has shape {found[key]}, the network {expected[key]}"
        for key in expected
        if key in found and found[key] != expected[key]
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"{source} does not fit {type(net).__name__}: {shown}")
    net.load_state_dict(state)
