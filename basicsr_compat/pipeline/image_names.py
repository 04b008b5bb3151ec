"""Names of images by their paths below the data folder, unique in a set, so results do not overwrite each other.

BasicSR names results by the stem of the file alone.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def names_below(paths: Sequence[str], roots: Sequence[str]) -> list[str]:
    """A unique name for each file: its path below its data folder, without the extension.

    Files with equal names keep their extension, and in several folders also the name of their folder. Names that are
    still equal get numbers.

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
    """The name of the folder of `roots` that the file is in, and the path below it."""
    for root in sorted(roots, key=len, reverse=True):
        relative = os.path.relpath(path, root)
        if relative.split(os.sep)[0] != os.pardir:
            return os.path.basename(os.path.abspath(root)), relative
    return "", os.path.basename(path) if os.path.isabs(path) else path


def image_names(dataset: Any) -> list[str] | None:
    """A unique name for each image of a data set, see `names_below`; None where the set does not list its files.

    A data set may have its own `names`, as `SecondOrderDegradationDataset` does.
    """
    if hasattr(dataset, "names"):
        return dataset.names
    paths = getattr(dataset, "paths", None)
    if paths is None or len(paths) != len(dataset):
        return None
    roots = [dataset.opt.get(key) for key in ("dataroot_lq", "dataroot_gt", "dataroot")]
    folders = [folder for root in roots if root for folder in ([root] if isinstance(root, str) else root)]
    return names_below([path["lq_path"] if isinstance(path, Mapping) else path for path in paths], folders)


def result_path(folder: str, name: str, *, iteration: int | str | None = None, suffix: str = "") -> str:
    """The path of the result of an image below `folder`, that of its set.

    Args:
        name: the image's, see `names_below`.
        iteration: of the training run that is validated; None for a test.
        suffix: of the names of a test's files.
    """
    if iteration is not None:
        return os.path.join(folder, name, f"{os.path.basename(name)}_{iteration}.png")
    return os.path.join(folder, f"{name}_{suffix}.png")
