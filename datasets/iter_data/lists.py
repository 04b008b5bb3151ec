"""Lists of the images of folders, for the option meta_info: all that can be read, or those good enough to be GT."""

import os
from collections import Counter
from pathlib import Path

from basicsr_compat.files import atomic_write
from iter_data.filtering import Measures, Thresholds, measure, report
from iter_data.images import UnreadableImage, in_threads, list_images, read_image


def make_meta_info(folders: list[str], output: str, *, root: str | None = None, min_size: int = 1) -> list[str]:
    """Write a list of the readable images of some folders, with their sizes, for the option meta_info.

    Args:
        folders: searched through their subfolders.
        output: text file to write.
        root: folder that the names are relative to; None: the folder itself, or the deepest that holds all of them.
        min_size: images with a shorter side, in pixels, are left out, and not reported as skipped.

    Returns:
        What was skipped and why, one line per image.

    Raises:
        ValueError: a folder is not under `root`, or no image is left.
        FileNotFoundError: a folder is missing or holds no image.
    """
    root, paths = _images_below(folders, root)
    skipped, lines = [], []
    for path, shape in zip(paths, in_threads(lambda path: read_image(path).shape, paths), strict=True):
        if isinstance(shape, UnreadableImage):
            skipped.append(f"{path}: {shape}")
        elif min(shape[:2]) >= min_size:
            lines.append(_meta_line(path, root, *shape[:2]))
    if not lines:
        raise ValueError(f"no image of {', '.join(folders)} is readable and at least {min_size} pixels high and wide")
    _write_text(output, "".join(lines))
    print(f"{output}: {len(lines)} of {len(paths)} images; use it with dataroot_gt: {root}")
    return skipped


def make_filtered(
    folders: list[str],
    output: str,
    *,
    root: str | None = None,
    report_file: str | None = None,
    thresholds: Thresholds,
) -> list[str]:
    """Like `make_meta_info`, but list only the images that are good enough to be GT.

    Args:
        folders, output, root: see `make_meta_info`, which also says the result and the errors.
        report_file: CSV file for the measures of all images, and the reasons why some are not in the list.
        thresholds: what an image must satisfy.
    """
    root, paths = _images_below(folders, root)
    skipped, lines = [], []
    rows: dict[str, tuple[Measures, list[str]]] = {}
    for path, found in zip(paths, in_threads(lambda path: measure(read_image(path)), paths), strict=True):
        if isinstance(found, UnreadableImage):
            skipped.append(f"{path}: {found}")
            continue
        reasons = list(thresholds.reasons(found))
        rows[os.path.relpath(path, root)] = found, reasons
        if not reasons:
            lines.append(_meta_line(path, root, found.height, found.width))
    if report_file is not None:
        _write_text(report_file, report(rows))
    counts = Counter(reason for _, reasons in rows.values() for reason in reasons)
    dropped = ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none dropped"
    if not lines:
        raise ValueError(f"none of the {len(paths)} images of {', '.join(folders)} is good enough ({dropped})")
    _write_text(output, "".join(lines))
    print(f"{output}: {len(lines)} of {len(paths)} images ({dropped}); use it with dataroot_gt: {root}")
    return skipped


def _images_below(folders: list[str], root: str | None) -> tuple[str, list[str]]:
    """The folder that the names of a list are relative to, and the paths of all images."""
    root = root or (folders[0] if len(folders) == 1 else os.path.commonpath(folders))
    for folder in folders:
        if os.path.relpath(folder, root).startswith(".."):
            raise ValueError(f"folder {folder!r} is not under root {root!r}")
    return root, [path for folder in folders for path in list_images(folder)]


def _meta_line(path: str, root: str, height: int, width: int) -> str:
    return f"{os.path.relpath(path, root)} ({height},{width},3)\n"


def _write_text(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")
