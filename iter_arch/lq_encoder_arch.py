"""LQ encoder E_l: distortion removal as token prediction (ITER, arXiv:2312.05616, Sec. 3.2, Eq. 2)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from basicsr_compat import register
from basicsr_compat.schema import Count, Layers
from iter_arch.layers import ResBlock, init_convs
from iter_arch.swin import SwinOptions, SwinStage
from iter_arch.tokenizer import FACTOR

LEAKY_RELU = partial(F.leaky_relu, negative_slope=0.2)


@register("arch")
class LQEncoder(nn.Module):
    """Predicts the tokens of the HQ image: lq (b, 3, H/s, W/s) -> logits (b, N, h, w).

    Args:
        scale: s, pixels of the HQ image per pixel of the LQ image; a power of two that divides ``factor``.
        factor: pixels of a token's side in the HQ image, a power of two: the tokenizer's.
        num_codes: N.
        stem_channels: channels of the first conv; each of the log2(factor / s) stride-2 stages doubles them.
        res_blocks: residual blocks per stage.
        swin: the Swin blocks; what a mapping leaves out is `SwinOptions()`'s.
    """

    def __init__(
        self,
        *,
        scale: Count = 4,
        factor: Count = FACTOR,
        num_codes: Count = 512,
        stem_channels: Count = 64,
        res_blocks: Layers = 2,
        swin: SwinOptions | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        scales = [2**i for i in range(factor.bit_length())]
        if scale not in scales or factor != scales[-1]:
            raise ValueError(
                f"scale={scale} must be one of {', '.join(map(str, scales))}: a token stands for {factor}x{factor} "
                "pixels of the HQ image, a power of two"
            )
        swin = SwinOptions().updated(swin)
        self.scale = scale
        channels = stem_channels
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
        for _ in range(scales.index(factor // scale)):
            layers.append(nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1))
            channels *= 2
            layers += [ResBlock(channels, channels, activation=LEAKY_RELU) for _ in range(res_blocks)]
        self.stem = nn.Sequential(*layers)
        self.project = nn.Conv2d(channels, swin.dim, 1)
        for part in (self.stem, self.project):
            init_convs(part)
        self.swin = SwinStage(swin.dim, swin)
        self.head = nn.Conv2d(swin.dim, num_codes, 1)

    def forward(self, lq: Tensor) -> Tensor:
        """lq (b, 3, H/s, W/s) RGB in [0, 1], h and w multiples of the window -> logits (b, N, h, w)."""
        return self.head(self.swin(self.project(self.stem(lq))))
