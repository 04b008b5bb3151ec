"""Where a data set's images are: folders, an LMDB, and the text files that list them."""

import os
import re
from typing import NamedTuple
from urllib.parse import unquote

import lmdb

from basicsr_compat.files import require_present
from iter_data.images import HOW_TO_GET_DATA, list_images

# The size, which BasicSR writes behind the name, ends the line but for a class; `IMG (1,2).png` is a name.
_META_LINE = re.compile(r"^(?P<name>.+?)(?:\s+\((?P<h>\d+),\s*(?P<w>\d+)(?:,\s*\d+)?\)(?:\s+\S+)?)?$")


class Entry(NamedTuple):
    """An image. path: a file, or a key of the LMDB; size: (height, width), None where no list says it."""

    path: str
    size: tuple[int, int] | None


def disk_entries(roots: list[str], metas: list[str] | None, section: str) -> list[Entry]:
    """The images below `roots`, or those that the lists `metas` name, one list per folder.

    section: the name of the data set's section, for errors.

    Raises:
        FileNotFoundError: a folder, a list or a listed image is missing.
        ValueError: a list cannot be read.
    """
    if not metas:
        return [Entry(path, None) for root in roots for path in list_images(root)]
    entries = []
    for root, meta in zip(roots, metas, strict=True):
        listed = [Entry(os.path.join(root, name), size) for name, size in _read_meta_info(meta, section)]
        remedy = "correct it, or make it anew with `python -m iter_data.prepare meta-info`"
        source = f"{section}.meta_info={meta!r} (dataroot_gt={root!r})"
        require_present([entry.path for entry in listed], source, remedy)
        entries += listed
    return entries


def lmdb_entries(root: str, meta: str | None, section: str) -> list[Entry]:
    """The images of the LMDB `root`: those of its own list, or of the list `meta`; section: for errors.

    Raises:
        FileNotFoundError: the LMDB or the list is missing.
        ValueError: the folder is no LMDB, or the list cannot be read.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"{section}.dataroot_gt={root!r} does not exist: make it with `python -m "
            f"iter_data.prepare lmdb`; {HOW_TO_GET_DATA}"
        )
    try:
        lmdb.open(root, readonly=True, lock=False).close()
    except lmdb.Error as error:
        raise ValueError(
            f"{section}.dataroot_gt={root!r} is no LMDB, or is damaged ({error}): make it anew with `python -m "
            "iter_data.prepare lmdb`"
        ) from error
    listed = _read_meta_info(meta or os.path.join(root, "meta_info.txt"), section)
    # BasicSR's keys are the names without their extension
    return [Entry(os.path.splitext(name)[0], size) for name, size in listed]


def name_of_key(key: str) -> str:
    """The name, without extension, of the file behind a key that `prepare lmdb` made."""
    return unquote(key)


def _read_meta_info(path: str, section: str) -> list[tuple[str, tuple[int, int] | None]]:
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{section}.meta_info={path!r} does not exist: make it with `python -m iter_data.prepare meta-info`"
        )
    try:
        with open(path, encoding="utf-8-sig") as file:  # Windows begins files with a byte order mark
            matches = [match for line in file if (match := _META_LINE.match(line.strip()))]
    except UnicodeDecodeError as error:
        raise ValueError(f"{section}.meta_info={path!r} must be a text file in UTF-8: {error}") from error
    if not matches:
        raise ValueError(f"{section}.meta_info={path!r} names no image")
    return [
        (match["name"].replace("\\", "/"), (int(match["h"]), int(match["w"])) if match["h"] else None)
        for match in matches
    ]
