"""Uncertainty: which parts of a restoration by ITER (arXiv:2312.05616) the input determines, and which are invented.

Where the draws of Algorithm 2 do not matter, results with different seeds agree.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from iter_arch.color import DEFAULT_LEVELS, ColorMethod, match_color_
from iter_arch.iter_arch import ITER
from iter_arch.precision import widened
from iter_arch.progress import OnProgress, Work
from iter_arch.regions import alpha_per_token
from iter_arch.restoration import Prepared
from iter_arch.sampling import SamplingConfig


class Uncertainty(NamedTuple):
    """mean: (b, 3, H, W), of the results; std: (b, 1, H, W), their standard deviation, root mean square over the
    channels; entropy: (b, 1, h, w) float32 of phi_r in nats, of every token of the padded image."""

    mean: Tensor
    std: Tensor
    entropy: Tensor


@torch.no_grad()
def uncertainty(
    net: ITER,
    lq: Tensor,
    samples: int = 8,
    seed: int = 0,
    *,
    config: SamplingConfig | None = None,
    alpha: float | Tensor | None = None,
    prepared: Prepared | None = None,
    color_correction: ColorMethod = "none",
    color_levels: int = DEFAULT_LEVELS,
    tile: int | None = None,
    overlap: int | None = None,
    batch: int | None = None,
    on_progress: OnProgress | None = None,
) -> Uncertainty:
    """Mean and deviation of ``samples`` restorations, and the entropy of phi_r before it draws. E_l runs once. Memory
    is that of one restoration of ``batch`` images, plus three images.

    Args:
        lq: (b, 3, H/s, W/s) float, RGB in [0, 1].
        samples: restorations of every image, at least 1, with the seeds seed, seed + 1, ...
        config, alpha: as for `ITER.restore`.
        prepared: ``net.prepare(lq)``, if computed before.
        color_correction, color_levels: applied to every restoration first, see `iter_arch.color.match_color`.
        tile, overlap, batch, on_progress: as for `ITER.restore`. With a ``batch`` of at least twice the images of
            ``lq``, several samples are drawn together, which is faster on a GPU.

    Returns:
        Uncertainty, mean and std in the dtype of ``lq``. The entropy is that of phi_r at an empty map, from 0 to log N:
        larger where more codes fit the input.

    Raises:
        ValueError: names the argument, its value and the rule.

    Examples:
        >>> mean, std, entropy = iter_arch.uncertainty(net, lq, samples=8)
    """
    if samples < 1:
        raise ValueError(f"samples={samples} must be at least 1")
    config = config or net.sampling
    prepared = prepared or net.prepare(lq, tile=tile, overlap=overlap, batch=batch)
    alpha = alpha_per_token(config.alpha if alpha is None else alpha, prepared.canvas, prepared.good.device)
    together = max(1, (batch or len(lq)) // len(lq))
    parts = [range(seed + i, seed + min(i + together, samples)) for i in range(0, samples, together)]
    moments = _Moments()
    for number, seeds in enumerate(parts):
        restored = net.restore(
            prepared.repeat(len(seeds)),
            config=config,
            alpha=alpha.repeat(len(seeds), 1, 1) if isinstance(alpha, Tensor) and len(alpha) > 1 else alpha,
            seed=[one for one in seeds for _ in range(len(lq))],
            batch=batch,
            on_progress=_part_of(on_progress, number, len(parts)),
        )
        for image in restored.image.split(len(lq)):
            moments.add(match_color_(widened(image), lq, color_correction, color_levels))
    networks = prepared.for_call(net, batch, Work(None))
    entropy = networks.entropy(prepared.S_l, prepared.good >= alpha, config.temperature)
    return Uncertainty(moments.mean.to(lq.dtype), moments.std().to(lq.dtype), entropy)


class _Moments:
    """Mean and deviation of images (b, 3, H, W) that come one after the other (Welford)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    def add(self, image: Tensor) -> None:
        self.count += 1
        difference = image - self.mean
        self.mean = self.mean + difference / self.count
        self.squares = self.squares + (difference * (image - self.mean)).mean(1, keepdim=True)

    def std(self) -> Tensor:
        """(b, 1, H, W)."""
        return (self.squares / self.count).clamp_min(0).sqrt()


def _part_of(on_progress: OnProgress | None, number: int, parts: int) -> OnProgress | None:
    """Progress of one part as progress of the whole."""
    if on_progress is None:
        return None
    return lambda done, total: on_progress(number * total + done, parts * total)
