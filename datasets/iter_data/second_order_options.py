"""Options of the second-order degradation (Real-ESRGAN, arXiv:2107.10833), under BasicSR's own names.

BasicSR spreads them over the dataset section and the top level of the option file; here they all stand in the
`degradation:` sub-section of the dataset, and a key left out has the value of Real-ESRGAN's published option files.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from basicsr_compat.schema import Probability, Rule, format_value, section_problems

KernelType = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
KERNEL_TYPES = get_args(KernelType)


def _within(low: float, high: float, *, strict: bool = False, around_1: bool = False) -> Rule:
    """A rule for [low, high]: both lie within these bounds; strict: they differ; around_1: 1 lies between them."""

    def holds(value: tuple[float, float]) -> bool:
        return (
            low <= value[0] <= value[1] <= high
            and not (strict and value[0] == value[1])
            and not (around_1 and not value[0] <= 1 <= value[1])
        )

    text = f"with {low:g} <= low {'<' if strict else '<='} high <= {high:g}"
    return Rule(text + (" that contains 1: low <= 1 <= high" if around_1 else ""), holds)


def _holds_as_weights(value: tuple[float, ...]) -> bool:
    return all(weight >= 0 for weight in value) and sum(value) > 0


KernelSize = Annotated[
    int, Rule("that is odd, >= 7 and <= 99, e.g. 21", lambda value: 7 <= value <= 99 and value % 2 == 1)
]
KernelTypes = Annotated[tuple[KernelType, ...], Rule("with one entry at least", lambda value: len(value) > 0)]
Weights = Annotated[tuple[float, ...], Rule("of weights >= 0 that are not all 0", _holds_as_weights)]
ResizeWeights = Annotated[
    tuple[float, float, float], Rule("the weights of up, down and keep, >= 0 and not all 0", _holds_as_weights)
]
# BasicSR asserts low < high for sigma, and draws beta and resize factors on either side of 1.
Sigma = Annotated[tuple[float, float], _within(1e-3, 100, strict=True)]
Beta = Annotated[tuple[float, float], _within(1e-3, 100, around_1=True)]
ResizeRange = Annotated[tuple[float, float], _within(0.05, 16, around_1=True)]
NoiseRange = Annotated[tuple[float, float], _within(0, 255)]
PoissonRange = Annotated[tuple[float, float], _within(0, 100)]
# DiffJPEG divides by its quantization tables, which are 0 at quality 100
JpegRange = Annotated[tuple[float, float], _within(1, 99)]

_REAL_ESRGAN_KERNEL_PROB = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)


@dataclass(frozen=True, kw_only=True)
class SecondOrderOptions:
    """All parameters of the two degradation rounds; names ending in 2 belong to the second round.

    blur_kernel_size: odd, >= 7; kernels of a random odd size from 7 up to it are drawn and zero-padded to it.
    kernel_list, kernel_prob: kernel types (see KERNEL_TYPES) and their relative weights.
    sinc_prob, final_sinc_prob: probability of a sinc kernel instead; of the final sinc filter.
    blur_sigma, betag_range, betap_range: (low, high) of sigma and of the shape of generalized / plateau kernels.
    second_blur_prob: probability that the second round blurs at all.
    resize_prob: weights of (up, down, keep); resize_range: (smallest down, largest up) factor.
    gaussian_noise_prob: Gaussian noise with this probability, else Poisson; noise_range: sigma on the 0..255 scale;
    poisson_scale_range: factor on the Poisson noise; gray_noise_prob: one noise for the three channels.
    jpeg_range: (low, high) JPEG quality.

    Raises:
        ValueError: some values are bad; one line for each, with the field, the value, and the rule.
    """

    blur_kernel_size: KernelSize = 21
    kernel_list: KernelTypes = KERNEL_TYPES
    kernel_prob: Weights = _REAL_ESRGAN_KERNEL_PROB
    sinc_prob: Probability = 0.1
    blur_sigma: Sigma = (0.2, 3.0)
    betag_range: Beta = (0.5, 4.0)
    betap_range: Beta = (1.0, 2.0)

    blur_kernel_size2: KernelSize = 21
    kernel_list2: KernelTypes = KERNEL_TYPES
    kernel_prob2: Weights = _REAL_ESRGAN_KERNEL_PROB
    sinc_prob2: Probability = 0.1
    blur_sigma2: Sigma = (0.2, 1.5)
    betag_range2: Beta = (0.5, 4.0)
    betap_range2: Beta = (1.0, 2.0)

    final_sinc_prob: Probability = 0.8

    resize_prob: ResizeWeights = (0.2, 0.7, 0.1)
    resize_range: ResizeRange = (0.15, 1.5)
    gaussian_noise_prob: Probability = 0.5
    noise_range: NoiseRange = (1.0, 30.0)
    poisson_scale_range: PoissonRange = (0.05, 3.0)
    gray_noise_prob: Probability = 0.4
    jpeg_range: JpegRange = (30.0, 95.0)

    second_blur_prob: Probability = 0.8
    resize_prob2: ResizeWeights = (0.3, 0.4, 0.3)
    resize_range2: ResizeRange = (0.3, 1.2)
    gaussian_noise_prob2: Probability = 0.5
    noise_range2: NoiseRange = (1.0, 25.0)
    poisson_scale_range2: PoissonRange = (0.05, 2.5)
    gray_noise_prob2: Probability = 0.4
    jpeg_range2: JpegRange = (30.0, 95.0)

    def __post_init__(self) -> None:
        problems = list(section_problems(vars(self), type(self), ""))
        for end in ("", "2") if not problems else ():
            weights, types = getattr(self, f"kernel_prob{end}"), getattr(self, f"kernel_list{end}")
            if len(weights) != len(types):
                problems.append(
                    f"kernel_prob{end}={format_value(list(weights))} must be {len(types)} numbers, one weight for each "
                    f"entry of kernel_list{end}"
                )
        if problems:
            raise ValueError("\n".join(problems))
