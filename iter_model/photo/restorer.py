"""Photos through the network (ITER, arXiv:2312.05616), row by row, and what to do when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

import iter_arch
from basicsr_compat.images import Photo
from iter_arch import ITER, Prepared, Restored, SamplingConfig, Uncertainty
from iter_arch.color import ColorMethod, make_matcher, upsampled_rows
from iter_arch.progress import DECODE, ENCODE, REFINE, OnProgress
from iter_arch.sampling import OnStep
from iter_model.peer import PeerNetwork, PeerRestored
from iter_model.photo.canvas import Canvas, OutputSize
from iter_model.photo.devices import DEFAULT_TILE, free_cached_memory, is_out_of_memory
from iter_model.photo.token_file import model_checksum

Attempted = TypeVar("Attempted")


class Cancelled(Exception):
    """A restoration was ended on request."""


class Outcome(NamedTuple):
    """photo: restored, its pixels whole numbers of its bit depth; restored: of the photo alone, without its image."""

    photo: Photo
    restored: Restored | PeerRestored

    @property
    def start_step(self) -> int:
        """T_s."""
        return int(self.restored.start_step)


@dataclass(kw_only=True)
class Control:
    """What `ITER.restore` is told of one photo beside a Restorer's options.

    seed: in the place of the Restorer's. alpha, tokens, redraw, on_step: as for `ITER.restore`.
    known: E_l and the first evaluation, for restorations of the same photo, by (network, tile); empty at first.
    """

    seed: int | None = None
    alpha: Tensor | None = None
    tokens: Tensor | None = None
    redraw: Tensor | None = None
    on_step: OnStep | None = None
    known: dict[Any, Prepared] = field(default_factory=dict)

    def prepared(self, net: ITER, lq: Tensor, tile: int | None, batch: int, on_progress: OnProgress) -> Prepared:
        """`ITER.prepare`, once for a photo; its progress is a part of the whole restoration's."""
        if (net, tile) not in self.known:
            whole = ENCODE + REFINE * net.sampling.steps + DECODE
            self.known[net, tile] = net.prepare(
                lq, tile=tile, batch=batch, on_progress=lambda done, total: on_progress(done, total * whole // ENCODE)
            )
        return self.known[net, tile]

    def options(self) -> dict[str, Any]:
        """Arguments of `ITER.restore`."""
        given = {name: getattr(self, name) for name in ("seed", "alpha", "tokens", "redraw", "on_step")}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(kw_only=True)
class Restorer:
    """Restores photos with one network and one set of options.

    ``batch``, of tiles that go through together, shrinks for good where GPU memory runs out; results do not depend on
    it. ``tile`` does not, lest the result for a photo depends on those before it. Photos of at most ``whole`` pixels
    are one tile.
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

    def images_together(self, size: tuple[int, int]) -> int:
        """Images of this size that hold no more pixels than a batch of tiles."""
        side = self.tile or DEFAULT_TILE // self.net.scale
        return min(self.batch, self.batch * side**2 // (size[0] * size[1]))

    def input_of(self, photos: list[Photo]) -> Tensor:
        """What the network gets of photos of one size: (b, 3, h, w) on its device, transparent pixels filled."""
        rgb = [p.rgb if p.alpha is None else fill_transparent(p.rgb, p.alpha) for p in photos]
        whole = torch.from_numpy(rgb[0])[None] if len(rgb) == 1 else torch.from_numpy(np.stack(rgb))
        return whole.permute(0, 3, 1, 2).to(next(self.net.parameters()).device)

    def restore(
        self, photo: Photo, *, progress: OnProgress | None = None, cancelled: Callable[[], bool] | None = None
    ) -> Photo:
        """Restore a photo, see `restore_group`.

        Examples:
            >>> restored = restorer.restore(read_photo("cat.jpg"), progress=lambda done, total: print(done / total))
            >>> write_photo("results/cat.png", restored)
        """
        return self.restore_group([photo], progress=progress, cancelled=cancelled)[0].photo

    def restore_group(
        self,
        photos: list[Photo],
        *,
        control: Control | None = None,
        progress: OnProgress | None = None,
        cancelled: Callable[[], bool] | None = None,
        on_retry: Callable[[str], None] = lambda remedy: None,
    ) -> list[Outcome]:
        """Restore photos of one size, each of the same kind: gray, alpha and bit depth stay.

        Gray is restored as three equal channels. Alpha is upscaled bicubically; what a file holds under fully
        transparent pixels is replaced by the nearest visible color first, lest it bleeds into the edges. Results have
        the size that ``size`` says; no float copy of them is held, but with the color correction 'adain'.

        Args:
            photos: of one size.
            control: of an ITER and a single photo.
            progress: called with (done, total) after every batch of tiles.
            cancelled: asked as often; True ends the restoration.
            on_retry: called with what is tried next where the GPU runs out of memory: half as many tiles together, and
                once it is one, tiles of half the side.

        Raises:
            Cancelled: ``cancelled`` said so.
            RuntimeError: out of GPU memory even with the smallest tiles.
        """

        lq, on_progress = self.input_of(photos), _cancellable(progress, cancelled)
        canvases, restored = self._within_memory(
            lq, lambda tile, batch: self._attempt(lq, photos, control, tile, batch, on_progress), on_retry
        )
        return [
            Outcome(
                photo._replace(rgb=_three_channels(canvas.pixels), alpha=self._alpha(photo)),
                type(restored)(*(x[index : index + 1] for x in restored)),
            )
            for index, (photo, canvas) in enumerate(zip(photos, canvases, strict=True))
        ]

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
        """`iter_arch.uncertainty` of a photo, in the size that the network gives it; arguments as for `restore_group`.

        Holds three float images of the result's size.
        """
        lq, on_progress = self.input_of([photo]), _cancellable(progress, cancelled)

        def attempt(tile: int | None, batch: int) -> Uncertainty:
            return iter_arch.uncertainty(
                self.net,
                lq,
                samples,
                self.seed if control.seed is None else control.seed,
                config=self.config,
                alpha=control.alpha,
                prepared=control.prepared(self.net, lq, tile, batch, on_progress),
                color_correction=self.color_correction,
                color_levels=self.color_levels,
                batch=batch,
                on_progress=on_progress,
            )

        return self._within_memory(lq, attempt, on_retry)

    def _within_memory(
        self, lq: Tensor, attempt: Callable[[int | None, int], Attempted], on_retry: Callable[[str], None]
    ) -> Attempted:
        """What ``attempt`` returns, called with smaller and smaller tiles and batches until it has enough memory."""
        first = None if lq.shape[2] * lq.shape[3] <= self.whole else self.tile
        tile, batch = first, self.batch
        while True:
            try:
                return attempt(tile, batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # The next try starts outside: the exception holds on to the tensors of this one.
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

    def _attempt(
        self,
        lq: Tensor,
        photos: list[Photo],
        control: Control | None,
        tile: int | None,
        batch: int,
        on_progress: OnProgress,
    ) -> tuple[list[Canvas], Restored | PeerRestored]:
        """Canvases that hold what lq (b, 3, h, w) is restored to, and what else came of it."""
        restored_size = self.net.scale * lq.shape[2], self.net.scale * lq.shape[3]
        target = self.size.of(tuple(lq.shape[2:]), self.net.scale)
        canvases = [Canvas(restored_size, target, 1 if photo.is_gray else 3, photo.bit_depth) for photo in photos]
        matcher = make_matcher(lq, restored_size, self.color_correction, self.color_levels)

        def draw(rows: Tensor) -> None:
            for photo, canvas, part in zip(photos, canvases, rows.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
                canvas.push(part.mean(axis=2, keepdims=True) if photo.is_gray else part)

        def on_rows(top: int, rows: Tensor) -> None:
            # Those that adain waits with would change.
            for finished in matcher.push(rows.to(torch.float32, copy=self.color_correction == "adain")):
                draw(finished)

        options = {"config": self.config, "seed": self.seed, "batch": batch, "on_progress": on_progress}
        if control is None:
            restored = self.net.restore(lq, tile=tile, on_rows=on_rows, **options)
        else:
            prepared = control.prepared(self.net, lq, tile, batch, on_progress)
            restored = self.net.restore(prepared, on_rows=on_rows, **options | control.options())
        for finished in matcher.finish():
            draw(finished)
        return canvases, restored

    def _alpha(self, photo: Photo) -> np.ndarray | None:
        """Bicubic, of the size of the result."""
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
    """Give fully transparent pixels the color of the nearest other one; rgb (H, W, 3), alpha (H, W)."""
    from scipy.ndimage import distance_transform_edt

    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return rgb
    rows, columns = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return rgb[rows, columns]
