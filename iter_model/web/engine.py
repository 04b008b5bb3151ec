"""What the page of `basicsr web` computes: one network at a time, one job at a time (ITER, arXiv:2312.05616)."""

from __future__ import annotations

import dataclasses
import threading
from typing import NamedTuple

import torch

from basicsr_compat.images import Photo
from iter_arch import ITER, load_pretrained
from iter_arch.color import ColorMethod
from iter_arch.precision import choose_dtype
from iter_arch.progress import OnProgress
from iter_model.commands.upscale_options import DEFAULT_LEVELS
from iter_model.photo.restorer import Cancelled, Restorer, choose_batch, choose_tile


class Settings(NamedTuple):
    """What a visitor chooses, in the order of the page's fields."""

    alpha: float
    fidelity: float
    steps: int
    seed: int
    color_correction: ColorMethod
    model: str


@dataclasses.dataclass
class Engine:
    """Restores photos for all visitors, with one of ``models``, the only ones that there are.

    The network in use stays loaded; another takes its place.
    """

    models: list[str]
    device: torch.device
    _loaded: tuple[str, ITER] | None = None
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def net(self, name: str) -> ITER:
        """One of ``models``, on the device; ValueError for another name."""
        if name not in self.models:
            raise ValueError(f"model={name!r} must be one of {', '.join(self.models)}")
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None
            net = load_pretrained(name).to(self.device, choose_dtype("auto", self.device))
            self._loaded = name, net
        return self._loaded[1]

    def defaults(self, name: str) -> Settings:
        """What a model's weights are tuned for."""
        with self._lock:
            sampling = self.net(name).sampling
        return Settings(sampling.alpha, sampling.fidelity, sampling.steps, 0, "wavelet", name)

    def restore(self, photo: Photo, settings: Settings, stop: threading.Event, progress: OnProgress) -> Photo:
        """Restore a photo as `basicsr upscale` does.

        Raises:
            Cancelled: ``stop`` was set.
            ValueError: impossible settings.
        """
        with self._lock:
            if stop.is_set():
                raise Cancelled
            restorer = self._restorer(settings)
            return restorer.restore(photo, progress=progress, cancelled=stop.is_set)

    def _restorer(self, settings: Settings) -> Restorer:
        net = self.net(settings.model)
        tile = choose_tile(None, net)
        chosen = {"alpha": settings.alpha, "fidelity": settings.fidelity, "steps": settings.steps}
        return Restorer(
            net=net,
            config=dataclasses.replace(net.sampling, **chosen),
            seed=settings.seed,
            tile=tile,
            batch=choose_batch(None, net, tile, self.device),
            color_correction=settings.color_correction,
            color_levels=DEFAULT_LEVELS,
        )
