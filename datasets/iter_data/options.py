"""Options of the data sets."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from basicsr_compat.schema import Count, Natural, OptionsOf, Positive, Rule, format_value, section_problems
from iter_data.degradation import MIN_GT_SIZE, degradation_problems
from iter_data.second_order_options import SecondOrderOptions

Crop = Annotated[int, Rule(f">= {MIN_GT_SIZE}", lambda value: value >= MIN_GT_SIZE)]
ShrinkRange = Annotated[
    tuple[float, float], Rule("with 0 < low <= high <= 1", lambda value: 0 < value[0] <= value[1] <= 1)
]


@dataclass(frozen=True, kw_only=True)
class IOBackend:
    """Where images are read from: files, or an LMDB that `python -m iter_data.prepare lmdb` made."""

    type: Literal["disk", "lmdb"]


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """The options in the section of a data set that BasicSR's loaders read."""

    use_shuffle: bool | None = None
    num_worker_per_gpu: Natural | None = None
    batch_size_per_gpu: Count | None = None
    dataset_enlarge_ratio: Positive = 1
    prefetch_mode: Literal["cpu", "cuda"] | None = None
    num_prefetch_queue: Count = 1
    pin_memory: bool = False
    persistent_workers: bool = False


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(LoaderOptions):
    """The section of a `SecondOrderDegradationDataset`. Options that BasicSR has too keep its names and meaning.

    dataroot_gt: an image folder, searched through its subfolders in sorted order; or a list of folders; with
        io_backend type lmdb, one `.lmdb` folder.
    meta_info: text file that names the images to use, relative to dataroot_gt, one per line as BasicSR writes them
        (`name.png` or `name.png (h,w,c) 1`); a list of files for a list of folders.
    io_backend: {type: disk} (default) or {type: lmdb}.
    gt_size: side of the GT crops in pixels, a multiple of the scale, >= 32 (sharpening needs > 25); in training only.
    crop_pad_size: side of a larger crop, which is degraded and then cropped to gt_size, as Real-ESRGAN does with 400;
        default gt_size.
    use_hflip, use_rot: random flips and quarter turns.
    gt_resize_range: [low, high] in (0, 1]: the GT is shrunk by a random factor before it is cropped, which gives
        a small training set more scales; off by default.
    pad_small_gt: pad images smaller than the crop by reflection, as BasicSR does; by default they are an error.
    gt_usm: sharpen the GT crops by Real-ESRGAN's unsharp masking before they are degraded, in training only. The
        networks then learn to restore sharpened images. Must be the same in stage I and in stages II and III; off, as
        in the authors' released options.
    degradation: `type` names a class of `DEGRADATION_REGISTRY`, the other keys are its options; by default
        `SecondOrderDegradation` with Real-ESRGAN's values.
    degrade_in_worker: whether items are LQ and GT for any BasicSR model, instead of GT and what the degradation draws.
    seed: chooses the degradations in validation and tests.
    """

    scale: Count
    phase: Literal["train", "val", "test"] = "train"
    type: str = "SecondOrderDegradationDataset"
    name: str | None = None
    dataroot_gt: str | list[str]
    meta_info: str | list[str] | None = None
    io_backend: Annotated[Mapping[str, Any] | None, OptionsOf(IOBackend)] = None
    gt_size: Crop | None = None
    crop_pad_size: Crop | None = None
    use_hflip: bool = True
    use_rot: bool = False
    gt_resize_range: ShrinkRange | None = None
    pad_small_gt: bool = False
    gt_usm: bool = False
    degradation: Mapping[str, Any] | None = None
    degrade_in_worker: bool = False
    seed: Natural = 0


def dataset_problems(section: Mapping[str, Any], where: str) -> Iterator[str]:
    """Say what is wrong with a section of `DatasetOptions`, one line per problem. where: its name in the options."""
    of_degradation = {field.name for field in fields(SecondOrderOptions)}
    for key in of_degradation.intersection(section):
        yield f"{where}.{key} belongs into the sub-section {where}.degradation: move it there"
    own = {key: value for key, value in section.items() if key not in of_degradation}
    problems = list(section_problems(own, DatasetOptions, where))
    yield from problems
    degradation = section.get("degradation")
    if isinstance(degradation, Mapping) and "gt_usm" in degradation:
        yield f"{where}.degradation.gt_usm belongs into {where}, as stage I has it too: move it there"
        degradation = {key: value for key, value in degradation.items() if key != "gt_usm"}
    if degradation is not None:
        yield from degradation_problems(degradation, f"{where}.degradation")
    if not problems:
        yield from _unfit_crops(DatasetOptions(**own), where)
        yield from _unfit_sources(section, where)


def _unfit_crops(options: DatasetOptions, where: str) -> Iterator[str]:
    if options.phase != "train":
        return
    rule = f"must be a multiple of scale={options.scale} and >= {MIN_GT_SIZE}"
    if options.gt_size is None:
        yield f"{where}.gt_size is missing: it {rule}"
    elif options.gt_size % options.scale:
        yield f"{where}.gt_size={options.gt_size} {rule}"
    elif options.crop_pad_size is not None and (
        options.crop_pad_size % options.scale or options.crop_pad_size < options.gt_size
    ):
        rule = f"must be a multiple of scale={options.scale} and >= gt_size={options.gt_size}"
        yield f"{where}.crop_pad_size={options.crop_pad_size} {rule}"


def _unfit_sources(section: Mapping[str, Any], where: str) -> Iterator[str]:
    roots, metas = section["dataroot_gt"], section.get("meta_info")
    if (section.get("io_backend") or {}).get("type") == "lmdb":
        if not isinstance(roots, str) or not roots.rstrip("/").endswith(".lmdb"):
            rule = "must be one folder whose name ends in .lmdb with io_backend type lmdb"
            yield f"{where}.dataroot_gt={format_value(roots)} {rule}"
        return
    if not roots:
        yield f"{where}.dataroot_gt={format_value(roots)} must be an image folder or a list of image folders"
    counts = [1 if isinstance(names, str) else len(names) for names in (roots, metas or roots)]
    if counts[0] != counts[1]:
        rule = f"must name one file for each folder of dataroot_gt={format_value(roots)}"
        yield f"{where}.meta_info={format_value(metas)} {rule}"
