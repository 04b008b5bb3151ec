"""Image files of a data set: listing them, and reading them so that a damaged one is noticed."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from basicsr_compat.files import atomic_write
from basicsr_compat.images import SUFFIXES, UnreadableImage, content_of, decode_image, printable, read_once

Result = TypeVar("Result")
# Of files that are passed over.
_NAMED = 10
# Seconds between attempts at a file whose folder does not answer, 60 in all.
PAUSES = (1, 2, 4, 8, 15, 15, 15)
_PROBES = 8
HOW_TO_GET_DATA = "datasets/README.md says how to get and prepare the data"


def list_images(folder: str | Path) -> list[str]:
    """The sorted paths of all images under `folder`, through subfolders and symbolic links, without hidden files.

    BasicSR's log names the files that are passed over because their names do not end like those of images (`SUFFIXES`).

    Raises:
        FileNotFoundError: the folder is missing or holds no image.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"image folder {str(folder)!r} does not exist: {HOW_TO_GET_DATA}")
    files = [path for path in _walk(folder) if not os.path.basename(path).startswith(".")]
    images = [path for path in files if path.lower().endswith(SUFFIXES)]
    if not images:
        kinds = ", ".join(SUFFIXES)
        raise FileNotFoundError(f"image folder {str(folder)!r} holds no image ({kinds}): {HOW_TO_GET_DATA}")
    others = sorted({*files} - {*images})
    if others:
        names = ", ".join(printable(os.path.relpath(path, folder)) for path in others[:_NAMED])
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        count = f"{len(others)} file{'s' if len(others) > 1 else ''}"
        logging.getLogger("basicsr").warning(
            f"{folder}: passed over {count} without the name of an image: {names}{more}"
        )
    return sorted(images)


def _walk(folder: str | Path) -> Iterator[str]:
    """Paths of all files under `folder`, without hidden folders; a link back to a parent does not loop forever."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in seen else []
        if real not in seen:
            yield from (os.path.join(parent, name) for name in files)
        seen.add(real)


def read_bytes(path: str | Path, on_wait: Callable[[OSError], None] = lambda error: None) -> bytes:
    """Read a file, and wait for its file system where that is at fault.

    A network file system may be gone for seconds. Then no other file of the folder can be read either; where one can,
    the file itself was removed or is damaged.

    Args:
        path: the file.
        on_wait: called with the reason before each of the `PAUSES`.

    Raises:
        UnreadableImage: the file cannot be opened, but others in its folder can; or it is a device or a pipe.
        OSError: its folder did not answer during all `PAUSES`.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            return content_of(path)
        except ValueError as error:  # a name with a NUL
            raise UnreadableImage(str(error)) from error
        except OSError as error:
            if _answers(path):
                return read_once(path)  # the folder may have come back since
            pause = next(pauses, None)
            if pause is None:
                raise OSError(
                    f"{os.path.dirname(path)} has not answered for {sum(PAUSES):g} s ({error.strerror or error}): "
                    "bring the folder back and continue with --auto_resume"
                ) from error
            on_wait(error)
            time.sleep(pause)


def _answers(path: str | Path) -> bool:
    """Whether one of a few other files in the folder of `path` can be read."""
    probes = 0
    try:
        with os.scandir(os.path.dirname(path) or ".") as entries:
            for entry in entries:
                if entry.name == os.path.basename(path) or not entry.is_file():
                    continue
                try:
                    with open(entry.path, "rb") as file:
                        file.read(1)
                    return True
                except OSError:
                    probes += 1
                if probes == _PROBES:
                    return False
    except OSError:
        pass
    return False


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as (h, w, 3) uint8 BGR. Raises UnreadableImage, also where it cannot be opened."""
    return decode_image(read_once(path))


def read_listed(path: str | Path) -> np.ndarray:
    """Like `read_image`; the error also names the file and the remedy."""
    try:
        return read_image(path)
    except UnreadableImage as error:
        raise UnreadableImage(f"{path} cannot be read: {error}; repair it or take it out") from error


def in_threads(work: Callable[[str], Result], paths: list[str]) -> Iterator[Result | UnreadableImage]:
    """Apply `work` to every path in threads, with a progress bar; disks and OpenCV release the interpreter.

    Yields the results in the order of the paths, an UnreadableImage that `work` raised among them.
    """

    def attempt(path: str) -> Result | UnreadableImage:
        try:
            return work(path)
        except UnreadableImage as error:
            return error

    with ThreadPoolExecutor() as pool:
        yield from tqdm(pool.map(attempt, paths), total=len(paths), unit="image", disable=None)


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write (h, w, 3) uint8 BGR as a PNG file and make its folder. Raises OSError where it cannot be written."""
    _, data = cv2.imencode(".png", image)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # not cv2.imwrite, which returns False for a full disk and fails on non-ASCII names on Windows
    with atomic_write(path) as temporary:
        Path(temporary).write_bytes(data.tobytes())


def to_tensor(image: np.ndarray) -> Tensor:
    """(h, w, 3) uint8 BGR -> (3, h, w) float32 RGB in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))).float().div_(255)


def to_image(tensor: Tensor) -> np.ndarray:
    """(3, h, w) float RGB in [0, 1] -> (h, w, 3) uint8 BGR."""
    scaled = tensor.mul(255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(1, 2, 0).numpy()[..., ::-1])
