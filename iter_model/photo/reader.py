"""Reads photos ahead of the networks, and groups neighbors of equal size."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from basicsr_compat.images import MAX_PIXELS, Photo, read_photo
from iter_model.photo.folders import Job

# Errors of a single photo; the others are still restored.
FAILURES = (ValueError, OSError, RuntimeError, MemoryError)
Size = tuple[int, int]


class Item(NamedTuple):
    """A job and its photo, or the error that reading it raised."""

    job: Job
    photo: Photo | Exception

    @property
    def size(self) -> Size | None:
        """(height, width); None for a photo that forms its own group: an unreadable one, or one with several frames."""
        if isinstance(self.photo, Exception) or self.photo.frames > 1:
            return None
        return self.photo.rgb.shape[:2]


def read_ahead(
    reader: ThreadPoolExecutor, jobs: Iterable[Job], count: int, max_pixels: int = MAX_PIXELS
) -> Iterator[Item]:
    """Read the sources of ``jobs`` in order, up to ``count`` ahead; a source of successive jobs is read once."""
    queue: deque[tuple[Job, Future[Photo]]] = deque()
    last: tuple[Path, Future[Photo]] | None = None

    def first() -> Item:
        job, read = queue.popleft()
        try:
            return Item(job, read.result())
        except FAILURES as error:
            return Item(job, error)

    for job in jobs:
        if last is None or last[0] != job.source:
            last = job.source, reader.submit(read_photo, job.source, max_pixels=max_pixels)
        queue.append((job, last[1]))
        if len(queue) > count:
            yield first()
    while queue:
        yield first()


def grouped(items: Iterable[Item], together: Callable[[Size], int]) -> Iterator[list[Item]]:
    """Group neighbors of equal size; photos without a size are alone in their group.

    Args:
        items: photos in order.
        together: called with a size for every group; returns the number of photos that the network takes together.
    """
    group: list[Item] = []
    for item in items:
        if group and (item.size is None or item.size != group[0].size):
            yield group
            group = []
        group.append(item)
        if item.size is None or len(group) >= together(item.size):
            yield group
            group = []
    if group:
        yield group
