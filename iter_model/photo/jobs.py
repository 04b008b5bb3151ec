"""Restores a list of photos from file to file: reads ahead, restores with a worker per device, and writes behind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any, NamedTuple

from basicsr_compat.images import MAX_PIXELS, Frame, Metadata, Photo, read_frames
from iter_arch import Prepared, Restored
from iter_model.peer import PeerRestored
from iter_model.photo.controlled import Controls, Extras
from iter_model.photo.folders import Job, oversized
from iter_model.photo.metadata import corrected
from iter_model.photo.processes import Processes
from iter_model.photo.progress import Reporter
from iter_model.photo.reader import FAILURES, Item, grouped, read_ahead
from iter_model.photo.restorer import Outcome, Restorer
from iter_model.photo.writer import WRITERS, fits, left_out, write_frames, write_photo

# Photos that are read ahead while one is restored.
READ_AHEAD = 2


class Output(NamedTuple):
    """How photos are read and results written. The color profile is always kept.

    quality: of lossy kinds, see `write_photo`.
    keeps_metadata: whether EXIF, XMP, and the like are written too.
    all_frames: whether all frames of animations and pages of documents are restored, not only the first.
    is_auto: whether results may become another kind of file where their own is too small for them.
    max_pixels: most pixels of a photo.
    """

    quality: int | None = None
    keeps_metadata: bool = True
    all_frames: bool = False
    is_auto: bool = False
    max_pixels: int = MAX_PIXELS


class Result(NamedTuple):
    """A restored photo.

    frames: one, or those of an animation or document.
    start_step: T_s of the first frame.
    seconds: how long it took.
    extras: what is written beside it, if anything.
    """

    frames: list[Frame]
    start_step: int
    seconds: float
    extras: Extras | None = None


def restore_files(
    restorers: Sequence[Restorer],
    jobs: Sequence[Job],
    output: Output | None = None,
    reporter: Reporter | None = None,
    processes: Processes | None = None,
    controls: Controls | None = None,
) -> int:
    """Restore every source of ``jobs`` to its target; report those that fail, and count them.

    One thread reads ahead, one writes, and one per restorer takes the next photos from the same queue. The results do
    not depend on the number of restorers. When this is interrupted, photos that are restored are still written; no
    others are started or finished.

    Args:
        restorers: one for each device.
        jobs: the suffix of each target is its kind of file, one of `WRITERS`.
        output: how photos are read and results written.
        reporter: reports on every photo.
        processes: those that share ``jobs``; this one restores its share.
        controls: control by tokens, and what is written beside the results; photos are then restored one by one.

    Returns:
        The number of photos that failed in this process.
    """
    output, reporter, processes = output or Output(), reporter or Reporter(), processes or Processes()
    reader, writer = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(1, "write")
    behind = _WriteBehind(writer, output, reporter, controls)
    workers = _Workers(restorers, output, reporter, controls)
    reporter.begin(len(jobs))
    try:
        ahead = max(READ_AHEAD, *(restorer.batch for restorer in restorers))
        items = read_ahead(reader, processes.share(jobs), ahead, output.max_pixels)
        for group in grouped(items, workers.images_together):
            workers.begin(group)
            while workers.are_busy:
                behind.take(workers.finished())
        while workers.pending:
            behind.take(workers.finished())
        behind.settle()
    finally:
        workers.stop()
        reader.shutdown(cancel_futures=True)
        writer.shutdown()
        reporter.end()
    return behind.failed


class _Workers:
    """One thread per restorer; each takes a group of photos when it is free."""

    def __init__(
        self, restorers: Sequence[Restorer], output: Output, reporter: Reporter, controls: Controls | None
    ) -> None:
        self.pending: dict[Future[list[Result | Exception]], list[Item]] = {}
        self._restorers, self._output, self._reporter, self._controls = restorers, output, reporter, controls
        # For each restorer, its last source and the `known` of its Control.
        self._known: list[tuple[Path | None, dict[Any, Prepared]]] = [(None, {})] * len(restorers)
        self._free: SimpleQueue[int] = SimpleQueue()
        for index in range(len(restorers)):
            self._free.put(index)
        self._pool = ThreadPoolExecutor(len(restorers), "restore")
        self._stopped = Event()

    @property
    def are_busy(self) -> bool:
        """Whether every worker has something to do."""
        return len(self.pending) >= len(self._restorers)

    def images_together(self, size: tuple[int, int]) -> int:
        """See `Restorer.images_together`; valid for every device."""
        return min(restorer.images_together(size) for restorer in self._restorers) if self._controls is None else 1

    def begin(self, group: list[Item]) -> None:
        """Let the next free worker restore a group."""
        self.pending[self._pool.submit(self._restore, group)] = group

    def finished(self) -> list[tuple[Job, Result | Exception]]:
        """Wait for a group; returns the result or the error of each of its photos."""
        first = next(iter(wait(self.pending, return_when=FIRST_COMPLETED).done))
        return [(item.job, one) for item, one in zip(self.pending.pop(first), first.result(), strict=True)]

    def stop(self) -> None:
        """Start nothing more, and stop what is running at its next tile."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def _restore(self, group: list[Item]) -> list[Result | Exception]:
        index = self._free.get()
        try:
            return self._restore_each(index, group)
        finally:
            self._free.put(index)

    def _restore_each(self, index: int, group: list[Item]) -> list[Result | Exception]:
        """The result or the error of each photo of a group. A group that fails is tried one by one."""
        job, first = group[0]
        if isinstance(first, Exception):
            return [first]
        photos = [item.photo for item in group if not isinstance(item.photo, Exception)]  # a failure stands alone
        try:
            if first.frames > 1 and self._output.all_frames:
                return [self._restore_frames(index, job)]
            if self._controls is not None:
                return [self._restore_controlled(index, job, first, self._controls)]
            start = time.perf_counter()
            outcomes = self._restore_photos(index, job, photos)
            seconds = (time.perf_counter() - start) / len(group)
            return [Result([Frame(one.photo, None, None, False)], one.start_step, seconds) for one in outcomes]
        except FAILURES as error:
            if len(group) == 1:
                return [_without_traceback(error)]
        return [outcome for item in group for outcome in self._restore_each(index, [item])]

    def _restore_frames(self, index: int, job: Job) -> Result:
        kind = job.target.suffix[1:]
        if WRITERS[kind].save_frames is None:
            raise ValueError(f"a {kind} file holds no animation; use --ext auto, or --frames first")
        start, frames, start_step = time.perf_counter(), [], None
        for frame in read_frames(job.source, max_pixels=self._output.max_pixels):
            outcome = self._restore_photos(index, job, [frame.photo])[0]
            start_step = outcome.start_step if start_step is None else start_step
            frames.append(frame._replace(photo=outcome.photo))
        return Result(frames, start_step or 0, time.perf_counter() - start)

    def _restore_controlled(self, index: int, job: Job, photo: Photo, controls: Controls) -> Result:
        start, restorer = time.perf_counter(), self._restorers[index]
        if self._known[index][0] != job.source:
            self._known[index] = job.source, {}
        control = controls.control(job, photo, restorer, self._known[index][1])
        told = self._told(index, job.source.name, str(job.source))
        outcome = restorer.restore_controlled(photo, control, **told)
        told = self._told(index, f"maps of {job.source.name}", str(job.source))
        extras = controls.extras(photo, restorer, control, outcome, **told)
        frames = [Frame(outcome.photo, None, None, False)]
        return Result(frames, outcome.start_step, time.perf_counter() - start, extras)

    def _restore_photos(self, index: int, job: Job, photos: list[Photo]) -> list[Outcome[Restored | PeerRestored]]:
        name = f"{job.source}" + (f" and {len(photos) - 1} more" if len(photos) > 1 else "")
        return self._restorers[index].restore_group(photos, **self._told(index, job.source.name, name))

    def _told(self, index: int, title: str, name: str) -> dict[str, Any]:
        """The arguments by which a Restorer reports, and is stopped."""
        return {
            "progress": self._reporter.photo_bar(index, title),
            "cancelled": self._stopped.is_set,
            "on_retry": lambda remedy: self._reporter.warn(f"{name}: out of GPU memory, {remedy}"),
        }


def _without_traceback(error: Exception) -> Exception:
    """An error that a future can hold as its result: its frames would hold the photo, and the future itself in turn."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    return error


class _WriteBehind:
    """Writes results in a thread, at most one group of them while others are restored; counts failures."""

    def __init__(
        self, writer: ThreadPoolExecutor, output: Output, reporter: Reporter, controls: Controls | None
    ) -> None:
        self.failed = 0
        self._controls = controls
        self._output = output
        self._reporter = reporter
        self._writer = writer
        self._writes: list[tuple[Job, Result, Future[Path]]] = []

    def take(self, outcomes: list[tuple[Job, Result | Exception]]) -> None:
        """Write what photos were restored to, or say why they were not, once the group before is written."""
        self.settle()
        for job, outcome in outcomes:
            if isinstance(outcome, Exception):
                self._fail(job.source, outcome)
            else:
                self._writes.append((job, outcome, self._writer.submit(self._write, job, outcome)))

    def settle(self) -> None:
        """Wait for what is being written."""
        while self._writes:
            job, result, write = self._writes.pop(0)
            try:
                target = write.result()
            except FAILURES as error:
                self._fail(job.source, error)
                continue
            height, width = result.frames[0].photo.rgb.shape[:2]
            facts = {"width": width, "height": height, "frames": len(result.frames)}
            if self._controls is not None:
                facts |= self._controls.files_of(job) | ({} if job.seed is None else {"seed": job.seed})
            seconds = round(result.seconds, 3)
            self._reporter.restored(job.source, target, **facts, seconds=seconds, start_step=result.start_step)

    def _fail(self, source: Path, error: Exception) -> None:
        self.failed += 1
        self._reporter.failed(source, error)

    def _write(self, job: Job, result: Result) -> Path:
        first, target = result.frames[0].photo, job.target
        if self._output.is_auto and not fits(first.rgb.shape[:2], target.suffix[1:]):
            target = oversized(target)
            self._reporter.say(f"{job.source} becomes {target.name}: too large for a {job.target.suffix[1:]} file")
        kind = target.suffix[1:]
        frames = [frame._replace(photo=self._described(frame.photo)) for frame in result.frames]
        missing = left_out(frames[0].photo, kind)
        if missing:
            self._reporter.say(f"{job.source}: {' and '.join(missing)} left out: a {kind} file does not hold it")
        if len(frames) == 1 and first.frames > 1:
            self._reporter.say(f"{job.source}: the first of {first.frames} frames (--frames all restores them all)")
        target.parent.mkdir(parents=True, exist_ok=True)
        if len(frames) > 1:
            write_frames(target, frames, kind, self._output.quality)
        else:
            write_photo(target, frames[0].photo, kind, self._output.quality)
        if self._controls is not None and result.extras is not None:
            self._controls.write(job, result.extras)
        return target

    def _described(self, photo: Photo) -> Photo:
        keeps = self._output.keeps_metadata
        return photo._replace(metadata=corrected(photo.metadata, photo.rgb.shape[:2]) if keeps else Metadata())
