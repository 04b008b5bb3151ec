"""Color correction: gives a result the colors of its input (ITER, arXiv:2312.05616, Sec. 3.4, Eq. 10, and more).

A codebook of 512 entries for 8x8 pixels cannot hold color well: flat areas drift in hue. `adain` is the paper's Eq. 10,
one gain and one offset per channel for the whole image. `wavelet` (named as in StableSR, arXiv:2305.07015) also
corrects local errors: the result keeps its detail and takes the low frequencies of the upsampled input.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from itertools import chain
from typing import Annotated, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from basicsr_compat.schema import Rule, problems_in

ColorMethod = Literal["none", "adain", "wavelet"]
Levels = Annotated[int, Rule("from 1 to 8", lambda levels: 1 <= levels <= 8)]

# Best VGG distance on Kodak24 (of 2 to 7); low frequencies differ from the input's by half a level of 255 on average.
DEFAULT_LEVELS = 4
# Rows corrected at a time; more would only be slower.
STRIP_ROWS = 128
# A channel that varies by less is flat, and its variation is noise.
FLAT = 1 / 255


def match_color(image: Tensor, lq: Tensor, method: ColorMethod = "wavelet", levels: int = DEFAULT_LEVELS) -> Tensor:
    """Give ``image`` the colors of ``lq``. If ``lq`` is gray (equal channels), the result is gray.

    Args:
        image: (b, 3, H, W) float, in [0, 1].
        lq: (b, 3, h, w) float, in [0, 1], of any size: the input that ``image`` was restored from.
        method: 'wavelet' replaces the low frequencies of ``image`` with those of ``lq``; 'adain' matches mean and
            standard deviation of every channel (Eq. 10); 'none' returns ``image`` unchanged.
        levels: for 'wavelet', from 1 to 8: blurs with dilations 1, 2, 4, ... 2^(levels - 1) pixels. More levels take
            only lower frequencies from ``lq``, and less of its noise.

    Returns:
        (b, 3, H, W) in [0, 1], of the dtype of ``image``.

    Raises:
        ValueError: an unknown method, or levels out of range.
    """
    if method == "none":
        return image
    return match_color_(image.to(torch.float32, copy=True), lq, method, levels).to(image.dtype)


def match_color_(image: Tensor, lq: Tensor, method: ColorMethod = "wavelet", levels: int = DEFAULT_LEVELS) -> Tensor:
    """`match_color` in place, for a float32 ``image``: saves a copy of a large one."""
    matcher = make_matcher(lq, image.shape[2:], method, levels)
    top = 0
    strips = (matcher.push(image[:, :, first:last]) for first, last in _strips(image.shape[2]))
    for rows in chain(chain.from_iterable(strips), matcher.finish()):
        image[:, :, top : top + rows.shape[2]] = rows
        top += rows.shape[2]
    return image


class RowMatcher(Protocol):
    """Color correction of images that come in rows, from top to bottom: (b, 3, n, W) float32."""

    def push(self, rows: Tensor) -> Iterator[Tensor]:
        """Take the next rows; yield the finished ones."""

    def finish(self) -> Iterator[Tensor]:
        """Yield the remaining rows, after the last push."""


def make_matcher(
    lq: Tensor, size: Sequence[int], method: ColorMethod = "wavelet", levels: int = DEFAULT_LEVELS
) -> RowMatcher:
    """A matcher that gives images of this (height, width) the colors of lq (b, 3, h, w), row by row; see `match_color`.

    It holds one strip in memory, except for 'adain', which needs all rows before it can yield the first.
    """
    if method not in METHODS:
        raise ValueError(f"color_correction={method!r} must be one of {', '.join(METHODS)}")
    check_levels(levels)
    return METHODS[method](lq.float(), (size[0], size[1]), levels)


def check_levels(levels: int, name: str = "color_levels") -> None:
    """Raise a ValueError unless they are `Levels`."""
    for problem in problems_in(levels, Levels, name):
        raise ValueError(problem)


def low_frequencies(image: Tensor, levels: int = DEFAULT_LEVELS) -> Tensor:
    """The part that `wavelet` replaces: (b, c, H, W) -> (b, c, H, W) blurred by ``levels`` binomial filters."""
    radius = blur_radius(levels)
    rows = torch.arange(-radius, image.shape[2] + radius, device=image.device).clamp(0, image.shape[2] - 1)
    return _blur(image[:, :, rows], levels)


def blur_radius(levels: int) -> int:
    """How many pixels on each side affect the low frequencies of a pixel."""
    return 2**levels - 1


class _Keep:
    """none."""

    def __init__(self, lq: Tensor, size: tuple[int, int], levels: int) -> None:
        pass

    def push(self, rows: Tensor) -> Iterator[Tensor]:
        yield rows

    def finish(self) -> Iterator[Tensor]:
        yield from ()


class _Adain:
    """Eq. 10, with a floor: noise in a flat channel is not stretched to the deviation of the input's noise."""

    def __init__(self, lq: Tensor, size: tuple[int, int], levels: int) -> None:
        self.lq, self.are_gray = lq, _are_gray(lq)
        self.strips: list[Tensor] = []

    def push(self, rows: Tensor) -> Iterator[Tensor]:
        self.strips.append(rows)
        yield from ()

    def finish(self) -> Iterator[Tensor]:
        count = sum(rows.shape[2] * rows.shape[3] for rows in self.strips)
        mean = _total(rows.sum((2, 3), keepdim=True) for rows in self.strips) / count
        variance = _total((rows - mean).square().sum((2, 3), keepdim=True) for rows in self.strips) / count
        target_std, target_mean = torch.std_mean(self.lq, dim=(2, 3), correction=0, keepdim=True)
        gain = target_std / variance.sqrt().clamp_min(FLAT)
        for rows in self.strips:
            yield _gray_where(rows.sub_(mean).mul_(gain).add_(target_mean).clamp_(0, 1), self.are_gray)


class _Wavelet:
    """image + blur(upsampled lq - image), in strips. A blur is linear, so one serves both images."""

    def __init__(self, lq: Tensor, size: tuple[int, int], levels: int) -> None:
        self.are_gray, self.height, self.levels = _are_gray(lq), size[0], levels
        self.radius = blur_radius(levels)
        self.rows_of = _upsampler(lq, size)
        self.seen = 0
        # Rows of the image that are still to be yielded, and the differences around them.
        self.image = self.difference = lq.new_empty(len(lq), 3, 0, size[1])

    def push(self, rows: Tensor) -> Iterator[Tensor]:
        for first in range(0, rows.shape[2], STRIP_ROWS):
            strip = rows[:, :, first : first + STRIP_ROWS]
            places = torch.arange(self.seen, self.seen + strip.shape[2], device=strip.device)
            difference = self.rows_of(places) - strip
            if self.seen == 0:  # above the image, the first row repeats
                difference = torch.cat([difference[:, :, :1].expand(-1, -1, self.radius, -1), difference], 2)
            self.image = torch.cat([self.image, strip], 2)
            self.difference = torch.cat([self.difference, difference], 2)
            self.seen += strip.shape[2]
            if self.seen == self.height:
                below = self.difference[:, :, -1:].expand(-1, -1, self.radius, -1)
                self.difference = torch.cat([self.difference, below], 2)
            yield from self._finished()

    def finish(self) -> Iterator[Tensor]:
        yield from ()

    def _finished(self) -> Iterator[Tensor]:
        count = self.difference.shape[2] - 2 * self.radius
        if count > 0:
            blurred = _blur(self.difference[:, :, : count + 2 * self.radius], self.levels)
            rows = blurred.add_(self.image[:, :, :count]).clamp_(0, 1)
            self.image = self.image[:, :, count:].clone()
            self.difference = self.difference[:, :, count:].clone()
            yield _gray_where(rows, self.are_gray)


METHODS: dict[str, Callable[[Tensor, tuple[int, int], int], RowMatcher]] = {
    "none": _Keep,
    "adain": _Adain,
    "wavelet": _Wavelet,
}


def _total(parts: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, parts)


def _strips(height: int) -> Iterator[tuple[int, int]]:
    for first in range(0, height, STRIP_ROWS):
        yield first, min(first + STRIP_ROWS, height)


def _blur(x: Tensor, levels: int) -> Tensor:
    """x (b, c, H + 2 radius, W) -> (b, c, H, W): a trous binomial blurs; to the sides the outermost pixels repeat."""
    radius = blur_radius(levels)
    x = F.pad(x, (radius, radius, 0, 0), mode="replicate")
    for level in range(levels):
        step = 2**level
        for dim in (2, 3):
            size = x.shape[dim] - 2 * step
            left, middle, right = (x.narrow(dim, start, size) for start in (0, step, 2 * step))
            x = (left + right).add_(middle, alpha=2).mul_(0.25)
    return x


def _upsampler(lq: Tensor, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """PyTorch's bicubic interpolation of lq to ``size``, row by row: rows (n,) int64 -> (b, c, n, width) in [0, 1]."""
    (height, width), h = size, lq.shape[2]
    offsets = torch.arange(-1, 3, device=lq.device)

    def rows_of(rows: Tensor) -> Tensor:
        place = (rows + 0.5) * (h / height) - 0.5
        start = place.floor()
        weights = _cubic((place - start)[:, None] - offsets)
        taps = (start.long()[:, None] + offsets).clamp(0, h - 1)
        # Widen only the rows that this strip needs.
        top, bottom = int(taps.min()), int(taps.max()) + 1
        wide = lq[:, :, top:bottom]
        if width != lq.shape[3]:
            wide = F.interpolate(wide, (bottom - top, width), mode="bicubic")
        return _total(wide[:, :, taps[:, k] - top].mul_(weights[:, k, None]) for k in range(4)).clamp_(0, 1)

    return rows_of


def upsampled_rows(image: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """PyTorch's bicubic interpolation of image (b, c, h, w) to ``size``, in [0, 1], strip by strip."""
    rows_of = _upsampler(image, size)
    for first, last in _strips(size[0]):
        yield rows_of(torch.arange(first, last, device=image.device))


def _cubic(x: Tensor, a: float = -0.75) -> Tensor:
    """Keys' cubic convolution kernel with the parameter of PyTorch and OpenCV."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return torch.where(x <= 1, near, far)


def _are_gray(lq: Tensor) -> list[bool]:
    """Of lq (b, 3, h, w), which images have equal channels."""
    return [torch.equal(one[0], one[1]) and torch.equal(one[0], one[2]) for one in lq]


def _gray_where(rows: Tensor, are_gray: list[bool]) -> Tensor:
    """Equal channels for the rows of the images that are to be gray, in place."""
    for one, is_gray in zip(rows, are_gray, strict=True):
        if is_gray:
            one.copy_(one.mean(0, keepdim=True).expand_as(one))
    return rows
