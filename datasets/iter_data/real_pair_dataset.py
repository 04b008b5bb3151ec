"""Pairs of photos from cameras: RealSR (Cai et al., ICCV 2019), DRealSR (Wei et al., ECCV 2020), and similar sets."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from basicsr.data.transforms import augment, paired_random_crop
from basicsr.utils.matlab_functions import imresize
from torch.utils.data import Dataset

from basicsr_compat import register
from basicsr_compat.schema import Count, OptionsOf, format_value, section_problems
from iter_data.images import UnreadableImage, list_images, read_listed, to_tensor
from iter_data.options import Crop, LoaderOptions

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class DiskBackend:
    """Where pairs are read from: files alone."""

    type: Literal["disk"]


@dataclass(frozen=True, kw_only=True)
class RealPairOptions(LoaderOptions):
    """The section of a `RealPairDataset`.

    dataroot_gt: image folder, searched through its subfolders.
    dataroot_lq: folder of the LQ images, with the same subfolders; by default they are beside the GT, in dataroot_gt.
    gt_suffix, lq_suffix: how the names of GT and LQ end, before the extension; by default '_HR' and '_LR' with the
        scale ('_LR4'), as in RealSR. Other files are passed over.
    io_backend: {type: disk}, the default.
    gt_size: side of the GT crops, a multiple of the scale; in training only.
    use_hflip, use_rot: random flips and quarter turns; in training only.
    """

    scale: Count
    phase: Literal["train", "val", "test"] = "train"
    type: str = "RealPairDataset"
    name: str | None = None
    dataroot_gt: str
    dataroot_lq: str | None = None
    gt_suffix: str = "_HR"
    lq_suffix: str | None = None
    io_backend: Annotated[Mapping[str, Any] | None, OptionsOf(DiskBackend)] = None
    gt_size: Crop | None = None
    use_hflip: bool = True
    use_rot: bool = False


@register("dataset")
class RealPairDataset(Dataset):
    """Pairs of GT and LQ images, in one folder or in two, which the suffixes of their names tell apart.

    In RealSR's versions 1 and 2 the LQ images have the GT's size. MATLAB's bicubic kernel shrinks them by the scale, as
    a network of this scale expects. In version 3 they are small, and used unchanged.

    Items: 'lq' (3, h, w), 'gt' (3, h * scale, w * scale) float32 RGB in [0, 1], 'lq_path', 'gt_path'. In training they
    are crops at random places, drawn from Python's global generator as in BasicSR's PairedImageDataset.

    Args:
        opt: the section of the data set; see `RealPairOptions`.

    Raises:
        ValueError: a bad option, or files without a partner.
        FileNotFoundError: a folder is missing or empty.
        UnreadableImage: an item cannot be read, or its images do not fit each other.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__()
        self.opt = opt  # BasicSR reads the name of a validation set from here
        section = f"datasets.{opt.get('phase', 'train')}"
        problems = list(self.option_problems(opt, section))
        if problems:
            raise ValueError("\n".join(problems))
        self.options = RealPairOptions(**opt)
        self.paths = _paths(self.options, section)

    @staticmethod
    def option_problems(opt: Mapping[str, Any], section: str) -> Iterator[str]:
        """Say what is wrong with the section of a data set, one line per problem, without looking at files."""
        problems = list(section_problems(opt, RealPairOptions, section))
        yield from problems
        if problems:
            return
        options = RealPairOptions(**opt)
        if options.dataroot_lq in (None, options.dataroot_gt) and options.gt_suffix == _lq_suffix(options):
            yield f"{section}.lq_suffix={format_value(options.lq_suffix)} must differ from gt_suffix in one folder"
        if options.phase == "train" and (options.gt_size is None or options.gt_size % options.scale):
            yield f"{section}.gt_size={options.gt_size} must be a multiple of scale={options.scale}"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        paths = self.paths[index]
        gt, lq = self._fitted(read_listed(paths["gt_path"]), read_listed(paths["lq_path"]), paths)
        return {"lq": to_tensor(lq), "gt": to_tensor(gt), **paths}

    def _fitted(self, gt: np.ndarray, lq: np.ndarray, paths: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
        """The pair in its sizes, cropped and flipped in training."""
        options, scale = self.options, self.options.scale
        aligned = gt.shape == lq.shape
        if aligned:
            height, width = (side - side % scale for side in gt.shape[:2])
            gt, lq, factor = gt[:height, :width], lq[:height, :width], 1
        else:
            factor = scale
            gt = gt[: lq.shape[0] * scale, : lq.shape[1] * scale]
        if gt.shape[:2] != tuple(side * factor for side in lq.shape[:2]):
            raise UnreadableImage(
                f"{paths['lq_path']} has {lq.shape[0]}x{lq.shape[1]} pixels, which is neither the size of "
                f"{paths['gt_path']} nor 1/{scale} of it: take the pair out"
            )
        if options.phase == "train":
            if min(gt.shape[:2]) < options.gt_size:
                raise UnreadableImage(
                    f"{paths['gt_path']} has {gt.shape[0]}x{gt.shape[1]} pixels, but both sides must be >= "
                    f"gt_size={options.gt_size}: remove the pair, or lower gt_size"
                )
            gt, lq = paired_random_crop(gt, lq, options.gt_size, factor)
            gt, lq = augment([gt, lq], options.use_hflip, options.use_rot)
        return gt, _shrunk(lq, scale) if aligned else lq


def _lq_suffix(options: RealPairOptions) -> str:
    return f"_LR{options.scale}" if options.lq_suffix is None else options.lq_suffix


def _paths(options: RealPairOptions, section: str) -> list[dict[str, str]]:
    folders = options.dataroot_gt, options.dataroot_lq or options.dataroot_gt
    suffixes = options.gt_suffix, _lq_suffix(options)
    gt, lq = (_by_name(folder, suffix) for folder, suffix in zip(folders, suffixes, strict=True))
    lonely = [path for names, others in ((gt, lq), (lq, gt)) for name, path in names.items() if name not in others]
    if lonely or not gt:
        found = (
            f"{len(gt)} images named *{suffixes[0]} in dataroot_gt={folders[0]!r} and {len(lq)} named *{suffixes[1]} "
            f"in dataroot_lq={folders[1]!r}"
        )
        shown = ", ".join(map(repr, lonely[:_SHOWN])) + (", ..." if len(lonely) > _SHOWN else "")
        without = f", of which {len(lonely)} have no partner ({shown})" if lonely else ""
        raise ValueError(f"{section}: there are {found}{without}; set gt_suffix and lq_suffix, or add the partners")
    return [{"lq_path": lq[name], "gt_path": gt[name]} for name in gt]


def _by_name(folder: str, suffix: str) -> dict[str, str]:
    """The images below a folder whose names end in the suffix, by their path below it without suffix and extension."""
    stems = ((os.path.splitext(os.path.relpath(path, folder))[0], path) for path in list_images(folder))
    return {stem.removesuffix(suffix): path for stem, path in stems if stem.endswith(suffix)}


def _shrunk(image: np.ndarray, scale: int) -> np.ndarray:
    """(h, w, 3) uint8 -> (h / scale, w / scale, 3) uint8, by MATLAB's imresize."""
    return (imresize(image.astype(np.float32) / 255, 1 / scale).clip(0, 1) * 255).round().astype(np.uint8)
