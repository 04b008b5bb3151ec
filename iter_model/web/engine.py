"""What the page of `basicsr web` computes: one job at a time, and nothing twice (ITER, arXiv:2312.05616)."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

import iter_arch
from basicsr_compat.images import Photo
from iter_arch import ITER, Prepared, Restored, SamplingConfig, Uncertainty
from iter_arch.color import ColorMethod
from iter_arch.precision import choose_dtype
from iter_arch.progress import OnProgress
from iter_model.commands.upscale_options import DEFAULT_LEVELS
from iter_model.photo.devices import choose_batch, choose_tile, choose_whole
from iter_model.photo.restorer import Cancelled, Control, Restorer
from iter_model.web.film import Film


class Settings(NamedTuple):
    """What a visitor chooses, in the order of the page's fields; see `SamplingConfig` for the first three."""

    alpha: float
    fidelity: float
    steps: int
    seed: int
    color_correction: ColorMethod
    model: str


class Result(NamedTuple):
    """How a photo was restored. restored: without its image; film: the steps."""

    settings: Settings
    restored: Restored
    film: Film

    @property
    def tokens(self) -> Tensor:
        """(1, h, w) int64."""
        return self.restored.tokens


@dataclasses.dataclass
class Job:
    """What a visitor waits for. stop: ends it after the current batch of tiles; progress: called with (done, total)."""

    stop: threading.Event
    progress: OnProgress

    def check(self) -> None:
        """Raise Cancelled if the job was stopped."""
        if self.stop.is_set():
            raise Cancelled

    def part(self, number: int, parts: int) -> Job:
        """One of several equal parts of this job."""
        return Job(self.stop, lambda done, total: self.progress(number * total + done, parts * total))

    def __call__(self, done: int, total: int) -> None:
        self.check()
        self.progress(done, total)


@dataclasses.dataclass
class Engine:
    """Restores photos for all visitors, with some models only, which stay loaded once they are used.

    models: names or paths, as for `iter_arch.load_pretrained`. device: of all models.
    """

    models: list[str]
    device: torch.device
    _loaded: dict[str, ITER] = dataclasses.field(default_factory=dict)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def net(self, name: str) -> ITER:
        """The network of one of ``models``, on the device. Raises ValueError for another name."""
        if name not in self.models:
            raise ValueError(f"model={name!r} must be one of {', '.join(self.models)}")
        if name not in self._loaded:
            self._loaded[name] = iter_arch.load_pretrained(name).to(self.device, choose_dtype("auto", self.device))
        return self._loaded[name]

    def defaults(self, name: str) -> Settings:
        """The settings that a model's weights are tuned for."""
        with self._lock:
            sampling = self.net(name).sampling
        return Settings(sampling.alpha, sampling.fidelity, sampling.steps, 0, "wavelet", name)

    def restore(
        self, photo: Photo, known: dict[Any, Prepared], settings: Settings, job: Job, **control: Any
    ) -> tuple[Photo, Result]:
        """Restore a photo as `basicsr upscale` does.

        Args:
            known: see `Control`; empty for a new photo.
            control: alpha as a map, tokens of an earlier result, and redraw, see `ITER.restore`.

        Raises:
            Cancelled: the job was stopped.
            ValueError: impossible settings.
        """
        film = Film()
        with self._lock:
            job.check()
            outcome = self._restorer(settings).restore_controlled(
                photo,
                Control(known=known, on_step=film, **control),
                progress=job.progress,
                cancelled=job.stop.is_set,
            )
        return outcome.photo, Result(settings, outcome.restored, film)

    def uncertainty(
        self, photo: Photo, known: dict[Any, Prepared], settings: Settings, job: Job, samples: int
    ) -> Uncertainty:
        """`iter_arch.uncertainty` of a photo, from ``samples`` results; see `restore` for the rest."""
        with self._lock:
            job.check()
            return self._restorer(settings).uncertainty(
                photo, samples, control=Control(known=known), progress=job.progress, cancelled=job.stop.is_set
            )

    def _restorer(self, settings: Settings) -> Restorer:
        net = self.net(settings.model)
        tile = choose_tile(None, net)
        return Restorer(
            net=net,
            config=_sampling(net.sampling, settings),
            seed=settings.seed,
            tile=tile,
            batch=choose_batch(None, net, tile, self.device),
            color_correction=settings.color_correction,
            color_levels=DEFAULT_LEVELS,
            whole=choose_whole(None, net),
        )


def _sampling(defaults: SamplingConfig, settings: Settings) -> SamplingConfig:
    """The settings as a SamplingConfig. Raises ValueError in the words of the page."""
    try:
        return dataclasses.replace(defaults, alpha=settings.alpha, fidelity=settings.fidelity, steps=settings.steps)
    except ValueError as error:
        raise ValueError(str(error).replace("val.sampling.", "")) from None
