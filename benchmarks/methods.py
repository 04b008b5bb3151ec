"""What the benchmarks restore photos with: bicubic interpolation, an ITER, or any network that spandrel knows.

A method is a name: bicubic, a name or file for `basicsr upscale --model`, or a .bin file (see `real_esrgan.py`).
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from measures import Photo, upsample
from real_esrgan import load as load_real_esrgan
from torch import Tensor

import iter_arch
from iter_arch.color import match_color
from iter_arch.pretrained.download import find_checkpoint
from iter_model.peer import PeerNetwork, load_network
from iter_model.photo.devices import choose_tile

BICUBIC = "bicubic"


class Method(NamedTuple):
    """name: for tables. key: changes with all that changes the result. restore: Photo -> (1, 3, H, W) in [0, 1]."""

    name: str
    key: str
    restore: Callable[[Photo], Tensor]


def make_method(name: str, *, scale: int, device: torch.device, color: str = "wavelet", seed: int = 0) -> Method:
    """A method by name.

    Args:
        color: color correction of an ITER; other networks keep their own colors.

    Raises:
        FileNotFoundError: no such name or file, also where weights cannot be downloaded.
        ValueError: a file of another kind, or a network of another scale.
    """
    if name == BICUBIC:
        return Method(BICUBIC, BICUBIC, lambda photo: upsample(photo, scale))
    path = Path(name) if name.endswith(".bin") else find_checkpoint(name)
    net = real_esrgan(path) if name.endswith(".bin") else load_network(name)
    if net.scale != scale:
        raise ValueError(f"{name} enlarges by {net.scale}, not by {scale}")
    net = net.to(device)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    tile = choose_tile(None, net)
    if isinstance(net, PeerNetwork):
        return Method(path.stem, digest, lambda photo: net.restore(photo.lq.to(device), tile=tile).image.cpu())
    return Method(name, f"{digest} {net.sampling} {color} {seed}", iter_method(net, tile, color, seed, device))


def real_esrgan(path: Path) -> PeerNetwork:
    """Real-ESRGAN x4plus from its ncnn weights, restored with tiles as all others."""
    import spandrel

    return PeerNetwork(spandrel.MAIN_REGISTRY.load(load_real_esrgan(path).state_dict()))


def iter_method(
    net: iter_arch.ITER, tile: int | None, color: str, seed: int, device: torch.device
) -> Callable[[Photo], Tensor]:
    """Restores by an ITER with the sampling of its weights."""

    def restore(photo: Photo) -> Tensor:
        lq = photo.lq.to(device)
        return match_color(net.restore(lq, seed=seed, tile=tile).image, lq, color).cpu()

    return restore
