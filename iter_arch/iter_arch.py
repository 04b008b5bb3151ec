"""ITER: the four networks together, from an LQ image to its restoration (arXiv:2312.05616, Fig. 2 and Algorithm 2)."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from basicsr_compat import register
from basicsr_compat.schema import OptionsOf
from iter_arch.lq_encoder_arch import LQEncoder
from iter_arch.progress import ENCODE, OnProgress, Work
from iter_arch.regions import Canvas, alpha_per_token, check_tokens, redraw_per_token
from iter_arch.restoration import Grid, Prepared, TiledNetworks
from iter_arch.sampling import OnStep, SamplingConfig, make_generators
from iter_arch.tiling import pad_to_multiple
from iter_arch.token_arch import TokenEvaluator, TokenRefiner
from iter_arch.tokenizer import TokenizerSection, build_tokenizer, has_codes

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
        lq_encoder, refiner, evaluator: arguments of the other networks, except those that follow from the scale and the
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
        stages = (self.lq_encoder.swin, self.refiner.swin, self.evaluator.swin)
        windows = {self.vqgan.window, *(stage.window for stage in stages)}
        if len(windows) > 1:
            raise ValueError(f"window must be the same in all four networks, not {sorted(windows)}")
        self.window = windows.pop()

    @property
    def multiple(self) -> int:
        """The sides of an LQ image are padded to a multiple of this many pixels: one window of tokens."""
        return self.window * self.vqgan.factor // self.scale

    def forward(self, lq: Tensor) -> Tensor:
        """lq (b, 3, H/s, W/s) RGB in [0, 1], any size >= 1x1 -> (b, 3, H, W) in [0, 1]; ``sampling``, seed 0.

        Raises:
            RuntimeError: in training mode with gradients. Sampling has no gradient, so nothing would be trained.
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
        lq: Tensor | Prepared,
        config: SamplingConfig | None = None,
        seed: int | Sequence[int] = 0,
        on_step: OnStep | None = None,
        alpha: float | Tensor | None = None,
        tokens: Tensor | None = None,
        redraw: Tensor | None = None,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        batch: int | None = None,
        on_progress: OnProgress | None = None,
        on_rows: OnRows | None = None,
    ) -> Restored:
        """Algorithm 2, in the precision of the weights; probabilities and draws are float32 in any case.

        Args:
            lq: (b, 3, H/s, W/s) float, RGB in [0, 1], any size >= 1x1; or the result of `prepare`.
            config: default ``self.sampling``.
            seed: one int (every image the same stream) or one per image. An image's result does not depend on the
                others in the batch.
            on_step: called with (t, tokens, mask), see `iter_arch.sampling.sample`.
            alpha: replaces ``config.alpha``. A number or a map, see `iter_arch.regions`. Where it is 0, tokens of S_l
                stay to the end (unless ``config`` redraws kept tokens or is not adaptive).
            tokens: (b, h, w) int64 of an earlier result for ``lq``, which stay where ``redraw`` does not mark them.
            redraw: mask of tokens to draw anew, see `iter_arch.regions`; None: ``tokens`` are only decoded.
            tile: LQ pixels of a tile's side, at least one window of tokens (`multiple`), in whole windows. Networks
                process one tile at a time, which needs less memory and changes the result. None: no tiles.
            overlap: LQ pixels that neighboring tiles share, default a quarter of the tile, in whole tokens.
            batch: how many tiles (without tiling, images) go through a network at a time, at least 1. It does not
                change the result. Default: the images of the batch.
            on_progress: called with (done, total) after every batch of tiles. Raise from it to end the restoration.
            on_rows: called with (top, rows (b, 3, n, W)) from top to bottom, valid during the call; returns no image.

        Returns:
            Restored, with the image in the dtype of ``lq``.

        Raises:
            ValueError: names the argument, its value and the rule.

        Examples:
            >>> net = iter_arch.load_pretrained("iter_tiny_x4")
            >>> restored = net.restore(torch.rand(1, 3, 48, 64), seed=1)
            >>> restored.image.shape, restored.tokens.shape
            (torch.Size([1, 3, 192, 256]), torch.Size([1, 24, 32]))
        """
        config = config or self.sampling
        _check_batch(batch)
        self._check_fidelity(config.fidelity)
        work = Work(on_progress)
        prepared = self._prepared(lq, tile, overlap, batch, work, config)
        networks, canvas, device = prepared.for_call(self, batch, work), prepared.canvas, prepared.S_l.device
        alpha = alpha_per_token(config.alpha if alpha is None else alpha, canvas, device)
        where = self._where(prepared, alpha, tokens, redraw, config)
        generators = make_generators(seed, canvas.images, device)
        tokens, start_step = networks.sample(prepared.S_l, prepared.good >= alpha, config, generators, on_step, **where)
        rows = networks.decode(tokens, prepared.expected, config.fidelity)
        return Restored(_gather(rows, prepared, self.scale, on_rows), tokens, start_step, prepared.good)

    @torch.no_grad()
    def prepare(
        self,
        lq: Tensor,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        batch: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Prepared:
        """Compute once what restorations of ``lq`` with different options share: E_l, its expected codes, first
        evaluation.

        Args: as for `restore`, which accepts the result in place of lq.

        Examples:
            >>> prepared = net.prepare(lq)
            >>> results = [net.restore(prepared, alpha=alpha) for alpha in (0.1, 0.3, 0.5)]
        """
        _check_batch(batch)
        work = Work(on_progress)
        padded, networks = self._networks(lq, tile, overlap, batch, work)
        work.total = len(lq) * len(networks.tiles) * ENCODE
        return self._prepare(lq, padded, networks, expected=has_codes(self.vqgan))

    def _where(
        self,
        prepared: Prepared,
        alpha: float | Tensor,
        tokens: Tensor | None,
        redraw: Tensor | None,
        config: SamplingConfig,
    ) -> dict[str, Tensor | None]:
        """The arguments of `TiledNetworks.sample` that say where tokens are drawn."""
        good, canvas = prepared.good, prepared.canvas
        if tokens is None and redraw is not None:
            raise ValueError("redraw needs the tokens of an earlier result: restore(..., tokens=, redraw=)")
        if tokens is None:
            never = torch.zeros_like(good, dtype=torch.bool)
            return {"fixed": never if config.redraw_kept else never | (torch.as_tensor(alpha, device=good.device) == 0)}
        check_tokens(tokens, canvas, self.vqgan.num_codes)
        if redraw is None:
            redraw = torch.zeros(tokens.shape, dtype=torch.bool)
        return {"tokens": tokens.to(good.device), "redraw": redraw_per_token(redraw, canvas, good.device)}

    def _prepared(
        self,
        lq: Tensor | Prepared,
        tile: int | None,
        overlap: int | None,
        batch: int | None,
        work: Work,
        config: SamplingConfig,
    ) -> Prepared:
        """``lq`` prepared, if it is not already; ``work`` has counted it."""
        if isinstance(lq, Prepared):
            if tile is not None or overlap is not None:
                raise ValueError("tile and overlap belong to prepare(lq, tile=, overlap=): lq is prepared already")
            work.done = lq.canvas.images * len(lq.networks.tiles) * ENCODE
            return lq
        padded, networks = self._networks(lq, tile, overlap, batch, work)
        work.expect(len(lq) * len(networks.tiles), config.steps)
        return self._prepare(lq, padded, networks, expected=config.fidelity > 0)

    def _networks(
        self, lq: Tensor, tile: int | None, overlap: int | None, batch: int | None, work: Work
    ) -> tuple[Tensor, TiledNetworks]:
        """lq with padding, in the dtype of the weights, and the networks on its tiles."""
        if lq.ndim != 4 or lq.shape[1] != 3 or 0 in lq.shape:
            raise ValueError(f"lq has shape {tuple(lq.shape)}; it must be (b, 3, height, width), nothing empty")
        padded = pad_to_multiple(lq, self.multiple).to(self.lq_encoder.head.weight.dtype)
        return padded, TiledNetworks.of(self, self._grid(padded, tile, overlap), batch or len(lq), work)

    def _prepare(self, lq: Tensor, padded: Tensor, networks: TiledNetworks, *, expected: bool) -> Prepared:
        S_l, codes = networks.encode(padded, expected)
        (height, width), (h, w) = lq.shape[2:], S_l.shape[1:]
        canvas = Canvas(len(lq), height, width, h, w, self.vqgan.factor // self.scale)
        return Prepared(S_l, networks.probability_of_good(S_l), codes, canvas, lq.dtype, networks)

    def _check_fidelity(self, fidelity: float) -> None:
        if fidelity and not has_codes(self.vqgan):
            raise ValueError(
                f"fidelity={fidelity} must be 0 with a {type(self.vqgan).__name__}, which has no quantizer and "
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


def _check_batch(batch: int | None) -> None:
    if batch is not None and batch < 1:
        raise ValueError(f"batch={batch} must be at least 1")


def _gather(rows: Iterator[tuple[int, Tensor]], prepared: Prepared, scale: int, on_rows: OnRows | None) -> Tensor:
    """Collect rows into an image without padding, in the dtype of lq, or pass them to ``on_rows``."""
    canvas = prepared.canvas
    height, width = scale * canvas.height, scale * canvas.width
    image = prepared.good.new_empty(canvas.images, 3, height if on_rows is None else 0, width, dtype=prepared.dtype)
    for top, strip in rows:
        strip = strip[:, :, : max(0, height - top), :width].to(prepared.dtype)
        if on_rows is not None:
            on_rows(top, strip)
        elif strip.shape == image.shape:
            return strip
        else:
            image[:, :, top : top + strip.shape[2]] = strip
    return image


def _plain(value: Any) -> Any:
    """Options as plain containers, as a checkpoint's metadata holds them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
