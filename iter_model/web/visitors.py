"""The visitors of `basicsr web`: the photo and the files of each, kept apart and deleted after use."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from basicsr_compat.images import Photo
from iter_model.web.engine import Result

# Seconds after which an idle visitor is forgotten.
IDLE = 3600
# Visitors whose photos are held in memory; the one who has been idle for the longest is forgotten first.
MOST = 16
# Most files made for one visitor, and their bytes; the oldest are deleted first, but never the last few.
MOST_FILES, MOST_FILE_BYTES, LAST_FILES = 64, 1 << 30, 3
# Most uploads of all visitors that are nobody's photo, and their bytes; older ones than these seconds may be deleted.
MOST_UPLOADS, MOST_UPLOAD_BYTES, UPLOAD_SECONDS = 64, 1 << 30, 60

# Gradio's hash of the session; visitors without a session share one.
Key = str | None


@dataclass
class Visitor:
    """One open page.

    folder: for the visitor's files, under a name that nobody can guess.
    upload: the file that was dropped.
    photo: its content; None where it cannot be used.
    known: what `Engine.restore` knows of the photo.
    result: the one that is shown.
    download: its file.
    variants: results to choose from.
    seen: when the visitor was active last, by time.monotonic().
    stop: ends the current computation.
    """

    folder: Path
    upload: Path | None = None
    photo: Photo | None = None
    known: dict[Any, Any] = field(default_factory=dict)
    result: Result | None = None
    download: Path | None = None
    variants: list[Result] = field(default_factory=list)
    seen: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        """The name of the photo's file."""
        return "" if self.upload is None else self.upload.name

    def begin(self) -> threading.Event:
        """Begin a new computation and stop the one before; returns the event that stops the new one."""
        self.stop.set()
        self.stop = threading.Event()
        return self.stop

    def new_file(self, name: str) -> Path:
        """The path for a new file of this name, in a folder of its own, so that its address is new.

        Deletes the oldest files where there are too many.
        """
        made = sorted(self.folder.glob("*/*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        total = 0
        for number, path in enumerate(made):
            total += path.stat().st_size
            if path != self.download and number >= LAST_FILES and (number >= MOST_FILES or total > MOST_FILE_BYTES):
                shutil.rmtree(path.parent)
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir(parents=True)
        return folder / name


class Visitors:
    """All visitors, by their keys. root: the folder of their files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._visitors: dict[Key, Visitor] = {}
        self._lasting: set[Path] = set()
        self._lock = threading.Lock()

    def of(self, key: Key) -> Visitor:
        """The visitor of a key, a new one if needed; forgets visitors who are idle or too many."""
        now = time.monotonic()
        with self._lock:
            visitor = self._visitors.pop(key, None) or self._new()
            visitor.seen = now
            self._visitors[key] = visitor  # the last of the dict is who was seen last
            idle = {key for key, one in self._visitors.items() if now - one.seen > IDLE}
            for gone in idle.union(list(self._visitors)[:-MOST]):
                self._forget(gone)
        return visitor

    def take(self, key: Key, upload: Path) -> Visitor:
        """The visitor of a key, who has dropped this file; forgets everything about the file before."""
        self.of(key)
        with self._lock:
            self._forget(key, keep=upload)
            visitor = self._visitors[key] = self._new(upload)
            visitor.seen = time.monotonic()
        return visitor

    def new_upload(self, name: str) -> Path:
        """The path for a new file of this name that a visitor will take."""
        folder = self.root / secrets.token_hex(16)
        folder.mkdir()
        return folder / name

    def keep(self) -> None:
        """Never delete the files that lie below the root now: they belong to the page itself."""
        self._lasting = {*self.root.rglob("*")}

    def has_room(self, size: int) -> bool:
        """Whether another upload of this many bytes fits; deletes old uploads that are nobody's photo to make room."""
        with self._lock:
            uploads = sorted(self._uploads(), key=lambda one: one[1].st_mtime)
            total, count = size + sum(found.st_size for _, found in uploads), len(uploads)
            for path, found in uploads:
                if count < MOST_UPLOADS and total <= MOST_UPLOAD_BYTES:
                    break
                if time.time() - found.st_mtime < UPLOAD_SECONDS:
                    return False
                _delete(path)
                total, count = total - found.st_size, count - 1
        return True

    def _uploads(self) -> Iterator[tuple[Path, os.stat_result]]:
        """The files that belong neither to the page nor to a visitor."""
        folders = {visitor.folder for visitor in self._visitors.values()}
        photos = {visitor.upload for visitor in self._visitors.values()}
        for path in self.root.rglob("*"):
            if path in self._lasting or path in photos or folders.intersection(path.parents):
                continue
            with contextlib.suppress(FileNotFoundError):
                if not path.is_dir():
                    yield path, path.stat()

    def forget(self, key: Key) -> None:
        """Stop the computations of a visitor and delete the visitor's files."""
        with self._lock:
            self._forget(key)

    def _new(self, upload: Path | None = None) -> Visitor:
        return Visitor(self.root / secrets.token_hex(16), upload)

    def _forget(self, key: Key, keep: Path | None = None) -> None:
        visitor = self._visitors.pop(key, None)
        if visitor is None:
            return
        visitor.stop.set()
        shutil.rmtree(visitor.folder, ignore_errors=True)
        # Gradio stores equal files of several visitors as one file.
        used = {keep, *(other.upload for other in self._visitors.values())}
        if visitor.upload is not None and visitor.upload not in used:
            _delete(visitor.upload)


def _delete(path: Path) -> None:
    """Delete a file, and its folder if that is empty then."""
    with contextlib.suppress(OSError):
        path.unlink()
        path.parent.rmdir()
