"""ITER: the four networks together, from an LQ image to its restoration (arXiv:2312.05616, Fig. 2 and Algorithm 2)."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from basicsr_compat import register
from basicsr_compat.schema import OptionsOf
from iter_arch.lq_encoder_arch import LQEncoder
from iter_arch.progress import OnProgress, Work
from iter_arch.restoration import Grid, TiledNetworks
from iter_arch.sampling import OnStep, SamplingConfig, make_generators
from iter_arch.tiling import pad_to_multiple
from iter_arch.token_arch import TokenEvaluator, TokenRefiner
from iter_arch.tokenizer import TokenizerSection, build_tokenizer

Options = Mapping[str, Any] | None
OnRows = Callable[[int, Tensor], None]


class Restored(NamedTuple):
    """image: (b, 3, sH, sW) RGB in [0, 1]; tokens: (b, h, w) int64 of the padded image; start_step: (b,) int64, T_s;
    good: (b, h, w) float32, p_e(good) of the initial tokens S_l."""

    image: Tensor
    tokens: Tensor
    start_step: Tensor
    good: Tensor


@register("arch")
class ITER(nn.Module):
    """SwinVQGAN, LQEncoder, TokenRefiner and TokenEvaluator; the defaults are the paper's.

    Args:
        scale: s, one of 1, 2, 4, 8.
        vqgan: ``type``, a network that is an `iter_arch.tokenizer.Tokenizer`, and its arguments; `SwinVQGAN` where left
            out.
        lq_encoder, refiner, evaluator: arguments of the other networks, without what follows from the scale and the
            tokenizer.
        sampling: fields of `SamplingConfig` that the weights are tuned for.

    ``config`` holds these arguments again, so that a checkpoint can carry them. ``sampling`` is the `SamplingConfig`
    that `forward` and `restore` use unless told otherwise; assign another to change it.
    """

    def __init__(
        self,
        *,
        scale: Literal[1, 2, 4, 8] = 4,
        vqgan: TokenizerSection = None,
        lq_encoder: Annotated[Options, OptionsOf(LQEncoder, without=("scale", "factor", "num_codes"))] = None,
        refiner: Annotated[Options, OptionsOf(TokenRefiner, without=("num_codes",))] = None,
        evaluator: Annotated[Options, OptionsOf(TokenEvaluator, without=("num_codes",))] = None,
        sampling: Annotated[Options, OptionsOf(SamplingConfig)] = None,
    ) -> None:
        super().__init__()
        parts = {"vqgan": vqgan, "lq_encoder": lq_encoder, "refiner": refiner, "evaluator": evaluator}
        self.config = {"scale": scale} | {name: _plain(options or {}) for name, options in parts.items()}
        self.scale = scale
        self.sampling = SamplingConfig(**(sampling or {}))
        if sampling:
            self.config["sampling"] = dict(sampling)
        self.vqgan = build_tokenizer(vqgan)
        num_codes = self.vqgan.num_codes
        self.lq_encoder = LQEncoder(scale=scale, factor=self.vqgan.factor, num_codes=num_codes, **(lq_encoder or {}))
        self.refiner = TokenRefiner(num_codes=num_codes, **(refiner or {}))
        self.evaluator = TokenEvaluator(num_codes=num_codes, **(evaluator or {}))
        windows = {self.vqgan.window, *(m.swin.window for m in (self.lq_encoder, self.refiner, self.evaluator))}
        if len(windows) > 1:
            raise ValueError(f"window must be the same in all four networks, not {sorted(windows)}")
        self.window = windows.pop()

    @property
    def multiple(self) -> int:
        """Pixels of the LQ image that sides are padded to a multiple of: one window of tokens."""
        return self.window * self.vqgan.factor // self.scale

    def forward(self, lq: Tensor) -> Tensor:
        """lq (b, 3, H/s, W/s) RGB in [0, 1], any size >= 1x1 -> (b, 3, H, W) in [0, 1]; ``sampling``, seed 0.

        Raises:
            RuntimeError: in training mode with gradients: sampling has none, so that nothing would be trained.
        """
        if self.training and torch.is_grad_enabled():
            raise RuntimeError(
                "ITER cannot be trained through its forward, which samples tokens and has no gradient. Train SwinVQGAN "
                "with model_type SwinVQGANModel, then LQEncoder, TokenRefiner and TokenEvaluator with model_type "
                "ITERModel (both of iter_model). To restore images, call eval() first"
            )
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
        on_progress: OnProgress | None = None,
        on_rows: OnRows | None = None,
    ) -> Restored:
        """Algorithm 2, in the precision of the weights: `ITER.to(torch.bfloat16)` is faster where the hardware has it
        (`iter_arch.precision`). Probabilities and draws are float32 in any case, the image at least.

        Args:
            lq: (b, 3, H/s, W/s) float, RGB in [0, 1], any size >= 1x1.
            config: default ``self.sampling``.
            seed: one int (every image the same stream) or one per image. An image's result does not depend on the
                others in the batch.
            on_step: called with (t, tokens, mask), see `iter_arch.sampling.sample`.
            tile: LQ pixels of a tile's side, at least one window of tokens (`multiple`); smaller peak
                memory for large images. Rounded down to whole windows. None: no tiles, and peak memory grows with the
                image. Networks see one tile at a time, so that another tile is another result.
            overlap: LQ pixels that neighboring tiles share, default a quarter of the tile, in whole tokens.
            batch: tiles (images, where there are no tiles) that go through a network at a time, at least 1; what comes
                out does not depend on it. Default: the images of the batch, one tile of each.
            on_progress: called with (done, total) after every batch of tiles. What it raises ends the restoration.
            on_rows: called with (top, rows) from top to bottom, rows (b, 3, n, W) beginning at row ``top`` of the
                image, which is then not kept: for images whose float copy would be too large.

        Returns:
            Restored, the image in the dtype of ``lq``; without rows where ``on_rows`` took them.

        Raises:
            ValueError: an impossible shape, tile, overlap or batch, or fidelity with a tokenizer that has no codes.

        Example:
            >>> net = iter_arch.load_pretrained("iter_tiny_x4")
            >>> restored = net.restore(torch.rand(1, 3, 48, 64), seed=1)
            >>> restored.image.shape, restored.tokens.shape
            (torch.Size([1, 3, 192, 256]), torch.Size([1, 24, 32]))
        """
        config = config or self.sampling
        self._check(lq, config, batch)
        padded = pad_to_multiple(lq, self.multiple).to(self.lq_encoder.head.weight.dtype)
        networks = TiledNetworks.of(self, self._grid(padded, tile, overlap), batch or len(lq), Work(on_progress))
        networks.work.expect(len(lq) * len(networks.tiles), config.steps)
        S_l, expected = networks.encode(padded, config.fidelity)
        good = networks.probability_of_good(S_l)
        m_l = good >= config.alpha
        generators = make_generators(seed, len(lq), lq.device)
        tokens, start_step = networks.sample(S_l, m_l, config, generators, on_step)
        image = _gather(networks.decode(tokens, expected, config.fidelity), lq, self.scale, on_rows)
        return Restored(image, tokens, start_step, good)

    def _check(self, lq: Tensor, config: SamplingConfig, batch: int | None) -> None:
        if lq.ndim != 4 or lq.shape[1] != 3 or 0 in lq.shape:
            raise ValueError(f"lq has shape {tuple(lq.shape)}; it must be (b, 3, height, width), nothing empty")
        if batch is not None and batch < 1:
            raise ValueError(f"batch={batch} must be at least 1")
        if config.fidelity and not (hasattr(self.vqgan, "quantizer") and hasattr(self.vqgan, "decode_codes")):
            raise ValueError(
                f"fidelity={config.fidelity} must be 0 with a {type(self.vqgan).__name__}, which has no quantizer and "
                "decode_codes"
            )

    def _grid(self, lq: Tensor, tile: int | None, overlap: int | None) -> Grid:
        """The token map of a padded lq, and its tiles of ``tile`` LQ pixels that share ``overlap``."""
        unit = self.vqgan.factor // self.scale
        h, w = lq.shape[-2] // unit, lq.shape[-1] // unit
        if tile is None:
            return Grid(h, w, max(h, w), 0)
        if tile < self.multiple:
            raise ValueError(
                f"tile={tile} must be at least one window of tokens, {self.multiple} LQ pixels at x{self.scale}"
            )
        side = tile // self.multiple * self.window
        shared = side // 4 if overlap is None else overlap // unit
        if not 0 <= shared < side:
            raise ValueError(f"overlap={overlap} must be in [0, tile={tile})")
        return Grid(h, w, side, shared)


def _gather(rows: Iterator[tuple[int, Tensor]], lq: Tensor, scale: int, on_rows: OnRows | None) -> Tensor:
    """The image of an lq (b, 3, h, w) from its rows, without padding, in its dtype; or they are handed on."""
    height, width = scale * lq.shape[2], scale * lq.shape[3]
    image = lq.new_empty(len(lq), 3, height if on_rows is None else 0, width)
    for top, strip in rows:
        strip = strip[:, :, : max(0, height - top), :width].to(lq.dtype)
        if on_rows is not None:
            on_rows(top, strip)
        elif strip.shape == image.shape:
            return strip
        else:
            image[:, :, top : top + strip.shape[2]] = strip
    return image


def _plain(value: Any) -> Any:
    """Options as plain containers, as a checkpoint's metadata holds them."""
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
