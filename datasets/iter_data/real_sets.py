"""The test sets of Table 1, in the folders that their authors ship: RealSR, DRealSR, DPED-iphone and RealSRSet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from iter_data.images import UnreadableImage, list_images, read_listed, to_image, to_tensor, write_png
from iter_data.real_pair_dataset import RealPairDataset


class RealPhotos(Dataset):
    """Photos without GT, from one folder: items have 'lq' (3, h, w) in [0, 1] and 'lq_path'."""

    def __init__(self, folder: Path) -> None:
        self.paths = [{"lq_path": path} for path in list_images(str(folder))]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]["lq_path"]
        return {"lq": to_tensor(read_listed(path)), "lq_path": path}


Photos = RealPhotos | RealPairDataset


class RealSet(NamedTuple):
    """Where the parts of a set lie; '{scale}' stands for the scale.

    names: possible names of its folder.
    inside: patterns of the folders within it that hold the photos. The first pattern that any folder matches counts;
        where none does, the photos lie in the set's folder itself.
    options: of `RealPairDataset`; None where the set has no GT.
    lq_folder: turns the name of the GT's folder into that of the LQ's; None where both lie in one folder.
    """

    names: tuple[str, ...]
    inside: tuple[str, ...]
    options: dict[str, str] | None = None
    lq_folder: Callable[[str], str] | None = None


SETS = {
    # Canon and Nikon, each with Train and Test and a folder for each scale.
    "RealSR": RealSet(("RealSR", "RealSR(V3)", "RealSR (ICCV2019)"), ("**/Test/{scale}",), {}),
    "DRealSR": RealSet(
        ("DRealSR", "DRealSR_x{scale}", "Test_x{scale}"),
        ("**/Test_x{scale}/test_HR", "**/test_HR"),
        {"gt_suffix": "_x1", "lq_suffix": "_x{scale}"},
        lambda name: name.replace("_HR", "_LR"),
    ),
    # DPED's own test patches of the iPhone, or NTIRE 2020's.
    "DPED-iphone": RealSet(
        ("DPED-iphone", "DPEDiphone", "dped", "DPED"), ("**/iphone/test_data/patches/iphone", "**/DPEDiphone*-te*-x")
    ),
    "RealSRSet": RealSet(("RealSRSet", "BSRGAN/testsets/RealSRSet", "testsets/RealSRSet"), ()),
}
# What `prepare` makes of a set.
GT, LQ = "gt", "lq"


def find_set(name: str, data: str | Path, scale: int = 4) -> Path | None:
    """The folder of a set below ``data``, or None where there is none. name: one of `SETS`."""
    folders = (Path(data) / one.format(scale=scale) for one in SETS[name].names)
    return next((folder for folder in folders if folder.is_dir()), None)


def open_set(name: str, folder: str | Path, scale: int = 4) -> Iterator[tuple[str, Photos, int]]:
    """List the photos of a set.

    Args:
        name: one of `SETS`.
        folder: as its authors ship it, or as `make_real_set` writes it.
        scale: GT size over LQ size.

    Yields:
        (name, data set, index in it): the name is unique in the set; the item has 'lq', 'gt' where the set has GT, and
        the paths of both.

    Raises:
        ValueError: files without a partner.
        FileNotFoundError: no photos.
    """
    folder = Path(folder)
    for dataset in _parts(SETS[name], folder, scale):
        for index, paths in enumerate(dataset.paths):
            stem = Path(paths["lq_path"]).relative_to(folder).with_suffix("")
            yield "/".join(part for part in stem.parts if part != LQ), dataset, index


def _parts(layout: RealSet, folder: Path, scale: int) -> Iterator[Photos]:
    if (folder / LQ).is_dir():
        if (folder / GT).is_dir():
            yield _pairs(folder / GT, folder / LQ, scale, gt_suffix="", lq_suffix="")
        else:
            yield RealPhotos(folder / LQ)
        return
    for part in _inside(layout, folder, scale):
        if layout.options is None:
            yield RealPhotos(part)
        else:
            lq = part.with_name(layout.lq_folder(part.name)) if layout.lq_folder else part
            options = {key: value.format(scale=scale) for key, value in layout.options.items()}
            yield _pairs(part, lq, scale, **options)


def _inside(layout: RealSet, folder: Path, scale: int) -> list[Path]:
    for pattern in layout.inside:
        found = sorted(path for path in folder.glob(pattern.format(scale=scale)) if path.is_dir())
        if found:
            return found
    return [folder]


def _pairs(gt: Path, lq: Path, scale: int, **options: str) -> RealPairDataset:
    section = {"phase": "val", "scale": scale, "dataroot_gt": str(gt), "dataroot_lq": str(lq), **options}
    return RealPairDataset(section)


def make_real_set(name: str, folder: str, output: str, *, scale: int = 4) -> list[str]:
    """Write a set as PNG files into `output`/lq and, where it has GT, `output`/gt, under equal names.

    Args:
        name, folder, scale: see `open_set`. LQ images of the GT's size are shrunk by the scale.
        output: folder to write to.

    Returns:
        What was skipped and why, one line per photo.

    Raises:
        ValueError: the folders exist already, or files have no partner.
        FileNotFoundError: no photos.
    """
    for part in (GT, LQ):
        if os.path.exists(os.path.join(output, part)):
            raise ValueError(f"{os.path.join(output, part)} exists already; remove it or name another folder")
    skipped, written = [], 0
    for stem, dataset, index in open_set(name, folder, scale):
        try:
            item = dataset[index]
        except UnreadableImage as error:
            skipped.append(str(error))
            continue
        for part in (GT, LQ):
            if part in item:
                write_png(os.path.join(output, part, f"{stem}.png"), to_image(item[part]))
        written += 1
    print(f"{output}: {written} photos of {name}")
    return skipped
