"""The four networks on the tiles of one batch of images, as Algorithm 2 calls them (ITER, arXiv:2312.05616).

Unlike the networks' own forwards, this computes what does not change during sampling only once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from iter_arch.precision import widened
from iter_arch.progress import DECODE, ENCODE, EVALUATE, REFINE, Work
from iter_arch.quantizer import expected_codes
from iter_arch.regions import Canvas
from iter_arch.sampling import (
    LogitTiles,
    OnStep,
    Sampled,
    SamplingConfig,
    sample,
    start_of,
    start_of_redraw,
    token_probabilities,
)
from iter_arch.swin import Biases
from iter_arch.tiling import Tile, TileIndex, TilePiece, blend, blend_strips, make_tiles, run_tiles
from iter_arch.tokenizer import CodeTokenizer, has_codes

if TYPE_CHECKING:
    from iter_arch.iter_arch import ITER


class Grid(NamedTuple):
    """height, width of the token map, and side and overlap of its tiles, in tokens."""

    height: int
    width: int
    side: int
    overlap: int


class Initial(NamedTuple):
    """S_l: (b, h, w) int64; expected: (b, d, h, w) expected codes of E_l, in its dtype; d = 0 without codes."""

    S_l: Tensor
    expected: Tensor


@dataclass(frozen=True)
class TiledNetworks:
    """The networks of an ITER on whole maps, tile by tile.

    net: the ITER. tiles: of the token map. batch: tiles that go through a network together. work: counts them.
    evaluator_biases, refiner_biases: attention biases of a tile, the same for all tiles.
    """

    net: "ITER"
    tiles: list[Tile]
    batch: int
    work: Work
    evaluator_biases: Biases
    refiner_biases: Biases

    @classmethod
    def of(cls, net: "ITER", grid: Grid, batch: int, work: Work) -> "TiledNetworks":
        """For a token map and its tiles."""
        size = min(grid.side, grid.height), min(grid.side, grid.width)
        tiles = make_tiles(grid.height, grid.width, grid.side, grid.overlap)
        return cls(net, tiles, batch, work, net.evaluator.swin.biases(*size), net.refiner.swin.biases(*size))

    def encode(self, lq: Tensor, with_codes: bool) -> Initial:
        """E_l: lq (b, 3, H/s, W/s), whole windows -> Initial. The N logits of a large map are never held at once."""
        unit = self.net.vqgan.factor // self.net.scale
        b, h, w = len(lq), lq.shape[2] // unit, lq.shape[3] // unit
        S_l = torch.empty(b, h, w, dtype=torch.int64, device=lq.device)
        vqgan = self.net.vqgan
        quantizer = vqgan.quantizer if with_codes and has_codes(vqgan) else None
        dim = 0 if quantizer is None else quantizer.dim
        expected = torch.empty(b, dim, h, w, dtype=lq.dtype, device=lq.device)
        for where, logits in self._run(ENCODE, self.net.lq_encoder, lq, factor=unit):
            S_l[where] = logits.argmax(1)
            if quantizer is not None:
                expected.movedim(1, -1)[where] = expected_codes(quantizer, logits).movedim(1, -1).to(expected.dtype)
        return Initial(S_l, expected)

    def probability_of_good(self, S_l: Tensor) -> Tensor:
        """p_e(good | S_l, S_l), Eq. 6: S_l (b, h, w) int64 -> (b, h, w) float32."""
        good = torch.empty(S_l.shape, device=S_l.device)
        for where, logits in self.evaluate(S_l, S_l):
            good[where] = logits.float().softmax(1)[:, 1]
        return good

    def evaluate(self, S_t: Tensor, S_l: Tensor) -> LogitTiles:
        """phi_e: S_t, S_l (b, h, w) int64 -> tiles of the logits (b, 2, h, w)."""

        def logits(S_t: Tensor, S_l: Tensor) -> Tensor:
            return self.net.evaluator.logits(S_t, self.net.evaluator.context(S_l, self.evaluator_biases))

        return self._run(EVALUATE, logits, S_t, S_l)

    def refine(self, S_t: Tensor, m_t: Tensor, S_l: Tensor, m_l: Tensor) -> LogitTiles:
        """phi_r: tokens (b, h, w) int64 and masks (b, h, w) bool -> tiles of the logits (b, N, h, w)."""

        def logits(S_t: Tensor, m_t: Tensor, S_l: Tensor, m_l: Tensor) -> Tensor:
            return self.net.refiner.logits(S_t, m_t, self.net.refiner.context(S_l, m_l, self.refiner_biases))

        return self._run(REFINE, logits, S_t, m_t, S_l, m_l)

    def entropy(self, S_l: Tensor, m_l: Tensor, temperature: float) -> Tensor:
        """Entropy in nats of the distribution of phi_r with nothing kept: (b, h, w) as for `refine` -> (b, 1, h, w)."""
        entropy = torch.empty(S_l.shape, device=S_l.device)
        for where, logits in self.refine(S_l, torch.zeros_like(m_l), S_l, m_l):
            entropy[where] = torch.special.entr(token_probabilities(logits, temperature)).sum(1)
        return entropy[:, None]

    def sample(
        self,
        S_l: Tensor,
        m_l: Tensor,
        config: SamplingConfig,
        generators: Sequence[torch.Generator],
        on_step: OnStep | None,
        *,
        fixed: Tensor | None = None,
        tokens: Tensor | None = None,
        redraw: Tensor | None = None,
    ) -> Sampled:
        """Algorithm 2 from line 3 on: S_l (b, h, w) int64, m_l (b, h, w) bool -> tokens (b, h, w) int64 and T_s.

        fixed, redraw: (b, h, w) bool, as for `iter_arch.sampling.sample`; tokens: of the earlier result, for redraw.
        """
        start = start_of(m_l, config) if redraw is None else start_of_redraw(redraw, config)
        self.work.expect(len(S_l) * len(self.tiles), sum(start.steps) / len(S_l))

        def refine(S_t: Tensor, m_t: Tensor, rows: Tensor) -> LogitTiles:
            return self.refine(S_t, m_t, S_l[rows], m_l[rows])

        def evaluate(S_t: Tensor, rows: Tensor) -> LogitTiles:
            return self.evaluate(S_t, S_l[rows])

        return sample(
            refine,
            evaluate,
            S_l if tokens is None else tokens,
            m_l,
            config=config,
            generators=generators,
            on_step=on_step,
            fixed=fixed,
            redraw=redraw,
        )

    def decode(self, tokens: Tensor, expected: Tensor, fidelity: float) -> Iterator[tuple[int, Tensor]]:
        """D_H: tokens (b, h, w) int64, expected codes (b, d, h, w) -> rows of the image in [0, 1], from top to bottom.

        Yields:
            (top, rows): rows (b, 3, n, W), of which the first is row ``top`` of the image.
        """
        vqgan = self.net.vqgan

        network: Callable[..., Tensor] = vqgan.decode
        maps: tuple[Tensor, ...] = (tokens,)
        if fidelity and has_codes(vqgan):
            network, maps = partial(_decode_blended, vqgan, fidelity), (tokens, expected)
        pieces = self._counted(DECODE, run_tiles(network, self.tiles, *maps, batch=self.batch))
        if len(self.tiles) == 1:
            yield 0, blend(pieces, self.tiles, len(tokens), factor=vqgan.factor)
        else:
            for (_, rows), output in blend_strips(pieces, self.tiles, len(tokens), factor=vqgan.factor):
                yield rows.start, output

    def _run(
        self, cost: int, network: Callable[..., Tensor], *maps: Tensor, factor: int = 1
    ) -> Iterator[tuple[TileIndex, Tensor]]:
        pieces = run_tiles(network, self.tiles, *maps, batch=self.batch, factor=factor)
        return blend_strips(self._counted(cost, pieces), self.tiles, len(maps[0]))

    def _counted(self, cost: int, pieces: Iterator[TilePiece]) -> Iterator[TilePiece]:
        for piece in pieces:
            self.work.advance(cost * len(piece[2]))
            yield piece


def _decode_blended(vqgan: CodeTokenizer, fidelity: float, tokens: Tensor, expected: Tensor) -> Tensor:
    codes = widened(vqgan.quantizer.codes(tokens)).lerp(widened(expected), fidelity)
    return vqgan.decode_codes(codes).clamp(0, 1)


@dataclass(frozen=True)
class Prepared:
    """What `ITER.restore` needs for lq (b, 3, height, width) with any options: E_l and the first evaluation.

    S_l: (b, h, w) int64, the initial tokens of the padded image. good: (b, h, w) float32, p_e(good | S_l, S_l).
    expected: (b, d, h, w) expected codes of E_l, in its dtype; d = 0 if fidelity must be 0.
    canvas: sizes. dtype: of lq. networks: with the tiles.
    """

    S_l: Tensor
    good: Tensor
    expected: Tensor
    canvas: Canvas
    dtype: torch.dtype
    networks: TiledNetworks

    def repeat(self, times: int) -> "Prepared":
        """The batch repeated ``times`` times, for results with other seeds."""
        if times == 1:
            return self
        S_l, good, expected = (x.repeat(times, *[1] * (x.ndim - 1)) for x in (self.S_l, self.good, self.expected))
        canvas = self.canvas._replace(images=times * self.canvas.images)
        return replace(self, S_l=S_l, good=good, expected=expected, canvas=canvas)

    def for_call(self, net: "ITER", batch: int | None, work: Work) -> TiledNetworks:
        """The networks for one call.

        Raises:
            ValueError: another network prepared it.
        """
        if self.networks.net is not net:
            raise ValueError("lq was prepared by another network; call prepare of the network that restores")
        return replace(self.networks, batch=batch or self.canvas.images, work=work)
