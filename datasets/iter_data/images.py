"""Image files of a data set: listing them, and reading them so that a damaged one is noticed."""

import os
import zlib
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
HOW_TO_GET_DATA = "datasets/README.md says how to get and prepare the data"


class UnreadableImage(Exception):
    """A file that holds no complete image; the message says why, without the path."""


def list_images(folder: str | Path) -> list[str]:
    """Paths of all images under `folder`, through subfolders and symbolic links, sorted; hidden files left out.

    Raises FileNotFoundError if the folder is missing or holds no image.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"image folder {str(folder)!r} does not exist: {HOW_TO_GET_DATA}")
    paths, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        # a link back to a parent would be walked for ever
        real = os.path.realpath(parent)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in seen else []
        if real not in seen:
            paths += [os.path.join(parent, name) for name in files if is_image_name(name)]
        seen.add(real)
    if not paths:
        raise FileNotFoundError(
            f"image folder {str(folder)!r} holds no image ({', '.join(IMAGE_SUFFIXES)}): {HOW_TO_GET_DATA}"
        )
    return sorted(paths)


def is_image_name(name: str) -> bool:
    """Whether a file name is that of an image, and not hidden."""
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def decode_image(data: bytes | None) -> np.ndarray:
    """Decode an image file to (h, w, 3) uint8 BGR, its EXIF orientation applied. Raises UnreadableImage."""
    if not data:
        raise UnreadableImage("it is empty")
    # OpenCV fills what a truncated file lacks with gray and succeeds
    if _is_truncated(data):
        raise UnreadableImage("it is truncated")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise UnreadableImage(f"OpenCV cannot decode it ({error.err})") from error
    if image is None:
        raise UnreadableImage("it is not an image that OpenCV can decode")
    return image


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file to (h, w, 3) uint8 BGR. Raises UnreadableImage, also if it cannot be opened."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from error
    return decode_image(data)


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write (h, w, 3) uint8 BGR as PNG, making the folder. Raises OSError where the file cannot be written."""
    _, data = cv2.imencode(".png", image)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # not cv2.imwrite, which returns False for a full disk and fails on non-ASCII names on Windows
    Path(path).write_bytes(data.tobytes())


def to_tensor(image: np.ndarray) -> Tensor:
    """(h, w, 3) uint8 BGR -> (3, h, w) float32 RGB in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))).float().div_(255)


def to_image(tensor: Tensor) -> np.ndarray:
    """(3, h, w) float RGB in [0, 1] -> (h, w, 3) uint8 BGR."""
    scaled = tensor.mul(255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(1, 2, 0).numpy()[..., ::-1])


def seed_of(path: str | Path, seed: int) -> int:
    """A 32-bit seed for one file, from `seed` and its name without folder and extension: the same on every machine."""
    return zlib.crc32(f"{seed}/{Path(path).stem}".encode())


def _is_truncated(data: bytes) -> bool:
    if data.startswith(b"\xff\xd8"):
        # the end marker must follow the last scan: an embedded thumbnail has markers of its own before it
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if data.startswith(b"\x89PNG"):
        return data.rfind(b"IEND") < 0
    return False
