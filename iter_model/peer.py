"""Networks of other projects that spandrel knows (Real-ESRGAN, SwinIR, HAT, ...), with this project's tiling."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

import iter_arch
from basicsr_compat.files import read_checkpoint
from basicsr_compat.schema import format_error
from iter_arch.iter_arch import ITER, OnRows
from iter_arch.pretrained.download import find_checkpoint
from iter_arch.progress import OnProgress
from iter_arch.sampling import SamplingConfig
from iter_arch.tiling import TilePiece, blend, blend_strips, make_tiles, run_tiles

if TYPE_CHECKING:
    import spandrel

# LQ pixels of the smallest tile side: smaller ones are mostly border.
SMALLEST_TILE = 32


class NoPeer(ValueError):
    """A file is a checkpoint, but of no network that spandrel can run here."""


class PeerRestored(NamedTuple):
    """The result of a network without sampling.

    image: (b, 3, sH, sW) RGB in [0, 1]; without rows where on_rows got them.
    start_step: (b,) int64, 0 for no steps.
    """

    image: Tensor
    start_step: Tensor


class PeerNetwork(nn.Module):
    """A network of another project, with the part of `iter_arch.ITER`'s interface that needs no tokens.

    architecture: its name.
    scale: s, any whole number.
    multiple: the smallest side of a tile, in LQ pixels.

    Args:
        descriptor: what spandrel made of a checkpoint.

    Raises:
        NoPeer: the network does not turn one RGB image into another.
    """

    def __init__(self, descriptor: spandrel.ImageModelDescriptor) -> None:
        super().__init__()
        self.architecture = descriptor.architecture.name
        if (descriptor.input_channels, descriptor.output_channels) != (3, 3) or not hasattr(descriptor, "scale"):
            raise NoPeer(
                f"its {self.architecture} maps {descriptor.input_channels} channels to {descriptor.output_channels}; "
                "photos need 3 and 3"
            )
        self.net = descriptor.model
        self.scale: int = descriptor.scale
        requirements = descriptor.size_requirements
        self.multiple = max(SMALLEST_TILE, requirements.minimum, requirements.multiple_of)
        self._descriptor = descriptor
        self.eval().requires_grad_(False)

    def supports(self, dtype: torch.dtype) -> bool:
        """Whether the network can compute in a dtype."""
        supported = {torch.float16: self._descriptor.supports_half, torch.bfloat16: self._descriptor.supports_bfloat16}
        return supported.get(dtype, True)

    def usable(self, dtype: torch.dtype, precision: str) -> torch.dtype:
        """``dtype`` where the network supports it, else float32.

        Args:
            dtype: chosen for the device.
            precision: the option --precision.

        Raises:
            ValueError: the network does not support ``dtype``, which ``precision`` asks for by name.
        """
        if self.supports(dtype):
            return dtype
        if precision != "auto":
            raise ValueError(f"--precision={precision} cannot be applied: {self.architecture} needs float32")
        return torch.float32

    def forward(self, lq: Tensor) -> Tensor:
        """lq (b, 3, h, w) RGB in [0, 1], any size -> (b, 3, s h, s w) in [0, 1], in the precision of the weights."""
        return self.restore(lq).image

    @torch.no_grad()
    def restore(
        self,
        lq: Tensor,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        batch: int | None = None,
        on_progress: OnProgress | None = None,
        on_rows: OnRows | None = None,
        config: SamplingConfig | None = None,
        seed: int = 0,
    ) -> PeerRestored:
        """Restore images, in feathered tiles where ``tile`` is given.

        Args:
            lq: (b, 3, h, w) float, RGB in [0, 1].
            tile: LQ pixels of a tile's side, at least `multiple`; None: no tiles.
            overlap: LQ pixels that neighboring tiles share, default a quarter of the tile.
            batch: tiles that go through the network together, default the images of the batch.
            on_progress: called with (done, total) after every batch of tiles. Raise from it to end the restoration.
            on_rows: called with (top, rows) from top to bottom, as in `ITER.restore`; the image is then not kept.
            config, seed: ignored, as there is no sampling; `ITER.restore` has them too.

        Returns:
            PeerRestored, with the image in the dtype of ``lq``.

        Raises:
            ValueError: a tile or an overlap is impossible.
        """
        height, width = lq.shape[2:]
        side = tile or max(height, width)
        if tile is not None and tile < self.multiple:
            raise ValueError(f"tile={tile} must be at least {self.multiple} for {self.architecture} (x{self.scale})")
        tiles = make_tiles(height, width, side, side // 4 if overlap is None else overlap)
        dtype, done = next(self.net.parameters()).dtype, 0

        def counted() -> Iterator[TilePiece]:
            nonlocal done
            for piece in run_tiles(self._descriptor, tiles, lq.to(dtype), batch=batch or len(lq)):
                done += len(piece[2])
                if on_progress is not None:
                    on_progress(done, len(tiles) * len(lq))
                yield piece

        steps = torch.zeros(len(lq), dtype=torch.int64)
        if on_rows is None:
            return PeerRestored(blend(counted(), tiles, len(lq), factor=self.scale).to(lq.dtype), steps)
        if len(tiles) == 1:
            on_rows(0, blend(counted(), tiles, len(lq), factor=self.scale).to(lq.dtype))
        else:
            for (_, rows), output in blend_strips(counted(), tiles, len(lq), factor=self.scale):
                on_rows(rows.start, output.to(lq.dtype))
        return PeerRestored(lq.new_empty(len(lq), 3, 0, self.scale * width), steps)


def load_peer(path: str | Path) -> PeerNetwork:
    """Read a checkpoint of any network that spandrel knows; nothing in the file is executed.

    Architectures of `spandrel_extra_arches`, some of which have restrictive licenses, are known where it is installed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint.
        NoPeer: spandrel is not installed or does not know the network, or the network is an ITER or restores no RGB
            images.
    """
    content = read_checkpoint(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch.jit, which some architectures use
        try:
            import spandrel
        except ImportError:
            raise NoPeer(f"{path}: other networks than ITER need spandrel; pip install spandrel") from None
        registry = spandrel.MAIN_REGISTRY.copy()
        try:
            import spandrel_extra_arches
        except ImportError:
            pass
        else:
            registry.add(*spandrel_extra_arches.EXTRA_REGISTRY, ignore_duplicates=True)
    try:
        descriptor = registry.load(spandrel.canonicalize_state_dict(content))
    # What architectures raise where a file is nearly theirs has no common base.
    except Exception as error:
        reason = "spandrel knows no such network" if isinstance(error, spandrel.UnsupportedModelError) else error
        raise NoPeer(f"{path}: {reason if isinstance(reason, str) else format_error(reason)}") from None
    # Where a program has registered `iter_arch.spandrel_plugin`, spandrel reads ours too, and less strictly.
    if isinstance(descriptor.model, ITER):
        raise NoPeer(f"{path}: it holds an ITER")
    if not isinstance(descriptor, spandrel.ImageModelDescriptor):
        raise NoPeer(f"{path}: its {descriptor.architecture.name} needs a mask beside the image")
    try:
        return PeerNetwork(descriptor)
    except NoPeer as error:
        raise NoPeer(f"{path}: {error}") from None


def load_network(name: str | Path) -> ITER | PeerNetwork:
    """Load an ITER, or a network that spandrel knows.

    Args:
        name: a name or path for `iter_arch.load_pretrained`, or the path of a checkpoint for `load_peer`.

    Raises:
        FileNotFoundError: there is no such name or file.
        ValueError: the file holds neither.
    """
    try:
        return iter_arch.load_pretrained(name)
    except ValueError as error:
        try:
            return load_peer(find_checkpoint(name))
        except NoPeer as other:
            raise ValueError(f"{error}; {str(other).removeprefix(f'{name}: ')}") from None
