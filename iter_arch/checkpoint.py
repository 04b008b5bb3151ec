"""Checkpoints of a whole ITER: our own files, those shipped with the package, and the authors' released ones.

Our file is one safetensors with the weights and, as metadata, the architecture. The authors' files (see
`iter_arch.released`) are read as they are wherever ours are.
"""

import json
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from basicsr_compat import files
from iter_arch.architecture import infer_config
from iter_arch.iter_arch import ITER
from iter_arch.released import from_released, is_released

WEIGHTS = Path(__file__).parent / "weights"

RELEASED = {"released_x4": "ITER_x4.pth", "released_x2": "ITER_x2.pth"}
RELEASED_VQGAN = "ITER_swinvqgan.pth"
RELEASE_URL = "https://github.com/chaofengc/ITER/releases/download/v0.1.0"
# Where BasicSR's users keep weights of others, below the current folder.
DOWNLOADS = Path("experiments/pretrained_models")


class Checkpoint(NamedTuple):
    """state: the weights, on the CPU; config: constructor arguments of the ITER they belong to, where known."""

    state: dict[str, Tensor]
    config: dict[str, Any] | None


def shipped() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def find_checkpoint(name: str | Path) -> Path:
    """The file behind a name of `shipped()`, 'released_x4', 'released_x2' or a path; FileNotFoundError where there is
    none."""
    if str(name) in RELEASED:
        return fetch_released(RELEASED[str(name)])
    path = WEIGHTS / f"{name}.safetensors"
    path = path if path.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join([*shipped(), *RELEASED])
        raise FileNotFoundError(f"model={str(name)!r} is neither a file nor one of the known weights ({known})")
    return path


def fetch_released(file_name: str) -> Path:
    """A file of the authors' release in experiments/pretrained_models/, downloaded if it is not there.

    Raises:
        FileNotFoundError: it is not there and cannot be downloaded; says what to put where.
    """
    from basicsr.utils.download_util import load_file_from_url

    path, url = DOWNLOADS / file_name, f"{RELEASE_URL}/{file_name}"
    try:
        load_file_from_url(url, model_dir=str(DOWNLOADS))
    except (OSError, HTTPException) as error:
        raise FileNotFoundError(
            f"{path} is missing and cannot be downloaded ({error}); get {url} and put it at {path.absolute()}"
        ) from None
    return path


def read_checkpoint(name: str | Path, param_key: str | None = None) -> Checkpoint:
    """Read weights for our networks; nothing in the file is executed.

    Args:
        name: as for `find_checkpoint`: a safetensors file, a .pth file of BasicSR, or a released checkpoint. A released
            one without VQGAN is completed by an ITER_swinvqgan.pth in its folder.
        param_key: which state dict of a .pth file; by default 'params_ema', else 'params', else the file itself.

    Returns:
        Checkpoint, float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, of another kind, or without ``param_key``.
    """
    path = find_checkpoint(name)
    state, config = read_file(path, param_key)
    if is_released(state):
        state = _add_vqgan_beside(_from_released(state, path), name, path)
        if any(key.startswith("vqgan.") for key in state) and any(key.startswith("lq_encoder.") for key in state):
            config = infer_config(state)
    return Checkpoint(_floats(state), config)


def read_file(path: str | Path, param_key: str | None = None) -> Checkpoint:
    """As `read_checkpoint`, but the weights as they are in the file: their names, their dtypes."""
    content = files.read_checkpoint(path)
    config = files.read_metadata(path).get("iter_config")
    try:
        config = json.loads(config) if config else content.get("config") if isinstance(content, Mapping) else None
    except ValueError:
        raise ValueError(f"{path} has damaged metadata: iter_config is not JSON") from None
    # A safetensors file holds one state dict and has no keys to choose among.
    return Checkpoint(files.find_state(content, path, None if files.is_safetensors(path) else param_key), config)


def load_pretrained(name: str | Path) -> ITER:
    """Load the whole of an ITER.

    Args:
        name: a name of `shipped()` such as 'iter_tiny_x4'; 'released_x4' or 'released_x2', looked for in
            experiments/pretrained_models/ and else downloaded; or the path of a file of `save_pretrained`, or of a
            released one.

    Returns:
        ITER in eval mode on the CPU, float32.

    Raises:
        FileNotFoundError: neither a known name nor a file, or a download failed.
        ValueError: the file is not a complete ITER checkpoint.
    """
    return build(read_checkpoint(name), name)


def load_released(
    checkpoint: str | Path | Mapping[str, Any], vqgan_checkpoint: str | Path | Mapping[str, Any] | None = None
) -> ITER:
    """Load the authors' released ITER_x4.pth or ITER_x2.pth; scale and architecture are read from its keys.

    Args:
        checkpoint: path, or the file's content, or its ``params``.
        vqgan_checkpoint: ITER_swinvqgan.pth in the same forms, for a checkpoint without ``vqgan.*``; it replaces them
            where there are some. By default the one in the folder of ``checkpoint``, if it is needed.

    Returns:
        ITER in eval mode on the CPU, float32. `SamplingConfig.released()` is the sampling that it was tuned for.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a released checkpoint, or not complete; the first keys left over or missing are named.
    """
    path, state = _open(checkpoint)
    name = path or "checkpoint"
    if not is_released(state):
        raise ValueError(f"{name} is not a released checkpoint of ITER; its first keys are {files.first_keys(state)}")
    state = _from_released(state, name)
    if vqgan_checkpoint is not None:
        state = add_vqgan(state, vqgan_checkpoint)
    elif path is not None:
        state = _add_vqgan_beside(state, checkpoint, path)
    return build(Checkpoint(_floats(state), None), name)


def save_pretrained(net: ITER, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write weights and architecture of ``net`` to one safetensors file that `load_pretrained` reads."""
    state = {key: value.to(dtype) for key, value in net.state_dict().items()}
    write_safetensors(Checkpoint(state, net.config), path)


def write_safetensors(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write weights as they are, and the architecture where known; the file is there whole or as it was before."""
    metadata = {"format": "pt"}
    if checkpoint.config is not None:
        metadata["iter_config"] = json.dumps(checkpoint.config)
    # Cloned: safetensors refuses tensors that share memory.
    state = {key: x.detach().cpu().clone(memory_format=torch.contiguous_format) for key, x in checkpoint.state.items()}
    # Not save_file, whose files no other user may read.
    with files.atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(save(state, metadata))


def load_strictly(net: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load all of ``state`` into all of ``net``, or raise a ValueError naming the first differing keys and shapes."""
    differences = files.state_difference(net.state_dict(), state)
    if differences:
        raise ValueError(f"{source} does not fit {type(net).__name__}: {'; '.join(differences)}")
    net.load_state_dict(state)


def add_vqgan(state: Mapping[str, Tensor], checkpoint: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """``state`` of an ITER with the VQGAN of another checkpoint: of stage I, ITER_swinvqgan.pth, or a whole ITER."""
    path, vqgan = _open(checkpoint)
    name = path or "vqgan_checkpoint"
    if is_released(vqgan):
        vqgan = _from_released(vqgan, name)
    if "encoder.0.weight" in vqgan:
        vqgan = {f"vqgan.{key}": value for key, value in vqgan.items()}
    vqgan = {key: value for key, value in vqgan.items() if key.startswith("vqgan.")}
    if not vqgan:
        raise ValueError(f"{name} holds no Swin-VQGAN")
    return {key: value for key, value in state.items() if not key.startswith("vqgan.")} | vqgan


def _open(checkpoint: str | Path | Mapping[str, Any]) -> tuple[Path | None, dict[str, Tensor]]:
    """The path, if it is not a mapping, and the weights under their own names."""
    if isinstance(checkpoint, Mapping):
        return None, files.find_state(checkpoint, "checkpoint")
    path = find_checkpoint(checkpoint)
    return path, read_file(path).state


def _add_vqgan_beside(state: dict[str, Tensor], name: object, path: Path) -> dict[str, Tensor]:
    """A released ITER that has no VQGAN with that of the ITER_swinvqgan.pth in its folder, where there is one."""
    if "lq_encoder.head.weight" not in state or any(key.startswith("vqgan.") for key in state):
        return state
    vqgan = fetch_released(RELEASED_VQGAN) if str(name) in RELEASED else path.with_name(RELEASED_VQGAN)
    return add_vqgan(state, vqgan) if vqgan.is_file() else state


def _from_released(state: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    try:
        return from_released(state)
    except ValueError as error:
        raise ValueError(f"{source} is not a complete released checkpoint of ITER: {error}") from None


def build(checkpoint: Checkpoint, source: str | Path) -> ITER:
    """The ITER with these weights, in eval mode, or a ValueError that names ``source``."""
    state = checkpoint.state
    parts = ("vqgan", "lq_encoder", "refiner", "evaluator")
    missing = [part for part in parts if not any(key.startswith(f"{part}.") for key in state)]
    if missing:
        hint = (
            f". If it is of the authors' release, put {RELEASED_VQGAN} beside it, or add that with `basicsr convert "
            "--vqgan`; of a training take the whole, models/iter_latest.safetensors"
        )
        raise ValueError(
            f"{source} is not a whole ITER: it holds no {', '.join(missing)}; its first keys are "
            + files.first_keys(state)
            + (hint if missing == ["vqgan"] else "")
        )
    try:
        net = ITER(**(checkpoint.config or infer_config(state)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source} is not an ITER of this version: {error}") from None
    load_strictly(net, state, source)
    return net.eval()


def _floats(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
