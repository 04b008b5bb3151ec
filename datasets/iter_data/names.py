"""Short names that are one for one with the files of a data set: for results, and for what is seeded by a name."""

import os
import zlib
from collections import Counter
from collections.abc import Sequence


def names_below(paths: Sequence[str], roots: Sequence[str]) -> list[str]:
    """Each file's path below its data folder, without the extension; different for each file.

    Files that this would give one name keep their extension, those of two folders also the folder's name, and what is
    the same even then is numbered.

    Args:
        paths: files below one of `roots`, or keys of an LMDB.
        roots: data folders.
    """
    below = [_below(path, roots) for path in paths]
    names: list[str] = [""] * len(paths)
    waiting = list(range(len(paths)))
    taken: set[str] = set()
    for form in (lambda root, name: os.path.splitext(name)[0], lambda root, name: name, os.path.join):
        wanted = {index: form(*below[index]) for index in waiting}
        counts = Counter(wanted.values())
        unique = [index for index in waiting if counts[wanted[index]] == 1 and wanted[index] not in taken]
        for index in unique:
            names[index] = wanted[index]
        taken |= {wanted[index] for index in unique}
        waiting = [index for index in waiting if not names[index]]
    for index in waiting:
        name = os.path.join(*below[index])
        number = next(n for n in range(1, len(paths) + 2) if f"{name}_{n}" not in taken)
        names[index] = f"{name}_{number}"
        taken.add(names[index])
    return names


def _below(path: str, roots: Sequence[str]) -> tuple[str, str]:
    """(name of the folder of `roots` that the file is in, path below it)."""
    for root in sorted(roots, key=len, reverse=True):
        relative = os.path.relpath(path, root)
        if relative.split(os.sep)[0] != os.pardir:
            return os.path.basename(os.path.abspath(root)), relative
    return "", os.path.basename(path) if os.path.isabs(path) else path


def seed_of(name: str, seed: int) -> int:
    """A 32-bit seed for one name, from `seed` and the name: the same on every machine."""
    return zlib.crc32(f"{seed}/{name}".encode())
