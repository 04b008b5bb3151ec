"""One atomic write and one safe read of checkpoints."""

from __future__ import annotations

import contextlib
import os
import zlib

import torch


class NotSaved(OSError):
    """A checkpoint could not be written; the file of that name, if there was one, is as it was."""


def atomic_save(obj, path: str | os.PathLike) -> None:
    """torch.save to a file that is there whole or not at all, whatever happens in between.

    Args:
        obj: anything torch.save takes.
        path: the file; its folder must exist. An older file of this name is replaced.

    Raises:
        NotSaved: it could not be written; a file of this name is as it was.
    """
    path = os.fspath(path)
    temporary = f"{path}.tmp"  # same folder: renaming is atomic within a file system only
    try:
        # To a path: with a Python file object torch turns Ctrl-C into a RuntimeError.
        torch.save(obj, temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError | RuntimeError):  # RuntimeError: how torch reports a full disk
            reason = str(error).strip().partition("\n")[0]
            raise NotSaved(f"cannot write {path}: {reason}; is the disk full?") from error
        raise


def read_checkpoint(path: str | os.PathLike):
    """The content of a checkpoint on the CPU; tensors and plain containers only, never code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, no checkpoint, or a pickle that would run code.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"checkpoint {os.fspath(path)!r}: there is no such file (looked from {os.getcwd()})")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # What the loaders of PyTorch and safetensors raise on arbitrary bytes has no common base.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"checkpoint {os.fspath(path)!r} cannot be read: it is truncated, no checkpoint, or holds more than "
            f"tensors ({reason}); delete it, or name another"
        ) from error


def checksum(path: str | os.PathLike) -> int:
    """CRC-32 of a file's content."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc
