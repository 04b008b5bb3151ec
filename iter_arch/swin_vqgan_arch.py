"""Swin-VQGAN: E_H, codebook and D_H, the token space of everything else (ITER, arXiv:2312.05616, Sec. 3.1, Eq. 1)."""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from basicsr_compat.schema import Count, Layers, OptionsOf, Weight
from iter_arch.layers import Downsample, ResBlock, Upsample, group_norm, init_convs
from iter_arch.quantizer import VectorQuantizer
from iter_arch.swin import SwinStage


class Encoded(NamedTuple):
    """latent: (b, d, h, w) before quantisation; tokens: (b, h, w) int64; loss: () float32, the VQ loss of Eq. 1."""

    latent: Tensor
    tokens: Tensor
    loss: Tensor


class Reconstructed(NamedTuple):
    """image: (b, 3, H, W), in eval mode clamped to [0, 1]; tokens: (b, h, w) int64; loss: () the VQ loss;
    latent: (b, d, h, w) before quantisation."""

    image: Tensor
    tokens: Tensor
    loss: Tensor
    latent: Tensor


@ARCH_REGISTRY.register()
class SwinVQGAN(nn.Module):
    """VQGAN with Swin blocks in the place of non-local attention; factor 8 between pixels and tokens for four levels.

    Args:
        base_channels: channels of the first level.
        multipliers: channels of each level in units of ``base_channels``; every level but the first halves the size.
        res_blocks: ResBlocks a level.
        codebook_size, code_dim: N and d.
        beta: weight of the commitment term.
        swin_dim, swin_depth, swin: dim, depth and further arguments of `SwinStage`.

    Images are RGB in [0, 1] with sides that are multiples of ``factor * window``.
    """

    def __init__(
        self,
        *,
        base_channels: Count = 128,
        multipliers: Sequence[Count] = (1, 2, 2, 4),
        res_blocks: Layers = 2,
        codebook_size: Count = 512,
        code_dim: Count = 128,
        beta: Weight = 0.25,
        swin_dim: Count = 256,
        swin_depth: Layers = 6,
        **swin: Annotated[Any, OptionsOf(SwinStage, without=("channels", "dim", "depth"))],
    ) -> None:
        super().__init__()
        self.factor = 2 ** (len(multipliers) - 1)
        widths = [base_channels * m for m in multipliers]

        def middle() -> list[nn.Module]:
            width = widths[-1]
            stage = SwinStage(width, dim=swin_dim, depth=swin_depth, **swin)
            return [ResBlock(width, width), stage, ResBlock(width, width)]

        encoder: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1)]
        channels = widths[0]
        for level, width in enumerate(widths):
            encoder += [ResBlock(channels if i == 0 else width, width) for i in range(res_blocks)]
            channels = width
            if level < len(widths) - 1:
                encoder.append(Downsample(width))
        encoder += [*middle(), group_norm(channels), nn.Conv2d(channels, code_dim, 3, padding=1)]

        decoder: list[nn.Module] = [nn.Conv2d(code_dim, channels, 3, padding=1), *middle()]
        for level, width in enumerate(reversed(widths)):
            if level > 0:
                decoder.append(Upsample(channels))
            decoder += [ResBlock(channels if i == 0 else width, width) for i in range(res_blocks)]
            channels = width
        decoder += [group_norm(channels), nn.Conv2d(channels, 3, 3, padding=1)]

        self.window = next(m.window for m in encoder if isinstance(m, SwinStage))
        self.encoder = nn.Sequential(*encoder)
        self.quantizer = VectorQuantizer(codebook_size, code_dim, beta=beta)
        self.decoder = nn.Sequential(*decoder)
        init_convs(self)

    def encode(self, image: Tensor) -> Encoded:
        """image (b, 3, H, W) RGB in [0, 1] -> Encoded; h, w = H/8, W/8."""
        latent = self.latent(image)
        quantized = self.quantizer(latent)
        return Encoded(latent, quantized.tokens, quantized.loss)

    def latent(self, image: Tensor) -> Tensor:
        """image (b, 3, H, W) RGB in [0, 1] -> E_H(image) (b, d, h, w), before quantisation."""
        multiple = self.factor * self.window
        if image.shape[-2] % multiple or image.shape[-1] % multiple:
            raise ValueError(
                f"image of {image.shape[-2]}x{image.shape[-1]} pixels must have sides that are multiples of "
                f"{multiple}; pad it first (iter_arch.tiling.pad_to_multiple)"
            )
        return self.encoder(image.clamp(0, 1) * 2 - 1)

    def decode(self, tokens: Tensor, expected: Tensor | None = None, fidelity: float = 0.0) -> Tensor:
        """tokens (b, h, w) int64 -> image (b, 3, 8h, 8w) RGB in [0, 1].

        fidelity: share of ``expected`` (b, d, h, w), codes of `VectorQuantizer.expected_codes`, in what is decoded.
        """
        codes = self.quantizer.codes(tokens)
        if fidelity:
            codes = codes.float().lerp(expected, fidelity).to(codes.dtype)
        return self.decode_codes(codes).clamp(0, 1)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """codes (b, d, h, w) -> image (b, 3, 8h, 8w) float32, nominally in [0, 1], not clamped."""
        # bfloat16 has as many steps in [0.5, 1) as in [-1, 1] of the decoder's output: the difference would be lost.
        return (self.decoder(codes).float() + 1) / 2

    def forward(self, image: Tensor, *, quantize: bool = True) -> Reconstructed:
        """image (b, 3, H, W) RGB in [0, 1] -> Reconstructed.

        quantize: False decodes the latent itself (the warm-up of a training); loss is then 0.
        """
        latent = self.latent(image)
        quantized = self.quantizer(latent)
        # Zero times the loss: the codebook stays in the graph, as DistributedDataParallel demands.
        loss = quantized.loss if quantize else 0 * quantized.loss
        output = self.decode_codes(quantized.codes if quantize else latent)
        return Reconstructed(output if self.training else output.clamp(0, 1), quantized.tokens, loss, latent)
