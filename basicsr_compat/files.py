"""Atomic writes, safe reads of checkpoints, and comparison of state dicts."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import fcntl
except ImportError:  # Windows, which removes no open file
    fcntl = None  # type: ignore[assignment]  # Windows has no such module

from basicsr_compat.schema import format_error

if TYPE_CHECKING:
    from torch import Tensor

# Where the weights are in the files of BasicSR, of Lightning, and of most training scripts.
STATE_KEYS = ("params_ema", "params", "state_dict", "model")
# How files begin that are taken for checkpoints, in lower case, and what to do about them.
NO_CHECKPOINTS = {
    b"gk0\x01": "it holds ncnn's weights; name the network's .pth or .safetensors file (benchmarks/real_esrgan.py "
    "converts those of Real-ESRGAN x4plus)",
    b"version https://git-lfs": "it is a pointer of Git LFS, not the file itself; `git lfs pull` gets that",
    b"<!doctype html": "it is a web page; download the file itself, not the page about it",
    b"<html": "it is a web page; download the file itself, not the page about it",
}
# Characters of a file's name that its temporary name begins with: a name has 255 bytes, a character up to four.
_START = 60


class NotSaved(OSError):
    """A file could not be written; an older file of that name is unchanged."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[str]:
    """Write a file atomically: whatever happens, it is complete or not there at all.

    Args:
        path: the file; its folder must exist. An older file of this name is replaced.

    Yields:
        The temporary path to write to, in the same folder, used by this process alone. It is renamed at the end of the
        block, or removed where the block raises.

    Raises:
        NotSaved: an OSError in the block, or the file cannot be renamed; the message says why.

    Examples:
        >>> with atomic_write("results/cat.png") as temporary:
        ...     image.save(temporary, format="PNG")
    """
    path = os.fspath(path)
    folder, name = os.path.split(path)
    # Renaming is atomic within a file system only.
    temporary = os.path.join(folder, f"{name[:_START]}.tmp-{secrets.token_hex(4)}")
    try:
        with _in_use(temporary):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise NotSaved(f"cannot write {path}: {_reason(path, error)}") from error
    except BaseException:
        _remove(temporary)
        raise


def is_leftover(name: str) -> bool:
    """Whether a file has the name of a temporary file of `atomic_write`."""
    return re.search(r"\.tmp-[0-9a-f]{8}$", name) is not None


def remove_leftovers(folder: str | os.PathLike, of: Collection[str] | None = None) -> None:
    """Remove the temporary files of `atomic_write` that killed processes left in a folder.

    Args:
        of: names of the files whose leftovers are removed; by default all leftovers are.
    """
    starts = None if of is None else {name[:_START] for name in of}
    for path in Path(folder).glob("*.tmp-*"):
        wanted = starts is None or path.name.rpartition(".tmp-")[0] in starts
        if wanted and is_leftover(path.name) and not _is_in_use(path):
            _remove(path)


@contextlib.contextmanager
def _in_use(temporary: str) -> Iterator[None]:
    """Make a file and lock it, because the leftovers of a killed process are not locked."""
    if fcntl is None:
        yield
        return
    with open(temporary, "ab") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _is_in_use(path: Path) -> bool:
    """Whether another process, or another thread, is writing a temporary file."""
    if fcntl is None:
        return False
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def atomic_save(obj: Any, path: str | os.PathLike) -> None:
    """torch.save by `atomic_write`.

    Raises:
        NotSaved: it could not be written; an older file of this name is unchanged.
    """
    import torch

    with atomic_write(path) as temporary:
        try:
            # To a path: with a Python file object torch turns Ctrl-C into a RuntimeError.
            torch.save(obj, temporary)
        except RuntimeError as error:
            if not re.search("StreamWriter|unexpected pos|iostream error|Parent directory", str(error)):
                raise
            raise OSError(_torch_reason(path, error)) from error


def read_checkpoint(path: str | os.PathLike) -> Any:
    """Read a checkpoint to the CPU: tensors and plain containers only; nothing in the file is executed.

    Args:
        path: a file of safetensors or of torch.save.

    Returns:
        The state dict of a safetensors file, or the object that torch.save wrote, see `find_state`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, no checkpoint, or a pickle that would run code.
    """
    import torch

    if not os.path.isfile(path):
        raise FileNotFoundError(f"checkpoint {os.fspath(path)!r}: there is no such file (looked from {os.getcwd()})")
    safe = is_safetensors(path)  # outside the try: what cannot be opened is an OSError of its own
    try:
        if safe:
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    # What the loaders of PyTorch and safetensors raise on arbitrary bytes has no common base.
    except Exception as error:
        with open(path, "rb") as file:
            start = file.read(64).lstrip().lower()
        for sign, kind in NO_CHECKPOINTS.items():
            if start.startswith(sign):
                raise ValueError(f"checkpoint {os.fspath(path)!r} cannot be read: {kind}") from error
        # PyTorch's first sentences advise to run what is in the file.
        found = re.search(r"WeightsUnpickler error:\s*([^\n]{1,300})", str(error))
        detail = found[1].partition(". Please")[0].strip() if found else format_error(error)
        raise ValueError(
            f"checkpoint {os.fspath(path)!r} cannot be read: it is truncated, no checkpoint, or holds more than "
            f"tensors ({detail}); delete it, or name another"
        ) from error


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The metadata of a safetensors file; empty for any other file."""
    if not is_safetensors(path):
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def is_safetensors(path: str | os.PathLike) -> bool:
    """Whether a file is a safetensors file, by its content or its name."""
    with open(path, "rb") as file:
        start = file.read(9)  # the length of the header in eight bytes, and the header, which is JSON
    return Path(path).suffix.lower() == ".safetensors" or start[8:] == b"{"


def find_state(content: Any, source: str | os.PathLike, param_key: str | None = None) -> dict[str, Tensor]:
    """Find the state dict in the content of a checkpoint.

    Args:
        content: what `read_checkpoint` returned.
        source: the file, for the message.
        param_key: its key; None: the first of `STATE_KEYS` that is there, else the content itself.

    Returns:
        The state dict without the prefixes of wrappers, see `plain_name`.

    Raises:
        ValueError: there is none; the message names the first keys.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{source} holds no state dict but a {type(content).__name__}")
    keys = [param_key] if param_key else STATE_KEYS
    state = next((content[key] for key in keys if isinstance(content.get(key), Mapping)), None)
    if state is None:
        if param_key:
            raise ValueError(f"{source} has no state dict {param_key!r}; its first keys are {first_keys(content)}")
        state = content
    return plain_names(state, source)


def plain_names(state: Mapping[str, Tensor], source: str | os.PathLike) -> dict[str, Tensor]:
    """A state dict without the prefixes of wrappers. Raises ValueError where it holds anything but tensors."""
    import torch

    if not state or not all(isinstance(key, str) and isinstance(x, torch.Tensor) for key, x in state.items()):
        raise ValueError(f"{source} holds no state dict; its first keys are {first_keys(state)}")
    return {plain_name(key): value for key, value in state.items()}


def plain_name(key: str) -> str:
    """The name of a parameter without the prefixes of torch.compile and of DistributedDataParallel."""
    return key.replace("_orig_mod.", "").removeprefix("module.")


def state_difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Describe why a state dict does not fit a network.

    Args:
        expected: the state dict of the network.
        found: the state dict of the checkpoint.

    Returns:
        The first three keys that are missing, left over, or of another shape, and the number of the rest; '' where it
        fits.
    """
    missing = [f"{key} is missing" for key in expected if key not in found]
    left_over = [f"{key} is not part of the network" for key in found if key not in expected]
    reshaped = [
        f"{key} has shape {tuple(found[key].shape)}, the network's has {tuple(value.shape)}"
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    ]
    shown = missing[:3] + left_over[:3] + reshaped[:3]
    rest = len(missing) + len(left_over) + len(reshaped) - len(shown)
    return [*shown, f"and {rest} more"] if rest else shown


def require_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], misfit: str = "") -> None:
    """Raise ValueError with `misfit` and the `state_difference` where a state dict does not fit a network."""
    differences = state_difference(expected, found)
    if differences:
        raise ValueError((f"{misfit}: " if misfit else "") + "; ".join(differences))


def require_present(paths: Sequence[str], source: str, remedy: str) -> None:
    """Raise FileNotFoundError where listed files are missing; it says how many, and names the first.

    Lists each folder once, because a million look-ups of single files take minutes on a network drive.

    Args:
        paths: the files.
        source: what lists them, for the message.
        remedy: how to fix it, for the message.
    """
    there = {folder: _listed(folder) for folder in {os.path.dirname(path) for path in paths}}
    missing = [path for path in paths if os.path.basename(path) not in there[os.path.dirname(path)]]
    if missing:
        raise FileNotFoundError(
            f"{source} names {len(missing)} of {len(paths)} files that are not there, the first is {missing[0]!r}: "
            f"{remedy}"
        )


def _listed(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder or "."))
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return set()


def checksum(path: str | os.PathLike) -> int:
    """CRC-32 of a file's content."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def first_keys(content: Mapping[Any, Any]) -> str:
    """The first keys of a mapping, for a message."""
    return ", ".join(str(key)[:80] for key in list(content)[:5]) or "none"


def _reason(path: str, error: OSError) -> str:
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f"{folder} is a file, not a folder" if os.path.exists(folder) else f"there is no folder {folder}"
    return error.strerror or format_error(error)


def _torch_reason(path: str | os.PathLike, error: RuntimeError) -> str:
    """The reason why torch.save failed, which its error does not give."""
    folder = os.path.dirname(os.fspath(path)) or "."
    if os.path.isdir(folder) and not os.access(folder, os.W_OK):
        return f"the folder {folder} is not writable"
    if os.path.isdir(folder) and shutil.disk_usage(folder).free < 1 << 20:
        return "no space left on the disk"
    return format_error(error)


def _remove(path: str | os.PathLike) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
