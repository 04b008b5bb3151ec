"""Which photo is restored to which file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from basicsr_compat.images import is_image


class Job(NamedTuple):
    """A photo, and the file that it is restored to."""

    source: Path
    target: Path


def plan(source: Path, output: Path) -> list[Job]:
    """The photos of `source`, in the order of their names.

    Every file of the folder counts, whatever its suffix, so that a photo of an unknown kind is reported and not passed
    over; hidden files and subfolders do not.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        ValueError: it is an empty folder, ``output`` cannot be a folder, two images would be written to one file, or
            one over an input.
    """
    inputs = _files(source)
    _check_folder(output)
    jobs = [Job(path, output / f"{path.stem}.png") for path in inputs]
    same_target: dict[Path, list[Path]] = {}
    for path, target in jobs:
        same_target.setdefault(target, []).append(path)
    for target, paths in same_target.items():
        # A video or a note beside a photo of the same name is no second image.
        images = [path for path in paths if is_image(path)] if len(paths) > 1 else paths
        if len(images) > 1:
            raise ValueError(f"{' and '.join(map(str, images))} would both be written to {target}; rename one of them")
    identities = {_identity(path): path for path in inputs}
    for target in same_target:
        if target.exists() and _identity(target) in identities:
            raise ValueError(
                f"{target} would overwrite the input {identities[_identity(target)]}; give another folder with -o"
            )
    return jobs


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
        if not files:
            raise ValueError(f"-i {source} holds no files; expected images in it (subfolders are not searched)")
        return files
    if source.exists():
        return [source]
    raise FileNotFoundError(f"-i {source} does not exist; give an image or a folder of images")


def _check_folder(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"-o {output} is a file; give a folder, results are written to it as <name>.png")
    if output.suffix.lower() in (".png", ".jpg", ".jpeg") and not output.exists():
        raise ValueError(f"-o {output} looks like a file; give a folder, results are written to it as <name>.png")


def _identity(path: Path) -> tuple[int, int]:
    """Equal for two paths of the same file, through links and letter case."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
