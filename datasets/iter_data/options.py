"""Options of the second-order degradation (Real-ESRGAN, arXiv:2107.10833), under BasicSR's own names, checked once.

BasicSR spreads them over the dataset section and the top level of the option file; here they all stand in the
`degradation:` sub-section of the dataset, and a key left out has the value of Real-ESRGAN's published option files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from basicsr_compat.schema import Count, Natural, Positive, Rule, format_key, format_value, nearest, section_problems

MIN_GT_SIZE = 32  # sharpening needs more than 25

Crop = Annotated[int, Rule(f">= {MIN_GT_SIZE}", lambda value: value >= MIN_GT_SIZE)]
ShrinkRange = Annotated[
    tuple[float, float], Rule("with 0 < low <= high <= 1", lambda value: 0 < value[0] <= value[1] <= 1)
]

KERNEL_TYPES = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")

_REAL_ESRGAN_KERNEL_PROB = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)


@dataclass(frozen=True, kw_only=True)
class DegradationOptions:
    """All parameters of the two degradation rounds; names ending in 2 belong to the second round.

    blur_kernel_size: odd, >= 7; kernels of a random odd size from 7 up to it are drawn and zero-padded to it.
    kernel_list, kernel_prob: kernel types (see KERNEL_TYPES) and their relative weights.
    sinc_prob, final_sinc_prob: probability of a sinc kernel instead; of the final sinc filter.
    blur_sigma, betag_range, betap_range: (low, high) of sigma and of the shape of generalised / plateau kernels.
    second_blur_prob: probability that the second round blurs at all.
    resize_prob: weights of (up, down, keep); resize_range: (smallest down, largest up) factor.
    gaussian_noise_prob: Gaussian noise with this probability, else Poisson; noise_range: sigma on the 0..255 scale;
    poisson_scale_range: factor on the Poisson noise; gray_noise_prob: one noise for the three channels.
    jpeg_range: (low, high) JPEG quality. gt_usm: the GT is USM-sharpened before it is degraded and trained towards.

    Every bad value raises ValueError naming the field, the value and the rule.
    """

    blur_kernel_size: int = 21
    kernel_list: tuple[str, ...] = KERNEL_TYPES
    kernel_prob: tuple[float, ...] = _REAL_ESRGAN_KERNEL_PROB
    sinc_prob: float = 0.1
    blur_sigma: tuple[float, float] = (0.2, 3.0)
    betag_range: tuple[float, float] = (0.5, 4.0)
    betap_range: tuple[float, float] = (1.0, 2.0)

    blur_kernel_size2: int = 21
    kernel_list2: tuple[str, ...] = KERNEL_TYPES
    kernel_prob2: tuple[float, ...] = _REAL_ESRGAN_KERNEL_PROB
    sinc_prob2: float = 0.1
    blur_sigma2: tuple[float, float] = (0.2, 1.5)
    betag_range2: tuple[float, float] = (0.5, 4.0)
    betap_range2: tuple[float, float] = (1.0, 2.0)

    final_sinc_prob: float = 0.8

    resize_prob: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize_range: tuple[float, float] = (0.15, 1.5)
    gaussian_noise_prob: float = 0.5
    noise_range: tuple[float, float] = (1.0, 30.0)
    poisson_scale_range: tuple[float, float] = (0.05, 3.0)
    gray_noise_prob: float = 0.4
    jpeg_range: tuple[float, float] = (30.0, 95.0)

    second_blur_prob: float = 0.8
    resize_prob2: tuple[float, float, float] = (0.3, 0.4, 0.3)
    resize_range2: tuple[float, float] = (0.3, 1.2)
    gaussian_noise_prob2: float = 0.5
    noise_range2: tuple[float, float] = (1.0, 25.0)
    poisson_scale_range2: tuple[float, float] = (0.05, 2.5)
    gray_noise_prob2: float = 0.4
    jpeg_range2: tuple[float, float] = (30.0, 95.0)

    gt_usm: bool = True

    @classmethod
    def from_dict(cls, section: Mapping[str, Any] | None, name: str = "degradation") -> "DegradationOptions":
        """Read a yml section (None or {} gives Real-ESRGAN's values); `name` is how errors call the section.

        Raises ValueError for an unknown key (with the nearest known one) and for a value that breaks its rule.
        """
        section = {} if section is None else section
        problems = list(degradation_problems(section, name))
        if problems:
            raise ValueError("\n".join(problems))
        return cls(**_with_tuples(section))

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError("\n".join(problems))

    def _problems(self) -> Iterator[str]:
        yield from self._unless("gt_usm", isinstance(self.gt_usm, bool), "must be true or false")
        for key in (
            "sinc_prob",
            "final_sinc_prob",
            "gaussian_noise_prob",
            "gray_noise_prob",
            "second_blur_prob",
            "sinc_prob2",
            "gaussian_noise_prob2",
            "gray_noise_prob2",
        ):
            value = getattr(self, key)
            yield from self._unless(key, _is_number(value) and 0 <= value <= 1, "must be a probability between 0 and 1")
        for end in ("", "2"):
            size, kinds = getattr(self, f"blur_kernel_size{end}"), getattr(self, f"kernel_list{end}")
            yield from self._unless(
                f"blur_kernel_size{end}",
                isinstance(size, int) and 7 <= size <= 99 and size % 2 == 1,
                "must be an odd integer >= 7 and <= 99, e.g. 21",
            )
            known = isinstance(kinds, tuple) and len(kinds) > 0 and all(kind in KERNEL_TYPES for kind in kinds)
            rule = f"must be a list of kernel types from {list(KERNEL_TYPES)}"
            yield from self._unless(f"kernel_list{end}", known, rule)
            if known:
                meaning = f"one weight for each entry of kernel_list{end}"
                yield from self._unless_weights(f"kernel_prob{end}", len(kinds), meaning)
            yield from self._unless_weights(f"resize_prob{end}", 3, "the weights of up, down and keep")
            # BasicSR asserts low < high for sigma, and draws beta on either side of 1
            yield from self._unless_range(f"blur_sigma{end}", 1e-3, None, strict=True)
            yield from self._unless_range(f"betag_range{end}", 1e-3, None, around_1=True)
            yield from self._unless_range(f"betap_range{end}", 1e-3, None, around_1=True)
            yield from self._unless_range(f"resize_range{end}", 0.05, 16, around_1=True)
            yield from self._unless_range(f"noise_range{end}", 0, 255)
            yield from self._unless_range(f"poisson_scale_range{end}", 0, None)
            # DiffJPEG divides by its quantisation tables, which are 0 at quality 100
            yield from self._unless_range(f"jpeg_range{end}", 1, 99)

    def _unless(self, key: str, holds: bool, rule: str) -> Iterator[str]:
        if not holds:
            value = getattr(self, key)
            yield f"{key}={format_value(list(value) if isinstance(value, tuple) else value)} {rule}"

    def _unless_weights(self, key: str, count: int, meaning: str) -> Iterator[str]:
        value = getattr(self, key)
        holds = (
            isinstance(value, tuple)
            and len(value) == count
            and all(_is_number(v) and v >= 0 for v in value)
            and sum(value) > 0
        )
        yield from self._unless(key, holds, f"must be {count} numbers >= 0 that are not all 0: {meaning}")

    def _unless_range(
        self, key: str, low: float, high: float | None, *, strict: bool = False, around_1: bool = False
    ) -> Iterator[str]:
        value = getattr(self, key)
        holds = (
            isinstance(value, tuple)
            and len(value) == 2
            and all(_is_number(v) for v in value)
            and low <= value[0] <= value[1]
            and (high is None or value[1] <= high)
            and not (strict and value[0] == value[1])
            and not (around_1 and not value[0] <= 1 <= value[1])
        )
        rule = f"{low:g} <= low {'<' if strict else '<='} high" + ("" if high is None else f" <= {high:g}")
        rule += ", and must contain 1: low <= 1 <= high" if around_1 else ""
        yield from self._unless(key, holds, f"must be [low, high] with {rule}")


@dataclass(frozen=True, kw_only=True)
class IOBackend:
    """Where images are read from: files, or an LMDB that `python -m iter_data.prepare lmdb` made."""

    type: Literal["disk", "lmdb"]


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """The section of a `SecondOrderDegradationDataset`; names and meaning of BasicSR where it has the option.

    dataroot_gt: an image folder, searched through its subfolders in sorted order; or a list of folders; with
        io_backend type lmdb, one `.lmdb` folder.
    meta_info: optional text file naming the images to use, relative to dataroot_gt, one a line as BasicSR writes
        them (`name.png` or `name.png (h,w,c) 1`); a list of files for a list of folders.
    io_backend: {type: disk} (default) or {type: lmdb}.
    gt_size: side of the GT crops, a multiple of the scale, >= 32 (> 25 is what sharpening needs); in training only.
    crop_pad_size: crop this much, degrade, then crop to gt_size, as Real-ESRGAN does with 400; default gt_size.
    use_hflip, use_rot: random flips and quarter turns.
    gt_resize_range: [low, high] in (0, 1]: the GT is shrunk by a random factor before it is cropped, which gives
        a small training set more scales; off by default.
    pad_small_gt: reflect-pad images smaller than the crop, as BasicSR does; by default they are an error.
    degradation: see `DegradationOptions`; Real-ESRGAN's values by default.
    degrade_in_worker: give ready pairs for any BasicSR model instead of GT and kernels.
    seed: val and test only.
    """

    scale: Count
    phase: Literal["train", "val", "test"] = "train"
    type: str = "SecondOrderDegradationDataset"
    name: str | None = None
    dataroot_gt: str | list[str]
    meta_info: str | list[str] | None = None
    io_backend: IOBackend | None = None
    gt_size: Crop | None = None
    crop_pad_size: Crop | None = None
    use_hflip: bool = True
    use_rot: bool = False
    gt_resize_range: ShrinkRange | None = None
    pad_small_gt: bool = False
    degradation: Mapping[str, Any] | None = None
    degrade_in_worker: bool = False
    seed: Natural = 0
    # read by BasicSR's loaders
    use_shuffle: bool | None = None
    num_worker_per_gpu: Natural | None = None
    batch_size_per_gpu: Count | None = None
    dataset_enlarge_ratio: Positive = 1
    prefetch_mode: Literal["cpu", "cuda"] | None = None
    num_prefetch_queue: Count = 1
    pin_memory: bool = False
    persistent_workers: bool = False


def degradation_problems(section: Any, where: str) -> Iterator[str]:
    """Say what is wrong with a section of `DegradationOptions`, a line each."""
    if not isinstance(section, Mapping):
        yield f"{where}={format_value(section)} must be a section of options, e.g. {where}: {{jpeg_range: [30, 95]}}"
        return
    known = DegradationOptions.__dataclass_fields__
    for key in section:
        if key not in known:
            hint = nearest(key, known) or f"; known: {', '.join(known)}"
            yield f"{where}.{format_key(key)} is not an option{hint}"
    try:
        DegradationOptions(**_with_tuples({key: value for key, value in section.items() if key in known}))
    except ValueError as error:
        yield from (f"{where}.{line}" for line in str(error).splitlines())


def dataset_problems(section: Mapping[str, Any], where: str) -> Iterator[str]:
    """Say what is wrong with a section of `DatasetOptions`, a line each."""
    misplaced = [key for key in section if key in DegradationOptions.__dataclass_fields__]
    for key in misplaced:
        yield f"{where}.{key} belongs into the sub-section {where}.degradation: move it there"
    problems = list(
        section_problems({key: section[key] for key in section if key not in misplaced}, DatasetOptions, where)
    )
    yield from problems
    if section.get("degradation") is not None:
        yield from degradation_problems(section["degradation"], f"{where}.degradation")
    if not problems:
        yield from _unfit_crops(DatasetOptions(**{key: section[key] for key in section if key not in misplaced}), where)
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


def _with_tuples(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in section.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
