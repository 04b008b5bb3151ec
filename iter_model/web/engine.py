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
from iter_arch import ITER, Prepared, Restored, SamplingConfig, Uncertainty
from iter_arch.color import ColorMethod
from iter_arch.precision import choose_dtype
from iter_arch.progress import DECODE, ENCODE, REFINE, OnProgress
from iter_model.commands.upscale_options import DEFAULT_LEVELS
from iter_model.photo.devices import choose_batch, choose_tile
from iter_model.photo.restorer import Cancelled, Restorer
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

    photo: None where its pixels are not kept. tokens: (1, h, w) int64. good: (h, w), p_e(good) of S_l.
    """

    photo: Photo | None
    settings: Settings
    tokens: Tensor
    start_step: int
    good: Tensor
    film: Film


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
class PhotoNet:
    """An ITER for one photo, as a `Restorer` uses it: E_l and the first evaluation run once, the steps are recorded.

    known: what is known of the photo by (tile, network). control: arguments of `ITER.restore` that a Restorer does not
    give, or others in their place.
    """

    net: ITER
    known: dict[Any, Prepared]
    control: dict[str, Any]
    film: Film = dataclasses.field(default_factory=Film)
    restored: Restored | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def prepare(self, lq: Tensor, tile: int | None, batch: int, on_progress: OnProgress) -> Prepared:
        """`ITER.prepare`, once for a photo."""
        key = tile, self.net
        if key not in self.known:
            whole = ENCODE + REFINE * self.net.sampling.steps + DECODE
            self.known[key] = self.net.prepare(
                lq, tile=tile, batch=batch, on_progress=lambda done, total: on_progress(done, total * whole // ENCODE)
            )
        return self.known[key]

    def restore(self, lq: Tensor, *, tile: int | None, batch: int, on_progress: OnProgress, **options: Any) -> Restored:
        """`ITER.restore`."""
        prepared = self.prepare(lq, tile, batch, on_progress)
        options |= {"batch": batch, "on_progress": on_progress, "on_step": self.film} | self.control
        self.restored = self.net.restore(prepared, **options)
        return self.restored


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
        with self._lock:
            job.check()
            net = PhotoNet(self.net(settings.model), known, control)
            restored = self._restorer(net, settings).restore(photo, progress=job.progress, cancelled=job.stop.is_set)
        tokens, start_step, good = net.restored.tokens, net.restored.start_step, net.restored.good
        return Result(restored, settings, tokens, int(start_step), good[0].cpu(), net.film)

    def uncertainty(self, photo: Photo, known: dict, settings: Settings, job: Job, samples: int) -> Uncertainty:
        """`iter_arch.uncertainty` of a photo; arguments and errors as for `restore`."""
        with self._lock:
            job.check()
            net = PhotoNet(self.net(settings.model), known, {})
            restorer = self._restorer(net, settings)
            lq = torch.from_numpy(photo.rgb).permute(2, 0, 1)[None].to(self.device)
            return iter_arch.uncertainty(
                net.net,
                lq,
                samples,
                settings.seed,
                config=restorer.config,
                prepared=net.prepare(lq, restorer.tile, restorer.batch, job),
                color_correction=settings.color_correction,
                color_levels=DEFAULT_LEVELS,
                batch=restorer.batch,
                on_progress=job,
            )

    def _restorer(self, net: PhotoNet, settings: Settings) -> Restorer:
        tile = choose_tile(None, net)
        return Restorer(
            net=net,
            config=_sampling(net.sampling, settings),
            seed=settings.seed,
            tile=tile,
            batch=choose_batch(None, net.net, tile, self.device),
            color_correction=settings.color_correction,
            color_levels=DEFAULT_LEVELS,
        )


def _sampling(defaults: SamplingConfig, settings: Settings) -> SamplingConfig:
    """ValueError says what is impossible, in the words of the page."""
    try:
        return dataclasses.replace(defaults, alpha=settings.alpha, fidelity=settings.fidelity, steps=settings.steps)
    except ValueError as error:
        raise ValueError(str(error).replace("val.sampling.", "")) from None
