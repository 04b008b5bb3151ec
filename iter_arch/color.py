"""Color correction: a result takes over colors of its input (ITER, arXiv:2312.05616, Sec. 3.4, Eq. 10, and beyond it).

A codebook of 512 entries for 8x8 pixels cannot hold color well: flat areas drift in hue. `adain` is the paper's Eq. 10,
one gain and one offset per channel for the whole image. `wavelet` (the name is StableSR's, arXiv:2305.07015) mends what
is local: the result keeps its detail and takes the low frequencies of the upsampled input.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from basicsr_compat.schema import Rule, problems_in

ColorMethod = Literal["none", "adain", "wavelet"]
Levels = Annotated[int, Rule("from 1 to 8", lambda levels: 1 <= levels <= 8)]

# Best VGG distance on Kodak24 (of 2 to 7), and the low frequencies are the input's to half a level of 255 on average.
DEFAULT_LEVELS = 4
# Rows that are corrected at a time; more are only slower.
STRIP_ROWS = 128
# A channel that varies by less is flat, and what varies in it is noise.
FLAT = 1 / 255


def match_color(image: Tensor, lq: Tensor, method: ColorMethod = "wavelet", levels: int = DEFAULT_LEVELS) -> Tensor:
    """Give ``image`` the colors of ``lq``. What was restored from a gray image (equal channels) becomes gray.

    Args:
        image: (b, 3, H, W) float, in [0, 1].
        lq: (b, 3, h, w) float, in [0, 1], of any size: the input that ``image`` was restored from.
        method: 'wavelet' replaces the low frequencies of ``image`` by those of ``lq``; 'adain' matches mean and
            standard deviation of every channel (Eq. 10); 'none' returns ``image`` as it is.
        levels: of 'wavelet', from 1 to 8: blurs with dilations 1, 2, 4, ... 2^(levels - 1) pixels. More levels take
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
    """`match_color` in the place of ``image``, which is float32: no second copy of a large one."""
    if method not in METHODS:
        raise ValueError(f"color_correction={method!r} must be one of {', '.join(METHODS)}")
    check_levels(levels)
    return METHODS[method](image, lq.float(), levels)


def check_levels(levels: int, name: str = "color_levels") -> None:
    """Raise a ValueError unless they are `Levels`."""
    for problem in problems_in(levels, Levels, name):
        raise ValueError(problem)


def low_frequencies(image: Tensor, levels: int = DEFAULT_LEVELS) -> Tensor:
    """What `wavelet` exchanges: (b, c, H, W) -> (b, c, H, W) blurred by ``levels`` binomial filters."""
    radius = blur_radius(levels)
    rows = torch.arange(-radius, image.shape[2] + radius, device=image.device).clamp(0, image.shape[2] - 1)
    return _blur(image[:, :, rows], levels)


def blur_radius(levels: int) -> int:
    """Pixels on either side of a pixel that its low frequencies depend on."""
    return 2**levels - 1


def _keep(image: Tensor, lq: Tensor, levels: int) -> Tensor:
    return image


def _adain(image: Tensor, lq: Tensor, levels: int) -> Tensor:
    """Eq. 10, with a floor: noise in a flat channel is not stretched to the deviation of the input's noise."""
    std, mean = torch.std_mean(image, dim=(2, 3), correction=0, keepdim=True)
    target_std, target_mean = torch.std_mean(lq, dim=(2, 3), correction=0, keepdim=True)
    image.sub_(mean).mul_(target_std / std.clamp_min(FLAT)).add_(target_mean).clamp_(0, 1)
    return _gray_where(image, lq)


def _wavelet(image: Tensor, lq: Tensor, levels: int) -> Tensor:
    """image + blur(upsampled lq - image), in strips. A blur is linear, so one serves both images."""
    height, radius = image.shape[2], blur_radius(levels)
    rows_of = _upsampler(lq, image.shape[2:])

    def difference(first: int, last: int) -> Tensor:
        """Of rows [first, last), those outside of the image being its outermost."""
        rows = torch.arange(first, last, device=image.device).clamp(0, height - 1)
        return rows_of(rows) - image[:, :, rows]

    # Around the rows of a strip, taken before they change.
    around = difference(-radius, radius)
    for first, last in _strips(height):
        around = torch.cat([around, difference(first + radius, last + radius)], 2)
        image[:, :, first:last].add_(_blur(around, levels)).clamp_(0, 1)
        around = around[:, :, last - first :]
    return _gray_where(image, lq)


METHODS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {"none": _keep, "adain": _adain, "wavelet": _wavelet}


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
    wide = F.interpolate(lq, (h, width), mode="bicubic") if width != lq.shape[3] else lq
    offsets = torch.arange(-1, 3, device=lq.device)

    def rows_of(rows: Tensor) -> Tensor:
        place = (rows + 0.5) * (h / height) - 0.5
        start = place.floor()
        weights = _cubic((place - start)[:, None] - offsets)
        taps = (start.long()[:, None] + offsets).clamp(0, h - 1)
        return sum(wide[:, :, taps[:, k]].mul_(weights[:, k, None]) for k in range(4)).clamp_(0, 1)

    return rows_of


def _cubic(x: Tensor, a: float = -0.75) -> Tensor:
    """Keys' cubic convolution kernel with the parameter of PyTorch and OpenCV."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return torch.where(x <= 1, near, far)


def _gray_where(image: Tensor, lq: Tensor) -> Tensor:
    """Equal channels for the images whose input has equal channels, in place."""
    for one, source in zip(image, lq, strict=True):
        if (source == source[:1]).all():
            for first, last in _strips(image.shape[2]):
                strip = one[:, first:last]
                strip.copy_(strip.mean(0, keepdim=True).expand_as(strip))
    return image
