"""LQ encoder E_l: distortion removal as token prediction (ITER, arXiv:2312.05616, Sec. 3.2, Eq. 2)."""

import math
from typing import Annotated, Any, Literal

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from basicsr_compat.schema import Count, Layers, OptionsOf
from iter_arch.layers import ResBlock, init_convs
from iter_arch.swin import SwinStage


@ARCH_REGISTRY.register()
class LQEncoder(nn.Module):
    """lq (b, 3, H/s, W/s) RGB in [0, 1] -> logits (b, N, h, w) over the codes, h, w = H/8, W/8.

    Args:
        scale: s, one of 1, 2, 4, 8.
        num_codes: N.
        stem_channels: channels of the first conv; each of the log2(8/s) stride-2 stages doubles them.
        res_blocks: residual blocks a stage.
        dim: channels of the Swin blocks.
        depth, swin: depth and further arguments of `SwinStage`.
    """

    def __init__(
        self,
        *,
        scale: Literal[1, 2, 4, 8] = 4,
        num_codes: Count = 512,
        stem_channels: Count = 64,
        res_blocks: Layers = 2,
        dim: Count = 256,
        depth: Layers = 12,
        **swin: Annotated[Any, OptionsOf(SwinStage, without=("channels",))],
    ) -> None:
        super().__init__()
        if scale not in (1, 2, 4, 8):
            raise ValueError(f"scale={scale} must be one of 1, 2, 4, 8: a token stands for 8x8 pixels of the HQ image")
        self.scale = scale
        channels = stem_channels
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
        for _ in range(int(math.log2(8 // scale))):
            layers.append(nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1))
            channels *= 2
            layers += [ResBlock(channels, channels, activation=nn.LeakyReLU(0.2)) for _ in range(res_blocks)]
        self.stem = nn.Sequential(*layers)
        self.project = nn.Conv2d(channels, dim, 1)
        for part in (self.stem, self.project):
            init_convs(part)
        self.swin = SwinStage(dim, dim=dim, depth=depth, **swin)
        self.head = nn.Conv2d(dim, num_codes, 1)

    def forward(self, lq: Tensor) -> Tensor:
        return self.head(self.swin(self.project(self.stem(lq))))
