"""Degradations make the LQ image of a GT image. `degradation: {type: ...}` chooses one; the data set makes the pair.

A new one is a class that registers itself in `DEGRADATION_REGISTRY`. Files named `*_degradation.py` beside this one are
imported automatically; a class may also live anywhere else (docs/extending.md).
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import torch
from basicsr.utils.registry import Registry
from torch import Tensor

from basicsr_compat.schema import OneOf, problems_in

DEGRADATION_REGISTRY = Registry("degradation")
DEFAULT_TYPE = "SecondOrderDegradation"
MIN_GT_SIZE = 32  # sharpening needs more than 25

DegradationSection = Annotated[
    Mapping[str, Any],
    OneOf(
        "registered degradation",
        lambda name: DEGRADATION_REGISTRY.get(name) if name in DEGRADATION_REGISTRY else None,
        DEGRADATION_REGISTRY.keys,
    ),
]


class Pair(NamedTuple):
    """lq (b, 3, H/s, W/s) and gt (b, 3, H, W): float32 RGB in [0, 1]; the values of lq are multiples of 1/255."""

    lq: Tensor
    gt: Tensor


class Degradation:
    """Base class of degradations: frozen dataclasses whose fields are the options of the section `degradation`."""

    def draw(self) -> dict[str, Tensor]:
        """What a loader's worker draws for one sample, from Python's and NumPy's global generators.

        The data set seeds these for each sample. `degrade` gets the batch, each tensor with a batch dimension in front.
        """
        return {}

    def degrade(self, gt: Tensor, drawn: Mapping[str, Tensor], *, scale: int, generator: torch.Generator) -> Tensor:
        """Make the LQ images.

        Args:
            gt: (b, 3, H, W) float32 RGB in [0, 1], H and W multiples of `scale`, on any device.
            drawn: what `draw` returned for the b samples, on the device of gt.
            scale: GT size over LQ size.
            generator: a CPU generator, for all other random draws.

        Returns:
            (b, 3, H/scale, W/scale) float32 in [0, 1], multiples of 1/255 as in an image file.
        """
        raise NotImplementedError


def degradation_problems(section: Any, where: str) -> Iterator[str]:
    """Say what is wrong with a section `degradation`, one line per problem. where: its name in the options."""
    problems = list(problems_in(_typed(section), DegradationSection, where))
    yield from problems
    if not problems:
        try:
            _build(section)
        except ValueError as error:
            yield from (f"{where}.{line}" for line in str(error).splitlines())


def read_degradation(section: Mapping[str, Any] | None, where: str = "degradation") -> Degradation:
    """Build the degradation of a section of the options; None or {} gives Real-ESRGAN's.

    Raises ValueError with one line per problem. where: the section's name in it.
    """
    section = {} if section is None else section
    problems = list(degradation_problems(section, where))
    if problems:
        raise ValueError("\n".join(problems))
    return _build(section)


def _typed(section: Any) -> Any:
    return {"type": DEFAULT_TYPE, **section} if isinstance(section, Mapping) else section


def _build(section: Mapping[str, Any]) -> Degradation:
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in _typed(section).items()}
    return DEGRADATION_REGISTRY.get(options.pop("type"))(**options)


def make_pair(
    gt: Tensor,
    drawn: Mapping[str, Tensor],
    *,
    scale: int,
    degradation: Degradation,
    generator: torch.Generator,
    crop_size: int | None = None,
) -> Pair:
    """Degrade GT images, and crop the pairs at a random place, which the whole batch shares, as in BasicSR.

    Args:
        gt, drawn, scale, generator: see `Degradation.degrade`, which also says the errors.
        crop_size: side of the cropped GT in pixels, a multiple of `scale`; None crops nothing.
    """
    lq = degradation.degrade(gt, drawn, scale=scale, generator=generator)
    if crop_size is None:
        return Pair(lq, gt)
    side = crop_size // scale
    top, left = (torch.randint(length - side + 1, (), generator=generator).item() for length in lq.shape[-2:])
    rows, columns = slice(top * scale, (top + side) * scale), slice(left * scale, (left + side) * scale)
    return Pair(lq[..., top : top + side, left : left + side].contiguous(), gt[..., rows, columns].contiguous())
