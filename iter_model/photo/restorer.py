"""Photos through the network (ITER, arXiv:2312.05616), row by row, and what to do when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

import iter_arch
from basicsr_compat.images import Photo
from iter_arch import ITER, Prepared, Restored, SamplingConfig, Uncertainty
from iter_arch.color import ColorMethod, make_matcher, upsampled_rows
from iter_arch.iter_arch import OnRows
from iter_arch.progress import DECODE, ENCODE, REFINE, OnProgress
from iter_arch.sampling import OnStep
from iter_model.peer import PeerNetwork, PeerRestored
from iter_model.photo.canvas import Canvas, OutputSize
from iter_model.photo.devices import DEFAULT_TILE, free_cached_memory, is_out_of_memory, return_freed_memory
from iter_model.photo.token_file import model_checksum

Attempted = TypeVar("Attempted")
Found = TypeVar("Found", Restored, PeerRestored, Restored | PeerRestored)
# (tile, batch, on_rows) -> what the network found.
Run = Callable[[int | None, int, OnRows], Found]


class Cancelled(Exception):
    """A restoration was canceled on request."""


@dataclass(frozen=True)
class Outcome(Generic[Found]):
    """A restored photo.

    photo: its pixels are whole numbers of its bit depth.
    restored: what the network found for this photo, without the image.
    """

    photo: Photo
    restored: Found

    @property
    def start_step(self) -> int:
        """T_s; 0 for a network without steps."""
        return int(self.restored.start_step)


@dataclass(kw_only=True)
class Control:
    """Arguments of `ITER.restore` for one photo, besides the options of a `Restorer`.

    seed: replaces that of the Restorer; None keeps it.
    alpha, tokens, redraw, on_step: see `ITER.restore`.
    known: E_l and the first evaluation of this photo, by (network, tile). Empty at first; share it among restorations
        of the same photo.
    """

    seed: int | None = None
    alpha: Tensor | None = None
    tokens: Tensor | None = None
    redraw: Tensor | None = None
    on_step: OnStep | None = None
    known: dict[Any, Prepared] = field(default_factory=dict)

    def prepared(self, net: ITER, lq: Tensor, tile: int | None, batch: int, on_progress: OnProgress) -> Prepared:
        """Call `ITER.prepare`, once per photo; its progress is reported as a part of the whole restoration."""
        if (net, tile) not in self.known:
            whole = ENCODE + REFINE * net.sampling.steps + DECODE
            self.known[net, tile] = net.prepare(
                lq, tile=tile, batch=batch, on_progress=lambda done, total: on_progress(done, total * whole // ENCODE)
            )
        return self.known[net, tile]


@dataclass(kw_only=True)
class Restorer:
    """Restores photos with one network and one set of options.

    net: the network, on its device.
    config: None: the sampling settings of the network, or none for a network without sampling.
    seed: of every photo.
    tile: LQ pixels of a tile's side; None for no tiles. It never changes: otherwise the result for a photo would depend
        on the photos before it.
    batch: tiles that go through the network together. It shrinks for good where GPU memory runs out; results do not
        depend on it.
    color_correction, color_levels: see `iter_arch.color.match_color`.
    size: of the results.
    whole: photos of at most this many pixels are one tile.
    """

    net: ITER | PeerNetwork
    config: SamplingConfig | None
    seed: int
    tile: int | None
    batch: int
    color_correction: ColorMethod
    color_levels: int
    size: OutputSize = field(default_factory=OutputSize)
    whole: int = 0

    @cached_property
    def checksum(self) -> str:
        """`model_checksum` of the network."""
        return model_checksum(self.net)

    @property
    def iter(self) -> ITER:
        """The network, for what needs its tokens. Raises ValueError where it is no ITER."""
        if isinstance(self.net, PeerNetwork):
            raise ValueError(f"a {self.net.architecture} samples no tokens")
        return self.net

    def images_together(self, size: tuple[int, int]) -> int:
        """How many images of this (height, width) hold no more pixels than a batch of tiles."""
        side = self.tile or DEFAULT_TILE // self.net.scale
        return min(self.batch, self.batch * side**2 // (size[0] * size[1]))

    def input_of(self, photos: list[Photo]) -> Tensor:
        """Photos of one size as the network's input: (b, 3, h, w) on its device, transparent pixels filled."""
        rgb = [p.rgb if p.alpha is None else fill_transparent(p.rgb, p.alpha) for p in photos]
        whole = torch.from_numpy(rgb[0])[None] if len(rgb) == 1 else torch.from_numpy(np.stack(rgb))
        return whole.permute(0, 3, 1, 2).to(next(self.net.parameters()).device)

    def restore(
        self, photo: Photo, *, progress: OnProgress | None = None, cancelled: Callable[[], bool] | None = None
    ) -> Photo:
        """Restore a photo; see `restore_group`.

        Examples:
            >>> restored = restorer.restore(read_photo("cat.jpg"), progress=lambda done, total: print(done / total))
            >>> write_photo("results/cat.png", restored)
        """
        return self.restore_group([photo], progress=progress, cancelled=cancelled)[0].photo

    def restore_group(
        self,
        photos: list[Photo],
        *,
        progress: OnProgress | None = None,
        cancelled: Callable[[], bool] | None = None,
        on_retry: Callable[[str], None] = lambda remedy: None,
    ) -> list[Outcome[Restored | PeerRestored]]:
        """Restore photos of one size; gray, alpha, and bit depth are kept.

        Gray is restored as three equal channels. Alpha is enlarged bicubically. Colors below fully transparent pixels
        are replaced by the nearest visible color first, because they would bleed into the edges. No float copy of the
        results is held, except with the color correction 'adain'.

        Args:
            photos: of one size.
            progress: called with (done, total) after every batch of tiles.
            cancelled: called as often; True ends the restoration.
            on_retry: called with the next attempt, in words, where the GPU runs out of memory: half as many tiles at a
                time, and when that is one, tiles of half the side.

        Raises:
            Cancelled: ``cancelled`` returned True.
            ValueError: the result would be too large.
            RuntimeError: out of GPU memory even with the smallest tiles.
        """
        lq, on_progress = self.input_of(photos), _cancellable(progress, cancelled)

        def run(tile: int | None, batch: int, on_rows: OnRows) -> Restored | PeerRestored:
            return self.net.restore(
                lq, config=self.config, seed=self.seed, tile=tile, batch=batch, on_progress=on_progress, on_rows=on_rows
            )

        return self._outcomes(photos, lq, run, on_retry)

    def restore_controlled(
        self,
        photo: Photo,
        control: Control,
        *,
        progress: OnProgress | None = None,
        cancelled: Callable[[], bool] | None = None,
        on_retry: Callable[[str], None] = lambda remedy: None,
    ) -> Outcome[Restored]:
        """Restore a photo with an ITER, under control; otherwise as `restore_group` does."""
        net, lq, on_progress = self.iter, self.input_of([photo]), _cancellable(progress, cancelled)

        def run(tile: int | None, batch: int, on_rows: OnRows) -> Restored:
            return net.restore(
                control.prepared(net, lq, tile, batch, on_progress),
                config=self.config,
                seed=self.seed if control.seed is None else control.seed,
                on_step=control.on_step,
                alpha=control.alpha,
                tokens=control.tokens,
                redraw=control.redraw,
                batch=batch,
                on_progress=on_progress,
                on_rows=on_rows,
            )

        return self._outcomes([photo], lq, run, on_retry)[0]

    def uncertainty(
        self,
        photo: Photo,
        samples: int,
        *,
        control: Control,
        progress: OnProgress | None = None,
        cancelled: Callable[[], bool] | None = None,
        on_retry: Callable[[str], None] = lambda remedy: None,
    ) -> Uncertainty:
        """`iter_arch.uncertainty` of a photo, in the size that the network gives it.

        Holds three float images of the result's size.

        Args:
            samples: restorations to compare, at least 1.
            photo, control, progress, cancelled, on_retry: see `restore_controlled`, which also says the errors.
        """
        net, lq, on_progress = self.iter, self.input_of([photo]), _cancellable(progress, cancelled)

        def attempt(tile: int | None, batch: int) -> Uncertainty:
            return iter_arch.uncertainty(
                net,
                lq,
                samples,
                self.seed if control.seed is None else control.seed,
                config=self.config,
                alpha=control.alpha,
                prepared=control.prepared(net, lq, tile, batch, on_progress),
                color_correction=self.color_correction,
                color_levels=self.color_levels,
                batch=batch,
                on_progress=on_progress,
            )

        return self._within_memory(lq, attempt, on_retry)

    def _outcomes(
        self, photos: list[Photo], lq: Tensor, run: Run[Found], on_retry: Callable[[str], None]
    ) -> list[Outcome[Found]]:
        """Restore photos of one size by ``run``, of which lq (b, 3, h, w) is the input."""
        canvases, restored = self._within_memory(
            lq, lambda tile, batch: self._attempt(lq, photos, lambda on_rows: run(tile, batch, on_rows)), on_retry
        )
        return [
            Outcome(
                photo._replace(rgb=_three_channels(canvas.pixels), alpha=self._alpha(photo)),
                type(restored)(*(x[index : index + 1] for x in restored)),
            )
            for index, (photo, canvas) in enumerate(zip(photos, canvases, strict=True))
        ]

    def _within_memory(
        self, lq: Tensor, attempt: Callable[[int | None, int], Attempted], on_retry: Callable[[str], None]
    ) -> Attempted:
        """The result of ``attempt``, called with smaller and smaller tiles and batches until memory suffices."""
        first = None if lq.shape[2] * lq.shape[3] <= self.whole else self.tile
        tile, batch = first, self.batch
        while True:
            try:
                return attempt(tile, batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # The next try starts out here, because the exception keeps the tensors of this one alive.
            free_cached_memory()
            side = max(lq.shape[2:])
            side = side if tile is None else min(side, tile)
            together = min(batch, lq.shape[0] * -(-lq.shape[2] // side) * -(-lq.shape[3] // side))
            if together > 1:
                batch = together // 2
                if tile == first:
                    self.batch = batch
                on_retry(f"trying again with {batch} tile{'s' if batch > 1 else ''} at a time")
            elif side > self.net.multiple:
                tile, batch = max(side // 2, self.net.multiple), 1
                on_retry(f"trying again with tiles of {tile} pixels")
            else:
                raise RuntimeError(f"out of GPU memory even with tiles of {side} pixels; use --device=cpu")

    def _attempt(self, lq: Tensor, photos: list[Photo], run: Callable[[OnRows], Found]) -> tuple[list[Canvas], Found]:
        """Canvases with the restored photos, and what ``run`` returned besides."""
        height, width = lq.shape[2:]
        restored_size = self.net.scale * height, self.net.scale * width
        target = self.size.of((height, width), self.net.scale)
        canvases = [Canvas(restored_size, target, 1 if photo.is_gray else 3, photo.bit_depth) for photo in photos]
        matcher = make_matcher(lq, restored_size, self.color_correction, self.color_levels)

        def draw(rows: Tensor) -> None:
            for photo, canvas, part in zip(photos, canvases, rows.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
                canvas.push(part.mean(axis=2, keepdims=True) if photo.is_gray else part)

        def on_rows(top: int, rows: Tensor) -> None:
            if top == 0:  # sampling is done, and the canvas begins to fill
                return_freed_memory()
            # adain keeps rows until the end, and the network reuses theirs.
            for finished in matcher.push(rows.to(torch.float32, copy=self.color_correction == "adain")):
                draw(finished)

        restored = run(on_rows)
        for finished in matcher.finish():
            draw(finished)
        return canvases, restored

    def _alpha(self, photo: Photo) -> np.ndarray | None:
        """The alpha channel of the result, enlarged bicubically."""
        if photo.alpha is None:
            return None
        size = photo.alpha.shape
        enlarged = self.net.scale * size[0], self.net.scale * size[1]
        canvas = Canvas(enlarged, self.size.of(size, self.net.scale), 1, photo.bit_depth)
        for rows in upsampled_rows(torch.from_numpy(photo.alpha)[None, None], enlarged):
            canvas.push(rows[0].permute(1, 2, 0).numpy())
        return canvas.pixels[..., 0]


def _cancellable(progress: OnProgress | None, cancelled: Callable[[], bool] | None) -> OnProgress:
    def on_progress(done: int, total: int) -> None:
        if cancelled is not None and cancelled():
            raise Cancelled
        if progress is not None:
            progress(done, total)

    return on_progress


def _three_channels(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 1 or 3) -> (H, W, 3), without a copy."""
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def fill_transparent(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Give fully transparent pixels the color of the nearest other pixel.

    rgb: (H, W, 3); alpha: (H, W). Returns rgb itself where no pixel, or every pixel, is fully transparent.
    """
    from scipy.ndimage import distance_transform_edt

    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return rgb
    rows, columns = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return rgb[rows, columns]
