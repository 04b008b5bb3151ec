"""Photos through the network (ITER, arXiv:2312.05616): device, tiles, batches, and what to do when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from basicsr_compat.images import Photo
from iter_arch import ITER, SamplingConfig
from iter_arch.color import ColorMethod, match_color_
from iter_arch.progress import OnProgress

# Pixels of the restored image; the side of a tile in the input is this divided by the scale.
DEFAULT_TILE = 512
# Tiles that go through together on a GPU, where memory allows it.
DEFAULT_BATCH = 16


class Cancelled(Exception):
    """A restoration was ended on request."""


@dataclass(kw_only=True)
class Restorer:
    """Restores photos with one network and one set of options.

    ``batch``, of tiles that go through together, shrinks for good where GPU memory runs out; results do not depend on
    it. ``tile`` does not, lest the result for a photo depends on those before it.
    """

    net: ITER
    config: SamplingConfig
    seed: int
    tile: int | None
    batch: int
    color_correction: ColorMethod
    color_levels: int

    def images_together(self, size: tuple[int, int]) -> int:
        """Images of this size that hold no more pixels than a batch of tiles."""
        side = self.tile or DEFAULT_TILE // self.net.scale
        return min(self.batch, self.batch * side**2 // (size[0] * size[1]))

    def restore(
        self, photo: Photo, *, progress: OnProgress | None = None, cancelled: Callable[[], bool] | None = None
    ) -> Photo:
        """Restore a photo, see `restore_group`.

        Example:
            >>> restored = restorer.restore(read_photo("cat.jpg"), progress=lambda done, total: print(done / total))
            >>> write_photo("results/cat.png", restored)
        """
        return self.restore_group([photo], progress=progress, cancelled=cancelled)[0]

    def restore_group(
        self,
        photos: list[Photo],
        *,
        progress: OnProgress | None = None,
        cancelled: Callable[[], bool] | None = None,
        on_retry: Callable[[str], None] = lambda remedy: None,
    ) -> list[Photo]:
        """Restore photos of one size to ``net.scale`` times it, each of the same kind: gray, alpha and bit depth stay.

        Gray is restored as three equal channels. Alpha is upscaled bicubically; what a file holds under fully
        transparent pixels is replaced by the nearest visible color first, lest it bleeds into the edges.

        Args:
            photos: of one size.
            progress: called with (done, total) after every batch of tiles.
            cancelled: asked as often; True ends the restoration.
            on_retry: called with what is tried next where the GPU runs out of memory: half as many tiles together, and
                once it is one, tiles of half the side.

        Raises:
            Cancelled: ``cancelled`` said so.
            RuntimeError: out of GPU memory even with the smallest tiles.
        """

        def on_progress(done: int, total: int) -> None:
            if cancelled is not None and cancelled():
                raise Cancelled
            if progress is not None:
                progress(done, total)

        rgb = [p.rgb if p.alpha is None else fill_transparent(p.rgb, p.alpha) for p in photos]
        device = next(self.net.parameters()).device
        lq = torch.from_numpy(np.stack(rgb)).permute(0, 3, 1, 2).to(device)
        images = self._restore_within_memory(lq, on_progress, on_retry)
        match_color_(images, lq, self.color_correction, self.color_levels)
        return [
            photo._replace(rgb=image.permute(1, 2, 0).cpu().numpy(), alpha=enlarge_alpha(photo.alpha, self.net.scale))
            for photo, image in zip(photos, images, strict=True)
        ]

    def _restore_within_memory(self, lq: Tensor, on_progress: OnProgress, on_retry: Callable[[str], None]) -> Tensor:
        """lq (b, 3, h, w) -> (b, 3, s h, s w)."""
        tile, batch = self.tile, self.batch
        while True:
            try:
                return self.net.restore(
                    lq, config=self.config, seed=self.seed, tile=tile, batch=batch, on_progress=on_progress
                ).image
            except torch.cuda.OutOfMemoryError:
                pass  # the next try starts outside: the exception holds on to the tensors of this one
            torch.cuda.empty_cache()
            side = max(lq.shape[2:])
            side = side if tile is None else min(side, tile)
            together = min(batch, lq.shape[0] * -(-lq.shape[2] // side) * -(-lq.shape[3] // side))
            if together > 1:
                batch = together // 2
                if tile == self.tile:
                    self.batch = batch
                on_retry(f"trying again with {batch} tile{'s' if batch > 1 else ''} at a time")
            elif side > self.net.multiple:
                tile, batch = max(side // 2, self.net.multiple), 1
                on_retry(f"trying again with tiles of {tile} pixels")
            else:
                raise RuntimeError(f"out of GPU memory even with tiles of {side} pixels; use --device=cpu")


def choose_device(name: str) -> torch.device:
    """The device of --device; ValueError if there is no such one here."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda: PyTorch finds no usable CUDA device here; use --device=cpu or --device=auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_batch(batch: int | None, net: ITER, tile: int | None, device: torch.device) -> int:
    """Tiles that go through together for --batch; on a GPU by default as many as fit into half of its free memory.

    On a CPU they would be no faster together.
    """
    if batch is not None and batch < 1:
        raise ValueError(f"--batch={batch} must be at least 1")
    if batch is None and device.type == "cpu":
        return 1
    if batch is None:
        side = net.scale * tile if tile else DEFAULT_TILE
        # Measured on the decoder: six maps of the image's size with the channels of its last level.
        channels = [layer.in_channels for layer in net.vqgan.modules() if isinstance(layer, nn.Conv2d)]
        tile_bytes = 6 * 4 * (channels[-1] if channels else 3) * side**2
        batch = min(DEFAULT_BATCH, max(1, torch.cuda.mem_get_info(device)[0] // 2 // tile_bytes))
    return batch


def choose_tile(tile: int | None, net: ITER) -> int | None:
    """Side of tiles in LQ pixels for --tile, None for no tiles."""
    if tile is None:
        return max(DEFAULT_TILE // net.scale, net.multiple)
    if tile != 0 and tile < net.multiple:
        raise ValueError(f"--tile={tile} must be 0 (never) or at least {net.multiple} for this model (x{net.scale})")
    return tile or None


def enlarge_alpha(alpha: np.ndarray | None, scale: int) -> np.ndarray | None:
    """Bicubic; alpha (H, W) -> (s H, s W) in [0, 1]."""
    if alpha is None:
        return None
    size = (alpha.shape[1] * scale, alpha.shape[0] * scale)
    enlarged = cv2.resize(alpha, size, interpolation=cv2.INTER_CUBIC)
    return np.clip(enlarged, 0, 1, out=enlarged)


def fill_transparent(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Give fully transparent pixels the color of the nearest other one; rgb (H, W, 3), alpha (H, W)."""
    from scipy.ndimage import distance_transform_edt

    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return rgb
    rows, columns = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return rgb[rows, columns]
