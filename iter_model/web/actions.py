"""What the page of `basicsr web` does when a field is used; Gradio calls it, each time with the visitor's request.

Every action returns new values of fields, in the order in which `page` names them. What a visitor does wrong is said in
the status line; anything else is a fault, and keeps its traceback.
"""

from __future__ import annotations

import dataclasses
import html
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from basicsr_compat.images import Photo, UnreadableImage, read_photo
from iter_arch.progress import OnProgress
from iter_model.photo.restorer import Cancelled
from iter_model.web import files
from iter_model.web.engine import Engine, Settings
from iter_model.web.visitors import Visitor, Visitors

FAILURES = (ValueError, OSError, MemoryError, RuntimeError)
THUMBNAIL = 80


class Shown(NamedTuple):
    """The status line, the pictures of the slider, the file to download; `gr.skip()` leaves one as it is."""

    status: str
    pictures: Any = gr.skip()
    download: Any = gr.skip()


@dataclasses.dataclass
class Actions:
    """The actions over an engine. examples: photos that are there to try. max_pixels: of a photo."""

    engine: Engine
    visitors: Visitors
    examples: list[Path]
    max_pixels: int

    def thumbnails(self) -> list[Path]:
        """A small picture of every example, as a file that the page may show."""
        return [self._thumbnail(path) for path in self.examples]

    def _thumbnail(self, path: Path) -> Path:
        photo = read_photo(path)
        height, width = photo.rgb.shape[:2]
        factor = THUMBNAIL / min(height, width)
        size = round(factor * height), round(factor * width)
        return files.write_preview(self.visitors.new_upload(f"{path.stem}.png"), photo, size)

    def example(self, index: int) -> str:
        """A copy of an example, which becomes the photo."""
        copy = self.visitors.new_upload(self.examples[index].name)
        shutil.copyfile(self.examples[index], copy)
        return str(copy)

    def read(self, request: gr.Request, path: str | None) -> Shown:
        """Read the photo that was dropped, and show it; None takes away the one that was there."""
        if path is None:
            self.visitors.forget(request.session_hash)
            return Shown("", None, _nothing_to_download())
        visitor = self.visitors.take(request.session_hash, Path(path))
        try:
            visitor.photo = files.read_upload(visitor.upload, self.max_pixels)
        except UnreadableImage as error:
            return Shown(_problem(f"{visitor.name} cannot be used: {error}"), None, _nothing_to_download())
        before = files.write_preview(visitor.new_file("before.png"), visitor.photo, files.preview_size(visitor.photo))
        return Shown(_line(f"{visitor.name}, {_size(visitor.photo)}"), (before, before), _nothing_to_download())

    def restore(self, request: gr.Request, progress: Any = gr.Progress(), *fields: Any) -> Shown:  # noqa: B008
        """Restore the photo with the settings of the fields."""
        visitor = self.visitors.of(request.session_hash)
        if visitor.photo is None:
            return Shown(gr.skip())  # nothing was dropped, or the status line says what is wrong with it
        stop, start = visitor.begin(), time.monotonic()
        try:
            result = self.engine.restore(visitor.photo, Settings(*fields), stop, _bar(progress))
            return self._shown(visitor, result, f"restored in {time.monotonic() - start:.1f} s")
        except Cancelled:
            return Shown(gr.skip())  # the status line says so already
        except FAILURES as error:
            return Shown(_problem(str(error) or type(error).__name__))

    def _shown(self, visitor: Visitor, result: Photo, what: str) -> Shown:
        size = files.preview_size(result)
        pair = (
            files.write_preview(visitor.new_file("before.png"), visitor.photo, size),
            files.write_preview(visitor.new_file("after.png"), result, size),
        )
        target = files.write_result(visitor.new_file(files.result_name(visitor.name)), result)
        line = _line(f"{visitor.name}, {_size(visitor.photo)}: {what}, now {_size(result)}")
        return Shown(line, pair, gr.update(value=str(target), interactive=True))

    def cancel(self, request: gr.Request) -> str:
        """Stop what is computed for this visitor."""
        self.visitors.of(request.session_hash).stop.set()
        return _line("Canceled.")

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.visitors.forget(request.session_hash)


def _bar(progress: Any) -> OnProgress:
    return lambda done, total: progress((done, total), desc="Restoring", unit="parts")


def _nothing_to_download() -> dict:
    return gr.update(value=None, interactive=False)


def _size(photo: Photo) -> str:
    height, width = photo.rgb.shape[:2]
    return f"{width} x {height}"


def _line(text: str) -> str:
    return html.escape(text)


def _problem(text: str) -> str:
    return f"<strong>⚠ {html.escape(text)}</strong>"
