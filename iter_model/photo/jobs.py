"""A list of photos from file to file: read ahead, restored in groups, written behind; a failure stops no others."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from basicsr_compat.images import Metadata, Photo, UnreadableImage
from iter_model.photo.folders import Job
from iter_model.photo.metadata import corrected
from iter_model.photo.progress import bar, say
from iter_model.photo.reader import FAILURES, Item, grouped, read_ahead
from iter_model.photo.restorer import Restorer
from iter_model.photo.writer import write_photo

# Photos that are read ahead while one is restored.
READ_AHEAD = 2


class Output(NamedTuple):
    """How results are written. quality: of lossy kinds, see `write_photo`. The color profile is always kept."""

    quality: int | None = None
    keeps_metadata: bool = True


def restore_files(restorer: Restorer, jobs: list[Job], output: Output | None = None) -> int:
    """Restore every source of ``jobs`` to its target; name those that fail, in the order of ``jobs``, and count them.

    One thread reads ahead and one writes while the networks run. Where this is interrupted, photos that are restored
    are still written, and no others are begun.

    Args:
        restorer: network and options.
        jobs: the suffix of each target is the kind of file that is written, one of `WRITERS`.
        output: how results are written.

    Returns:
        How many failed.
    """
    reader, writer = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(1, "write")
    behind = _WriteBehind(writer, output or Output())
    try:
        with bar(len(jobs)) as progress:
            items = read_ahead(reader, jobs, max(READ_AHEAD, restorer.batch))
            for group in grouped(items, restorer.images_together):
                outcomes = _restore_each(restorer, group)
                behind.settle()
                for item, outcome in zip(group, outcomes, strict=True):
                    behind.take(item.job, outcome)
                progress.update(len(group))
            behind.settle()
    finally:
        reader.shutdown(cancel_futures=True)
        writer.shutdown()
    return behind.failed


class _WriteBehind:
    """Writes results in a thread, at most one group of them while the next is restored; counts and names failures."""

    def __init__(self, writer: ThreadPoolExecutor, output: Output) -> None:
        self.failed = 0
        self._output = output
        self._writer = writer
        self._writes: list[tuple[Path, Future[None]]] = []

    def take(self, job: Job, outcome: Photo | Exception) -> None:
        """Write what a photo was restored to, or say why it was not."""
        if isinstance(outcome, Exception):
            self._report(job.source, outcome)
        else:
            self._writes.append((job.source, self._writer.submit(_write, job.target, outcome, self._output)))

    def settle(self) -> None:
        """Wait for what is being written."""
        while self._writes:
            source, write = self._writes.pop(0)
            try:
                write.result()
            except FAILURES as error:
                self._report(source, error)

    def _report(self, source: Path, error: Exception) -> None:
        self.failed += 1
        # An UnreadableImage names the file itself.
        named = "" if isinstance(error, UnreadableImage) else f"{source}: "
        say(f"not restored: {named}{str(error) or type(error).__name__}")


def _write(target: Path, photo: Photo, output: Output) -> None:
    metadata = corrected(photo.metadata, photo.rgb.shape[:2]) if output.keeps_metadata else Metadata()
    target.parent.mkdir(parents=True, exist_ok=True)
    write_photo(target, photo._replace(metadata=metadata), target.suffix[1:], output.quality)


def _restore_each(restorer: Restorer, group: list[Item]) -> list[Photo | Exception]:
    """What becomes of each photo of a group: restored, or why not. A group that fails is tried one by one."""
    if isinstance(group[0].photo, Exception):
        return [group[0].photo]
    name = str(group[0].job.source) + (f" and {len(group) - 1} more" if len(group) > 1 else "")
    try:
        return restorer.restore_group(
            [item.photo for item in group], on_retry=lambda remedy: say(f"{name}: out of GPU memory, {remedy}")
        )
    except FAILURES as error:
        if len(group) == 1:
            return [error]
    return [outcome for item in group for outcome in _restore_each(restorer, [item])]
