"""Checkpoints of a whole ITER: our own files, those shipped with the package, and the authors' released ones.

Our files are safetensors files that hold the weights and the constructor arguments, including the sampling that the
weights are tuned for. The arguments are JSON in the metadata, for people, and in a tensor, for programs that pass on
tensors only. The authors' files (see `iter_arch.pretrained.released`) are accepted wherever ours are.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from basicsr_compat import files
from basicsr_compat.meta import on_meta
from basicsr_compat.schema import format_error, read_section, section_problems
from iter_arch.iter_arch import ITER
from iter_arch.pretrained.download import RELEASED_VQGAN, REMOTES, fetch, find_checkpoint
from iter_arch.pretrained.infer import infer_config, upgrade_config
from iter_arch.pretrained.released import from_released, is_released
from iter_arch.sampling import SamplingConfig

PARTS = ("vqgan", "lq_encoder", "refiner", "evaluator")
# The key of the constructor arguments, in the metadata and among the tensors (uint8, the bytes of the JSON).
CONFIG = "iter_config"


class Checkpoint(NamedTuple):
    """state: the weights, on the CPU; config: constructor arguments of the ITER they belong to, where known."""

    state: dict[str, Tensor]
    config: dict[str, Any] | None


def load_pretrained(name: str | Path) -> ITER:
    """Load a complete ITER.

    Args:
        name: a name of `shipped()` such as 'iter_tiny_x4'; 'released_x4' or 'released_x2', which are downloaded unless
            they are in experiments/pretrained_models/ or in the cache; or the path of a file of `save_pretrained`, or
            of a released one.

    Returns:
        ITER in eval mode on the CPU, float32; its ``sampling`` is what the weights are tuned for.

    Raises:
        FileNotFoundError: neither a known name nor a file, or a download failed.
        ValueError: the file is not a complete ITER checkpoint.

    Examples:
        >>> net = iter_arch.load_pretrained("iter_tiny_x4")
        >>> image = net(lq)  # (b, 3, h, w) RGB in [0, 1] -> (b, 3, 4h, 4w)
    """
    return build(read_weights(name), name)


def load_released(
    checkpoint: str | Path | Mapping[str, Any], vqgan_checkpoint: str | Path | Mapping[str, Any] | None = None
) -> ITER:
    """Load the authors' released ITER_x4.pth or ITER_x2.pth; scale and architecture are read from its keys.

    Args:
        checkpoint: path, or the file's content, or its ``params``.
        vqgan_checkpoint: ITER_swinvqgan.pth in the same forms, for a checkpoint without ``vqgan.*``; if there are such
            keys, it replaces them. By default the one in the folder of ``checkpoint``, if needed.

    Returns:
        ITER in eval mode on the CPU, float32; its ``sampling`` is `SamplingConfig.released()`.

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
    """Write weights, architecture and sampling of ``net`` to one safetensors file that `load_pretrained` reads.

    Raises:
        NotSaved: the file cannot be written; says why.
    """
    state = {key: value.to(dtype) for key, value in net.state_dict().items()}
    write_safetensors(Checkpoint(state, net.config | {"sampling": dataclasses.asdict(net.sampling)}), path)


def write_safetensors(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write weights unchanged, and the architecture if known. A failed write leaves the old file as it was."""
    metadata = {"format": "pt"}
    # Clone, because safetensors refuses tensors that share memory.
    state = {key: x.detach().cpu().clone(memory_format=torch.contiguous_format) for key, x in checkpoint.state.items()}
    if checkpoint.config is not None:
        metadata[CONFIG] = json.dumps(checkpoint.config)
        state[CONFIG] = torch.frombuffer(bytearray(metadata[CONFIG].encode()), dtype=torch.uint8)
    # Not save_file: no other user may read its files.
    with files.atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(save(state, metadata))


def read_weights(name: str | Path, param_key: str | None = None) -> Checkpoint:
    """Read weights for our networks; nothing in the file is executed.

    Args:
        name: as for `find_checkpoint`: a safetensors file, a .pth file, or a released checkpoint. A released one
            without VQGAN is completed by an ITER_swinvqgan.pth in its folder.
        param_key: which state dict of a .pth file; by default that of `basicsr_compat.files.find_state`.

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
        if all(any(key.startswith(f"{part}.") for key in state) for part in ("vqgan", "lq_encoder")):
            config = infer_config(state)
    return Checkpoint(_floats(state), config)


def read_file(path: str | Path, param_key: str | None = None) -> Checkpoint:
    """As `read_weights`, but with names and dtypes as in the file."""
    content = files.read_checkpoint(path)
    if not files.is_safetensors(path):
        config = content.get("config") if isinstance(content, Mapping) else None
        return Checkpoint(files.find_state(content, path, param_key), _upgraded(config))
    # A safetensors file holds one state dict and has no keys to choose among.
    checkpoint = split_config(files.find_state(content, path), path)
    text = files.read_metadata(path).get(CONFIG)
    if checkpoint.config is None and text:  # of an earlier version
        return checkpoint._replace(config=_parsed(text, path))
    return checkpoint


def split_config(state: Mapping[str, Tensor], source: str | Path) -> Checkpoint:
    """Split a state dict into the weights and the constructor arguments, if it holds any."""
    weights = {key: value for key, value in state.items() if key != CONFIG}
    if CONFIG not in state:
        return Checkpoint(weights, None)
    if state[CONFIG].dtype != torch.uint8 or state[CONFIG].ndim != 1:
        raise ValueError(f"{source} has a damaged {CONFIG}: it must be one row of bytes")
    return Checkpoint(weights, _parsed(bytes(state[CONFIG].tolist()), source))


def _parsed(text: str | bytes, source: str | Path) -> Any:
    try:
        return _upgraded(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} has a damaged {CONFIG} ({format_error(error)})") from None


def _upgraded(config: Any) -> Any:
    return upgrade_config(config) if isinstance(config, Mapping) else config


def whole_checkpoint(state: dict[str, Tensor]) -> Checkpoint:
    """The weights with constructor arguments inferred from keys and shapes, if they are a whole ITER.

    Raises:
        ValueError: the parts do not fit each other; the first differences are named.
    """
    if not {"vqgan.encoder.0.weight", "lq_encoder.head.weight"} <= state.keys():
        return Checkpoint(state, None)
    config = infer_config(state)
    with on_meta():
        expected = ITER(**config).state_dict()
    files.require_fit(expected, state)
    return Checkpoint(state, config)


def build(checkpoint: Checkpoint, source: str | Path) -> ITER:
    """The ITER with these weights, in eval mode, or a ValueError that names ``source``."""
    state = checkpoint.state
    missing = [part for part in PARTS if not any(key.startswith(f"{part}.") for key in state)]
    if missing:
        hint = (
            f". If it is of the authors' release, put {RELEASED_VQGAN} beside it, or add that with `basicsr convert "
            "--vqgan`; of a training run take the whole, models/iter_latest.safetensors"
        )
        raise ValueError(
            f"{source} is not a whole ITER: it holds no {', '.join(missing)}; its first keys are "
            + files.first_keys(state)
            + (hint if missing == ["vqgan"] else "")
        )
    config = infer_config(state) if checkpoint.config is None else checkpoint.config
    net = _construct(config, state, source)
    net.load_state_dict(state)
    return net.eval()


def _construct(config: Any, state: Mapping[str, Tensor], source: str | Path) -> ITER:
    """The ITER of an untrusted config. Allocates no memory before the config is known to fit the weights."""
    if not isinstance(config, Mapping):
        raise ValueError(f"{source} is not an ITER of this version: its config is a {type(config).__name__}")
    problems = list(section_problems(config, ITER, ""))
    if problems:
        raise ValueError(f"{source} is not an ITER of this version: {'; '.join(problems[:3])}")
    try:
        with on_meta():
            expected = ITER(**config).state_dict()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # the last two: sizes beyond all memory
        raise ValueError(f"{source} is not an ITER of this version: {format_error(error)}") from None
    files.require_fit(expected, state, f"{source} does not fit ITER")
    return ITER(**config)


def sampling_of(checkpoint: Checkpoint, source: str | Path) -> SamplingConfig | None:
    """The sampling that a checkpoint's weights are tuned for, or None if it does not say."""
    section = checkpoint.config.get("sampling") if isinstance(checkpoint.config, Mapping) else None
    if section is None:
        return None
    try:
        return read_section(SamplingConfig, section, "sampling")
    except ValueError as error:
        raise ValueError(f"{source} is not an ITER of this version: {format_error(error)}") from None


def load_strictly(net: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load all of ``state`` into all of ``net``, or raise a ValueError naming the first differing keys and shapes."""
    files.require_fit(net.state_dict(), state, f"{source} does not fit {type(net).__name__}")
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
    vqgan = fetch(REMOTES["released_vqgan"]) if str(name) in REMOTES else path.with_name(RELEASED_VQGAN)
    return add_vqgan(state, vqgan) if vqgan.is_file() else state


def _from_released(state: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    try:
        return from_released(state)
    except ValueError as error:
        raise ValueError(f"{source} is not a complete released checkpoint of ITER: {error}") from None


def _floats(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
