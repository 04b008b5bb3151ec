"""Checkpoints of a whole ITER: weights and architecture in one safetensors file, and the shipped ones by name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from iter_arch.iter_arch import ITER

WEIGHTS = Path(__file__).parent / "weights"


class Checkpoint(NamedTuple):
    """state: the weights, float32 on the CPU; config: constructor arguments of the ITER they belong to, where known."""

    state: dict[str, Tensor]
    config: dict[str, Any] | None


def shipped() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def find_checkpoint(name: str | Path) -> Path:
    """The file behind a name of `shipped()` or a path; FileNotFoundError where there is neither."""
    path = WEIGHTS / f"{name}.safetensors"
    path = path if path.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(shipped()) or "none"
        raise FileNotFoundError(f"model={str(name)!r} is neither a file nor one of the shipped weights ({known})")
    return path


def read_checkpoint(name: str | Path, param_key: str = "params") -> Checkpoint:
    """Read weights; nothing in the file is executed.

    Args:
        name: a shipped name, a safetensors file, or a .pth file of BasicSR.
        param_key: 'params' or 'params_ema', which of the state dicts of a .pth file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, of another kind, or without ``param_key``.
    """
    path = find_checkpoint(name)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                config = (file.metadata() or {}).get("iter_config")
                state = {key: file.get_tensor(key) for key in file.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a safetensors file or is damaged ({error})") from None
        return Checkpoint(_floats(state), json.loads(config) if config else None)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is damaged or holds more than weights, and is not loaded ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get(param_key), dict):
        found = ", ".join(map(repr, content)) if isinstance(content, dict) and len(content) < 10 else "something else"
        raise ValueError(f"{path} has no state dict {param_key!r} but {found}")
    return Checkpoint(_floats(content[param_key]), content.get("config"))


def load_pretrained(name: str | Path) -> ITER:
    """Load a shipped checkpoint by name or any file of `save_pretrained` by path.

    Args:
        name: a name of `shipped()` such as 'iter_tiny_x4', or a path.

    Returns:
        ITER in eval mode on the CPU, float32.

    Raises:
        FileNotFoundError: neither a shipped name nor a file.
        ValueError: the file is not a complete ITER checkpoint.
    """
    checkpoint = read_checkpoint(name)
    if checkpoint.config is None:
        raise ValueError(f"{name} does not say what its architecture is; write it with iter_arch.save_pretrained")
    net = ITER(**checkpoint.config)
    load_strictly(net, checkpoint.state, name)
    return net.eval()


def save_pretrained(net: ITER, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write weights and architecture of ``net`` to one safetensors file that `load_pretrained` reads."""
    state = {key: value.to(dtype).contiguous() for key, value in net.state_dict().items()}
    save_file(state, path, metadata={"format": "pt", "iter_config": json.dumps(net.config)})


def load_strictly(net: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load all of ``state`` into all of ``net``, or raise a ValueError naming the first differing keys and shapes."""
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


def _floats(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix("module."): value.float() if value.is_floating_point() else value
        for key, value in state.items()
    }
