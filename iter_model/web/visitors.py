"""Who has the page of `basicsr web` open: each visitor's photo and files, kept apart and deleted after use."""

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

# Seconds after which a visitor who does nothing is forgotten.
IDLE = 3600
# Visitors whose photos are held in memory; the one who did nothing for the longest is forgotten first.
MOST = 16
# Of one visitor, files made for the page and their bytes; the oldest are deleted first. Of what is shown, always these.
MOST_FILES, MOST_FILE_BYTES, LAST_FILES = 64, 1 << 30, 3
# Of all together, uploads that are nobody's photo (yet), and their bytes; those older than this many seconds may go.
MOST_UPLOADS, MOST_UPLOAD_BYTES, UPLOAD_SECONDS = 64, 1 << 30, 60


@dataclass
class Visitor:
    """One open page.

    folder: for the visitor's files, of a name that nobody can guess. upload: the file that was dropped.
    photo: what it holds; None where it cannot be used. known: of the photo, by the engine. result: what is shown,
    without its pixels. download: its file. variants: results to choose from. seen: when the visitor did something last.
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
        """Of the photo's file."""
        return "" if self.upload is None else self.upload.name

    def begin(self) -> threading.Event:
        """Of a new computation: the event that stops it. What this visitor had begun before is stopped."""
        self.stop.set()
        self.stop = threading.Event()
        return self.stop

    def new_file(self, name: str) -> Path:
        """Where a file of this name can be written: in a folder of its own, so that its address is new.

        The oldest are deleted where there are too many.
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
    """All visitors by the key that the browser sends. root: the folder of their files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._visitors: dict[str, Visitor] = {}
        self._lasting: set[Path] = set()
        self._lock = threading.Lock()

    def of(self, key: str) -> Visitor:
        """The visitor of a key, new where there is none; forgets those who are idle or too many."""
        now = time.monotonic()
        with self._lock:
            visitor = self._visitors.pop(key, None) or self._new()
            visitor.seen = now
            self._visitors[key] = visitor  # the last of the dict is who was seen last
            idle = {key for key, one in self._visitors.items() if now - one.seen > IDLE}
            for gone in idle.union(list(self._visitors)[:-MOST]):
                self._forget(gone)
        return visitor

    def take(self, key: str, upload: Path) -> Visitor:
        """The visitor of a key, who has dropped this file; all that came of the one before is forgotten."""
        self.of(key)
        with self._lock:
            self._forget(key, keep=upload)
            visitor = self._visitors[key] = self._new(upload)
            visitor.seen = time.monotonic()
        return visitor

    def new_upload(self, name: str) -> Path:
        """Where a file of this name can be written that a visitor takes next."""
        folder = self.root / secrets.token_hex(16)
        folder.mkdir()
        return folder / name

    def keep(self) -> None:
        """What lies below the folder now belongs to the page itself, and stays."""
        self._lasting = {*self.root.rglob("*")}

    def has_room(self, size: int) -> bool:
        """Whether another upload of this many bytes can be taken; deletes old ones that are nobody's photo for it."""
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
        """Files that are nobody's: not of the page, not made for a visitor, no visitor's photo."""
        folders = {visitor.folder for visitor in self._visitors.values()}
        photos = {visitor.upload for visitor in self._visitors.values()}
        for path in self.root.rglob("*"):
            if path in self._lasting or path in photos or folders.intersection(path.parents):
                continue
            with contextlib.suppress(FileNotFoundError):
                if not path.is_dir():
                    yield path, path.stat()

    def forget(self, key: str) -> None:
        """Stop what is computed for a visitor and delete the visitor's files."""
        with self._lock:
            self._forget(key)

    def _new(self, upload: Path | None = None) -> Visitor:
        return Visitor(self.root / secrets.token_hex(16), upload)

    def _forget(self, key: str, keep: Path | None = None) -> None:
        visitor = self._visitors.pop(key, None)
        if visitor is None:
            return
        visitor.stop.set()
        shutil.rmtree(visitor.folder, ignore_errors=True)
        # Equal files of several visitors are one file.
        if visitor.upload not in (None, keep, *(other.upload for other in self._visitors.values())):
            _delete(visitor.upload)


def _delete(path: Path) -> None:
    """A file, and its folder where nothing else lies in it."""
    with contextlib.suppress(OSError):
        path.unlink()
        path.parent.rmdir()
