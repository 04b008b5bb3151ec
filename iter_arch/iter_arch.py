"""ITER: the four networks together, from an LQ image to its restoration (arXiv:2312.05616, Fig. 2 and Algorithm 2)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from basicsr_compat.schema import OptionsOf
from iter_arch.lq_encoder_arch import LQEncoder
from iter_arch.sampling import OnStep, Pieces, SamplingConfig, make_generators, sample
from iter_arch.swin_vqgan_arch import SwinVQGAN
from iter_arch.tiling import Where, blend, blend_strips, make_tiles, pad_to_multiple, run_tiles
from iter_arch.token_arch import TokenEvaluator, TokenRefiner


class Restored(NamedTuple):
    """image: (b, 3, sH, sW) RGB in [0, 1]; tokens: (b, h, w) int64 of the padded image; start_step: (b,) int64, T_s."""

    image: Tensor
    tokens: Tensor
    start_step: Tensor


Options = Mapping[str, Any] | None


@ARCH_REGISTRY.register()
class ITER(nn.Module):
    """SwinVQGAN, LQEncoder, TokenRefiner and TokenEvaluator; the defaults are the paper's.

    Args:
        scale: s, one of 1, 2, 4, 8.
        vqgan, lq_encoder, refiner, evaluator: arguments of the four networks, without scale and number of codes, which
            are the same for all.
        sampling: fields of `SamplingConfig` that the weights were tuned for, which the commands use unless told
            otherwise (`iter_arch.released.tuned_sampling`); `restore` itself has the general defaults.

    ``config`` holds these arguments again, so that a checkpoint can carry them.
    """

    def __init__(
        self,
        *,
        scale: Literal[1, 2, 4, 8] = 4,
        vqgan: Annotated[Options, OptionsOf(SwinVQGAN)] = None,
        lq_encoder: Annotated[Options, OptionsOf(LQEncoder, without=("scale", "num_codes"))] = None,
        refiner: Annotated[Options, OptionsOf(TokenRefiner, without=("num_codes",))] = None,
        evaluator: Annotated[Options, OptionsOf(TokenEvaluator, without=("num_codes",))] = None,
        sampling: Annotated[Options, OptionsOf(SamplingConfig)] = None,
    ) -> None:
        super().__init__()
        parts = {"vqgan": vqgan, "lq_encoder": lq_encoder, "refiner": refiner, "evaluator": evaluator}
        self.config = {"scale": scale} | {name: dict(options or {}) for name, options in parts.items()}
        if sampling:
            SamplingConfig(**sampling)
            self.config["sampling"] = dict(sampling)
        self.scale = scale
        self.vqgan = SwinVQGAN(**self.config["vqgan"])
        num_codes = self.vqgan.quantizer.num_codes
        self.lq_encoder = LQEncoder(scale=scale, num_codes=num_codes, **self.config["lq_encoder"])
        self.refiner = TokenRefiner(num_codes=num_codes, **self.config["refiner"])
        self.evaluator = TokenEvaluator(num_codes=num_codes, **self.config["evaluator"])
        windows = {self.vqgan.window, *(m.swin.window for m in (self.lq_encoder, self.refiner, self.evaluator))}
        if len(windows) > 1:
            raise ValueError(f"window must be the same in all four networks, not {sorted(windows)}")
        if self.vqgan.factor != 8:
            raise ValueError(f"vqgan.multipliers must have 4 entries: a token is 8x8 pixels, not {self.vqgan.factor}")
        self.window = windows.pop()

    @property
    def multiple(self) -> int:
        """Pixels of the LQ image that sides are padded to a multiple of: one window of tokens."""
        return self.window * self.vqgan.factor // self.scale

    def forward(self, lq: Tensor) -> Tensor:
        """lq (b, 3, H/s, W/s) RGB in [0, 1], any size >= 1x1 -> (b, 3, H, W) in [0, 1]; default sampling, seed 0."""
        return self.restore(lq).image

    @torch.no_grad()
    def restore(
        self,
        lq: Tensor,
        *,
        config: SamplingConfig | None = None,
        seed: int | Sequence[int] = 0,
        on_step: OnStep | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        batch: int | None = None,
    ) -> Restored:
        """Algorithm 2, in the precision of the weights: `ITER.to(torch.bfloat16)` is faster where the hardware has it
        (`iter_arch.precision`). Probabilities, draws and the image are float32 in any case.

        Args:
            lq: (b, 3, H/s, W/s) float, RGB in [0, 1], any size >= 1x1.
            config: default `SamplingConfig()`.
            seed: one int (every image the same stream) or one an image. An image's result does not depend on the others
                in the batch.
            on_step: called with (t, tokens, mask), see `iter_arch.sampling.sample`.
            tile: LQ pixels of a tile's side, at least one window (64 / s pixels); smaller peak memory for large images.
                Rounded down to whole windows. None: no tiles, and peak memory grows with the image.
            overlap: LQ pixels that neighbouring tiles share, default a quarter of the tile, in whole tokens.
            batch: tiles (images, where there are no tiles) that go through a network at a time, at least 1; what comes
                out does not depend on it. Default: the images of the batch, one tile of each.
        """
        if lq.ndim != 4 or lq.shape[1] != 3 or 0 in lq.shape:
            raise ValueError(f"lq has shape {tuple(lq.shape)}; it must be (b, 3, height, width), nothing empty")
        if batch is not None and batch < 1:
            raise ValueError(f"batch={batch} must be at least 1")
        config = config or SamplingConfig()
        height, width = lq.shape[-2] * self.scale, lq.shape[-1] * self.scale
        padded = pad_to_multiple(lq, self.multiple).to(self.lq_encoder.head.weight.dtype)
        unit = self.vqgan.factor // self.scale
        h, w = padded.shape[-2] // unit, padded.shape[-1] // unit
        side, shared = self._tile_tokens(tile, overlap, unit, h, w)
        tiles = make_tiles(h, w, side, shared)

        b = lq.shape[0]

        def run(network: Callable[..., Tensor], *maps: Tensor, factor: int = 1) -> Iterator[tuple[Where, Tensor]]:
            return blend_strips(run_tiles(network, tiles, *maps, batch=batch or b, factor=factor), tiles, len(maps[0]))

        # The same for all tiles; the rest of a context is a look-up, cheaper to repeat than to hold for every tile.
        biases = {net: net.swin.biases(min(side, h), min(side, w)) for net in (self.evaluator, self.refiner)}

        def judge(S_t: Tensor, S_l: Tensor) -> Tensor:
            return self.evaluator.logits(S_t, self.evaluator.context(S_l, biases[self.evaluator]))

        def predict(S_t: Tensor, m_t: Tensor, S_l: Tensor, m_l: Tensor) -> Tensor:
            return self.refiner.logits(S_t, m_t, self.refiner.context(S_l, m_l, biases[self.refiner]))

        S_l = torch.empty(b, h, w, dtype=torch.int64, device=lq.device)
        # Of the fidelity: d numbers per token, so that the N logits of a large map are never held.
        code_dim = self.vqgan.quantizer.dim if config.fidelity else 0
        expected = torch.empty(b, code_dim, h, w, device=lq.device)
        for where, logits in run(self.lq_encoder, padded, factor=unit):
            S_l[where] = logits.argmax(1)
            if config.fidelity:
                expected.movedim(1, -1)[where] = self.vqgan.quantizer.expected_codes(logits).movedim(1, -1)
        good = torch.empty_like(S_l, dtype=torch.bool)
        for where, logits in run(judge, S_l, S_l):
            good[where] = logits.float().softmax(1)[:, 1] >= config.alpha

        def refine(tokens: Tensor, mask: Tensor, rows: Tensor) -> Pieces:
            return run(predict, tokens, mask, S_l[rows], good[rows])

        def evaluate(tokens: Tensor, rows: Tensor) -> Pieces:
            return run(judge, tokens, S_l[rows])

        generators = make_generators(seed, b, lq.device)
        tokens, start_step = sample(refine, evaluate, S_l, good, config=config, generators=generators, on_step=on_step)

        def decode(S_0: Tensor, expected: Tensor) -> Tensor:
            return self.vqgan.decode(S_0, expected, config.fidelity)

        pieces = run_tiles(decode, tiles, tokens, expected, batch=batch or b)
        image = blend(pieces, tiles, b, factor=self.vqgan.factor)
        return Restored(image[..., :height, :width].to(lq.dtype), tokens, start_step)

    def _tile_tokens(self, tile: int | None, overlap: int | None, unit: int, h: int, w: int) -> tuple[int, int]:
        """Side and overlap of tiles in tokens."""
        if tile is None:
            return max(h, w), 0
        if tile < self.multiple:
            raise ValueError(
                f"tile={tile} must be at least one window of tokens, {self.multiple} LQ pixels at x{self.scale}"
            )
        side = tile // self.multiple * self.window
        if overlap is None:
            return side, side // 4
        if not 0 <= overlap // unit < side:
            raise ValueError(f"overlap={overlap} must be in [0, tile={tile})")
        return side, overlap // unit
