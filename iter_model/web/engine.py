"""What the page of `basicsr web` computes: one job at a time, of what is known already nothing twice (ITER,
arXiv:2312.05616)."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

import iter_arch
from basicsr_compat.images import Photo
from iter_arch import ITER, Restored, SamplingConfig, Uncertainty
from iter_arch.color import ColorMethod
from iter_arch.precision import choose_dtype
from iter_arch.progress import OnProgress
from iter_model.commands.upscale_options import DEFAULT_LEVELS
from iter_model.photo.devices import choose_batch, choose_tile, choose_whole
from iter_model.photo.restorer import Cancelled, Control, Restorer
from iter_model.web.film import Film


class Settings(NamedTuple):
    """What a visitor chooses, in the order of the page's fields."""

    alpha: float
    fidelity: float
    steps: int
    seed: int
    color_correction: ColorMethod
    model: str


class Result(NamedTuple):
    """A restored photo and how it came about.

    photo: None where its pixels are not kept. restored: without its image.
    """

    photo: Photo | None
    settings: Settings
    restored: Restored
    film: Film

    @property
    def tokens(self) -> Tensor:
        """(1, h, w) int64."""
        return self.restored.tokens


@dataclasses.dataclass
class Job:
    """What a visitor waits for: ``stop`` ends it with the next batch of tiles, ``progress`` is told how far it is."""

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
    """Restores photos for all visitors with ``models``, the only ones that there are; once used they stay loaded."""

    models: list[str]
    device: torch.device
    _loaded: dict[str, ITER] = dataclasses.field(default_factory=dict)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def net(self, name: str) -> ITER:
        """One of ``models``, on the device; ValueError for another name."""
        if name not in self.models:
            raise ValueError(f"model={name!r} must be one of {', '.join(self.models)}")
        if name not in self._loaded:
            self._loaded[name] = iter_arch.load_pretrained(name).to(self.device, choose_dtype("auto", self.device))
        return self._loaded[name]

    def defaults(self, name: str) -> Settings:
        """What a model's weights are tuned for."""
        with self._lock:
            sampling = self.net(name).sampling
        return Settings(sampling.alpha, sampling.fidelity, sampling.steps, 0, "wavelet", name)

    def restore(self, photo: Photo, known: dict, settings: Settings, job: Job, **control: Any) -> Result:
        """Restore a photo as `basicsr upscale` does.

        Args:
            known: what is known of this photo, empty at first; this adds to it.
            control: ``alpha`` as a map, ``tokens`` of an earlier result, ``redraw``: as for `ITER.restore`.

        Raises:
            Cancelled: the job was stopped.
            ValueError: impossible settings.
        """
        film = Film()
        with self._lock:
            job.check()
            outcome = self._restorer(settings).restore_group(
                [photo],
                control=Control(known=known, on_step=film, **control),
                progress=job.progress,
                cancelled=job.stop.is_set,
            )[0]
        return Result(outcome.photo, settings, outcome.restored, film)

    def uncertainty(self, photo: Photo, known: dict, settings: Settings, job: Job, samples: int) -> Uncertainty:
        """`iter_arch.uncertainty` of a photo; arguments and errors as for `restore`."""
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
    """ValueError says what is impossible, in the words of the page."""
    try:
        return dataclasses.replace(defaults, alpha=settings.alpha, fidelity=settings.fidelity, steps=settings.steps)
    except ValueError as error:
        raise ValueError(str(error).replace("val.sampling.", "")) from None
