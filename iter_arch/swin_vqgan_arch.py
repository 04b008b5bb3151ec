"""Swin-VQGAN: E_H, codebook and D_H, the token space of everything else (ITER, arXiv:2312.05616, Sec. 3.1, Eq. 1)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from torch import Tensor, nn

from basicsr_compat import register
from basicsr_compat.schema import Count, Layers, Rule
from iter_arch.layers import Downsample, ResBlock, Upsample, group_norm, init_convs
from iter_arch.precision import widened
from iter_arch.quantizer import QuantizerSection, build_quantizer
from iter_arch.swin import SwinOptions, SwinStage
from iter_arch.tokenizer import Encoded

Multipliers = Annotated[Sequence[Count], Rule("of 1 to 8 levels", lambda levels: 1 <= len(levels) <= 8)]


class Reconstructed(NamedTuple):
    """image: (b, 3, H, W), in eval mode clamped to [0, 1]; tokens: (b, h, w) int64; loss: () the VQ loss;
    latent: (b, d, h, w) before quantization."""

    image: Tensor
    tokens: Tensor
    loss: Tensor
    latent: Tensor


@register("arch")
class SwinVQGAN(nn.Module):
    """VQGAN with Swin blocks in place of non-local attention; with four levels, a token stands for 8x8 pixels.

    Args:
        base_channels: channels of the first level.
        multipliers: channels of each level in units of ``base_channels``; every level but the first halves the size.
        res_blocks: ResBlocks per level.
        quantizer: ``type``, a name in `iter_arch.quantizer.QUANTIZERS`, and its arguments; `VectorQuantizer` with 512
            codes of dimension 128 where left out.
        swin: the Swin blocks; what a mapping leaves out is ``SwinOptions(depth=6)``'s.

    Images are RGB in [0, 1] with sides that are multiples of ``factor * window``.
    """

    def __init__(
        self,
        *,
        base_channels: Count = 128,
        multipliers: Multipliers = (1, 2, 2, 4),
        res_blocks: Layers = 2,
        quantizer: QuantizerSection = None,
        swin: SwinOptions | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        swin = SwinOptions(depth=6).updated(swin)
        widths = [base_channels * m for m in multipliers]
        self.window = swin.window
        self.factor = 2 ** (len(widths) - 1)
        between = build_quantizer(quantizer)
        self.encoder = _encoder(widths, res_blocks, between.dim, swin)
        self.quantizer = between
        self.decoder = _decoder(widths, res_blocks, between.dim, swin)
        init_convs(self)

    @property
    def num_codes(self) -> int:
        """N."""
        return self.quantizer.num_codes

    def encode(self, image: Tensor) -> Encoded:
        """image (b, 3, H, W) RGB in [0, 1] -> Encoded; h, w = H / factor, W / factor."""
        latent = self.latent(image)
        quantized = self.quantizer(latent)
        return Encoded(latent, quantized.tokens, quantized.loss)

    def latent(self, image: Tensor) -> Tensor:
        """image (b, 3, H, W) RGB in [0, 1] -> E_H(image) (b, d, h, w), before quantization."""
        multiple = self.factor * self.window
        if image.shape[-2] % multiple or image.shape[-1] % multiple:
            raise ValueError(
                f"image of {image.shape[-2]}x{image.shape[-1]} pixels must have sides that are multiples of "
                f"{multiple}; pad it first (iter_arch.tiling.pad_to_multiple)"
            )
        return self.encoder(image.clamp(0, 1) * 2 - 1)

    def decode(self, tokens: Tensor) -> Tensor:
        """tokens (b, h, w) int64 -> image (b, 3, factor * h, factor * w) RGB in [0, 1]."""
        return self.decode_codes(self.quantizer.codes(tokens)).clamp(0, 1)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """See the function `decode_codes`."""
        return decode_codes(self.decoder, codes)

    def forward(self, image: Tensor, *, quantize: bool = True) -> Reconstructed:
        """image (b, 3, H, W) RGB in [0, 1] -> Reconstructed.

        quantize: False decodes the latent itself (the warm-up of a training run); loss is then 0.
        """
        latent = self.latent(image)
        quantized = self.quantizer(latent)
        # Zero times the loss: the codebook stays in the graph, as DistributedDataParallel demands.
        loss = quantized.loss if quantize else 0 * quantized.loss
        output = self.decode_codes(quantized.codes if quantize else latent)
        return Reconstructed(output if self.training else output.clamp(0, 1), quantized.tokens, loss, latent)


def decode_codes(decoder: nn.Sequential, codes: Tensor) -> Tensor:
    """D_H on codes (b, d, h, w) -> image (b, 3, H, W), at least float32, nominally in [0, 1], not clamped."""
    # In bfloat16, shifting the decoder's output from [-1, 1] to [0, 1] would lose precision.
    return (widened(decoder(codes.to(next(decoder.parameters()).dtype))) + 1) / 2


def _encoder(widths: Sequence[int], res_blocks: int, dim: int, swin: SwinOptions) -> nn.Sequential:
    """E_H: (b, 3, H, W) -> (b, dim, h, w)."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1)]
    channels = widths[0]
    for level, width in enumerate(widths):
        if level > 0:
            layers.append(Downsample(channels))
        layers += _res_blocks(channels, width, res_blocks)
        channels = width
    layers += [*_middle(channels, swin), group_norm(channels), nn.Conv2d(channels, dim, 3, padding=1)]
    return nn.Sequential(*layers)


def _decoder(widths: Sequence[int], res_blocks: int, dim: int, swin: SwinOptions) -> nn.Sequential:
    """D_H: (b, dim, h, w) -> (b, 3, H, W)."""
    channels = widths[-1]
    layers: list[nn.Module] = [nn.Conv2d(dim, channels, 3, padding=1), *_middle(channels, swin)]
    for level, width in enumerate(reversed(widths)):
        if level > 0:
            layers.append(Upsample(channels))
        layers += _res_blocks(channels, width, res_blocks)
        channels = width
    layers += [group_norm(channels), nn.Conv2d(channels, 3, 3, padding=1)]
    return nn.Sequential(*layers)


def _res_blocks(channels: int, width: int, count: int) -> list[nn.Module]:
    return [ResBlock(channels if i == 0 else width, width) for i in range(count)]


def _middle(width: int, swin: SwinOptions) -> list[nn.Module]:
    return [ResBlock(width, width), SwinStage(width, swin), ResBlock(width, width)]
