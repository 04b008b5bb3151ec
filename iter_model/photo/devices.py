"""Where photos are restored: devices by name, and how many tiles go through them together."""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from iter_arch import ITER
    from iter_model.peer import PeerNetwork

# Pixels of the restored image; the side of a tile in the input is this divided by the scale.
DEFAULT_TILE = 512
# Most pixels of the restored image that go through a light network as one tile; most channels at the end of such a one.
WHOLE, LIGHT = 1024**2, 32
# Tiles that go through together on a GPU, where memory allows it.
DEFAULT_BATCH = 16


def choose_devices(names: str, local_rank: int | None = None) -> list[torch.device]:
    """The devices of --device: 'auto', 'cpu', 'mps', 'cuda', 'cuda:N', or several of them with commas between.

    local_rank: number of this process among those that share the photos on this machine; where no GPU is named, each
        process takes another one.

    Raises:
        ValueError: this machine has no such device; the message says which it has.
    """
    return [choose_device(name.strip(), local_rank) for name in names.split(",")]


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """One device by name; 'auto' is the first GPU, else Apple's, else the CPU. See `choose_devices`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "mps", "cuda") or (index and not (kind == "cuda" and index.isdecimal())):
        raise ValueError(f"--device={name} must be auto, cpu, mps, cuda or cuda:N, or several with commas between")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"--device={name}: PyTorch finds no usable CUDA device here; use --device=cpu or --device=auto"
        )
    if index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"--device={name} must be below cuda:{torch.cuda.device_count()}, the number of GPUs here")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device=mps: PyTorch finds no Apple GPU here; use --device=cpu or --device=auto")
    if kind == "cuda" and not index and local_rank is not None:
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device(name)


def choose_batch(batch: int | None, net: ITER | PeerNetwork, tile: int | None, device: torch.device) -> int:
    """How many tiles go through the network together, for --batch.

    By default as many as fit into half of the free memory of a CUDA GPU, and one on other devices, where several would
    be no faster. Raises ValueError for a number below 1.
    """
    if batch is not None and batch < 1:
        raise ValueError(f"--batch={batch} must be at least 1")
    if batch is None and device.type != "cuda":
        return 1
    if batch is None:
        side = net.scale * tile if tile else DEFAULT_TILE
        # Measured on the decoder: six maps of the image's size with the channels of its last level.
        tile_bytes = 6 * 4 * _last_channels(net) * side**2
        batch = min(DEFAULT_BATCH, max(1, torch.cuda.mem_get_info(device)[0] // 2 // tile_bytes))
    return batch


def choose_tile(tile: int | None, net: ITER | PeerNetwork) -> int | None:
    """LQ pixels of a tile's side for --tile, None for no tiles. Raises ValueError where that is too small."""
    if tile is None:
        return max(DEFAULT_TILE // net.scale, net.multiple)
    if tile != 0 and tile < net.multiple:
        raise ValueError(f"--tile={tile} must be 0 (never) or at least {net.multiple} for this model (x{net.scale})")
    return tile or None


def choose_whole(tile: int | None, net: ITER | PeerNetwork) -> int:
    """Most LQ pixels of a photo that is restored as one tile although --tile is not given; 0 for a heavy network.

    A light network needs no more memory for four tiles than a heavy one for one. As tiles overlap, one large tile takes
    half the time.
    """
    if tile is not None or not hasattr(net, "vqgan") or _last_channels(net) > LIGHT:
        return 0
    return WHOLE // net.scale**2


def _last_channels(net: ITER | PeerNetwork) -> int:
    """Channels of the input of the last convolution; of an ITER, that of its decoder."""
    whole: nn.Module = getattr(net, "vqgan", net)
    channels = [layer.in_channels for layer in whole.modules() if isinstance(layer, nn.Conv2d)]
    return channels[-1] if channels else 3


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device has run out of memory, which Apple's devices only say in words."""
    return isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in str(error)


def return_freed_memory() -> None:
    """Give the system back what was freed between blocks in use: after sampling a large photo glibc keeps 300 MB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # other C libraries have none
        trim(0)


def free_cached_memory() -> None:
    """Free the memory of devices that PyTorch caches."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
