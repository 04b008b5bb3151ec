"""Degradations, which make the LQ of a GT. `degradation: {type: ...}` chooses one; the data set makes the pair.

A new one is a class in a file `*_degradation.py` beside this one, which is imported, and so registered, by itself; or
anywhere else, where it registers itself in `DEGRADATION_REGISTRY` (docs/extending.md).
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
    """lq: (b, 3, H/s, W/s), gt: (b, 3, H, W), both float32 RGB in [0, 1]; lq is a multiple of 1/255."""

    lq: Tensor
    gt: Tensor


class Degradation:
    """A frozen dataclass, whose fields are the options of its section, with these two methods."""

    def draw(self) -> dict[str, Tensor]:
        """What a sample needs drawn in the loader's worker, from Python's and NumPy's global generators, which the
        data set seeds for it. The batch of it, each tensor with a batch dimension, is given to `degrade`."""
        return {}

    def degrade(self, gt: Tensor, drawn: Mapping[str, Tensor], *, scale: int, generator: torch.Generator) -> Tensor:
        """Make the LQ.

        Args:
            gt: (b, 3, H, W) float32 RGB in [0, 1], H and W multiples of `scale`, on any device.
            drawn: what `draw` returned for the b samples, on the device of gt.
            generator: a CPU generator, for all other random draws.

        Returns:
            (b, 3, H/scale, W/scale) float32 in [0, 1], multiples of 1/255 as in an image file.
        """
        raise NotImplementedError


def degradation_problems(section: Any, where: str) -> Iterator[str]:
    """Say what is wrong with a section `degradation`, one line per problem, its class's rules last."""
    problems = list(problems_in(_typed(section), DegradationSection, where))
    yield from problems
    if not problems:
        try:
            _build(section)
        except ValueError as error:
            yield from (f"{where}.{line}" for line in str(error).splitlines())


def read_degradation(section: Mapping[str, Any] | None, where: str = "degradation") -> Degradation:
    """The degradation of a section; None or {} gives Real-ESRGAN's. Raises ValueError, a line for every problem."""
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
    """Degrade the GT, and cut the pair to `crop_size` at a random place.

    crop_size: side of the GT afterwards, a multiple of `scale`; None leaves the pair whole. The place is the same for
    the whole batch, as in BasicSR. Other arguments, and errors, as in `Degradation.degrade`.
    """
    lq = degradation.degrade(gt, drawn, scale=scale, generator=generator)
    if crop_size is None:
        return Pair(lq, gt)
    side = crop_size // scale
    top, left = (torch.randint(length - side + 1, (), generator=generator).item() for length in lq.shape[-2:])
    rows, columns = slice(top * scale, (top + side) * scale), slice(left * scale, (left + side) * scale)
    return Pair(lq[..., top : top + side, left : left + side].contiguous(), gt[..., rows, columns].contiguous())
