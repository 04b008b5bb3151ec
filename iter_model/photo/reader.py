"""Reading photos ahead of the networks, and putting neighbors of equal size together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from basicsr_compat.images import MAX_PIXELS, Photo, read_photo
from iter_model.photo.folders import Job

# What a single photo may fail with; the others go on.
FAILURES = (ValueError, OSError, RuntimeError, MemoryError)
Size = tuple[int, int]


class Item(NamedTuple):
    """A photo on its way: what was read, or why it could not be."""

    job: Job
    photo: Photo | Exception

    @property
    def size(self) -> Size | None:
        """(height, width); None where it stands alone: it could not be read, or is one of several frames."""
        if isinstance(self.photo, Exception) or self.photo.frames > 1:
            return None
        return self.photo.rgb.shape[:2]


def read_ahead(
    reader: ThreadPoolExecutor, jobs: Iterable[Job], count: int, max_pixels: int = MAX_PIXELS
) -> Iterator[Item]:
    """Read the sources of ``jobs`` in their order, up to ``count`` of them before they are asked for; one that is
    that of several jobs in a row, once."""
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
    """Neighbors of equal size, as many as go through together; what has no size stands alone.

    Args:
        items: photos in their order.
        together: of a size, how many go through together; asked anew for every group.
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
