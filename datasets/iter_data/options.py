"""Options of the second-order degradation (Real-ESRGAN, arXiv:2107.10833), under BasicSR's own names, checked once.

BasicSR spreads them over the dataset section and the top level of the option file; here they all stand in the
`degradation:` sub-section of the dataset, and a key left out has the value of Real-ESRGAN's published option files.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

KERNEL_TYPES = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")

_REAL_ESRGAN_KERNEL_PROB = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)


def check_keys(given: Iterable[str], known: Iterable[str], section: str) -> None:
    """Raise ValueError for the first key of `given` that is not in `known`, naming the nearest known key."""
    known = list(known)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
            raise ValueError(f"{section}.{key} is not an option of this section: {remedy}")


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
        if not isinstance(section, Mapping):
            raise ValueError(f"{name}={section!r} must be a section of options, e.g. {name}: {{jpeg_range: [30, 95]}}")
        check_keys(section, [field.name for field in fields(cls)], name)
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in section.items()}
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from None

    def __post_init__(self) -> None:
        self._check("gt_usm", isinstance(self.gt_usm, bool), "must be true or false")
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
            self._check(key, _is_number(value) and 0 <= value <= 1, "must be a probability between 0 and 1")
        for end in ("", "2"):
            size, kinds = getattr(self, f"blur_kernel_size{end}"), getattr(self, f"kernel_list{end}")
            self._check(
                f"blur_kernel_size{end}",
                isinstance(size, int) and size >= 7 and size % 2 == 1,
                "must be an odd integer >= 7, e.g. 21",
            )
            self._check(
                f"kernel_list{end}",
                isinstance(kinds, tuple) and len(kinds) > 0 and all(kind in KERNEL_TYPES for kind in kinds),
                f"must be a list of kernel types from {list(KERNEL_TYPES)}",
            )
            self._check_weights(f"kernel_prob{end}", len(kinds), f"one weight for each entry of kernel_list{end}")
            self._check_weights(f"resize_prob{end}", 3, "the weights of up, down and keep")
            # BasicSR asserts low < high for sigma, and draws beta on either side of 1
            self._check_range(f"blur_sigma{end}", 1e-3, None, strict=True)
            for key in (f"betag_range{end}", f"betap_range{end}"):
                self._check_range(key, 1e-3, None)
                low, high = getattr(self, key)
                self._check(key, low <= 1 <= high, "must contain 1: low <= 1 <= high")
            self._check_range(f"resize_range{end}", 0.05, 16)
            low, high = getattr(self, f"resize_range{end}")
            self._check(f"resize_range{end}", low <= 1 <= high, "must contain 1: it is [smallest down, largest up]")
            self._check_range(f"noise_range{end}", 0, 255)
            self._check_range(f"poisson_scale_range{end}", 0, None)
            # DiffJPEG divides by its quantisation tables, which are 0 at quality 100
            self._check_range(f"jpeg_range{end}", 1, 99)

    def _check(self, key: str, holds: bool, rule: str) -> None:
        if not holds:
            value = getattr(self, key)
            raise ValueError(f"{key}={list(value) if isinstance(value, tuple) else value!r} {rule}")

    def _check_weights(self, key: str, count: int, meaning: str) -> None:
        value = getattr(self, key)
        holds = (
            isinstance(value, tuple)
            and len(value) == count
            and all(_is_number(v) and v >= 0 for v in value)
            and sum(value) > 0
        )
        self._check(key, holds, f"must be {count} numbers >= 0 that are not all 0: {meaning}")

    def _check_range(self, key: str, low: float, high: float | None, strict: bool = False) -> None:
        value = getattr(self, key)
        holds = (
            isinstance(value, tuple)
            and len(value) == 2
            and all(_is_number(v) for v in value)
            and low <= value[0] <= value[1]
            and (high is None or value[1] <= high)
            and not (strict and value[0] == value[1])
        )
        rule = f"{low:g} <= low {'<' if strict else '<='} high" + ("" if high is None else f" <= {high:g}")
        self._check(key, holds, f"must be [low, high] with {rule}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
