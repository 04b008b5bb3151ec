"""What the page of `basicsr web` does when a field is used; Gradio calls these actions with the visitor's request.

Every action returns new values of fields, in the order in which `page` names them. The status line says what a visitor
did wrong; any other error is a fault and keeps its traceback.
"""

from __future__ import annotations

import dataclasses
import html
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from basicsr_compat.images import Photo, UnreadableImage, read_photo
from iter_model.photo.levels import picture_of
from iter_model.photo.maps import draw, panel_size, panels_of
from iter_model.photo.restorer import Cancelled
from iter_model.web import brush, files
from iter_model.web.engine import Engine, Job, Result, Settings
from iter_model.web.film import frame, write_film
from iter_model.web.visitors import Visitor, Visitors

FAILURES = (ValueError, OSError, MemoryError, RuntimeError)
# Sides in pixels: of an example, of the picture that the brush paints on, of a picture in a gallery.
THUMBNAIL, CANVAS, SMALL = 80, 800, 1024
MAP_WIDTH = 720  # as large as a gallery shows it
# Most pixels of a photo with maps, which take three float copies of the result.
MAPS_PIXELS = 1_000_000
# A job of a visitor for a photo; it returns new values of fields.
Compute = Callable[[Visitor, Photo, Job], tuple]


class Shown(NamedTuple):
    """The status line, the pictures of the slider, and the file to download; `gr.skip()` leaves one unchanged."""

    status: str
    pictures: Any = gr.skip()
    download: Any = gr.skip()


class Opened(NamedTuple):
    """`Shown` of a photo that was dropped, and the picture that the brush paints on."""

    status: str
    pictures: Any
    download: Any
    canvas: Any


@dataclasses.dataclass
class Actions:
    """The actions over an engine. examples: photos to try. max_pixels: most pixels of a photo."""

    engine: Engine
    visitors: Visitors
    examples: list[Path]
    max_pixels: int

    # ---------------------------------------------------------------------------------------- a photo

    def thumbnails(self) -> list[Path]:
        """A small picture of every example, as a file that the page can show."""
        return [self._thumbnail(path) for path in self.examples]

    def _thumbnail(self, path: Path) -> Path:
        photo = read_photo(path)
        height, width = photo.rgb.shape[:2]
        factor = THUMBNAIL / min(height, width)
        size = round(factor * height), round(factor * width)
        return files.write_preview(self.visitors.new_upload(f"{path.stem}.png"), photo, size)

    def example(self, index: int) -> str:
        """The path of a copy of an example, which becomes the photo."""
        copy = self.visitors.new_upload(self.examples[index].name)
        shutil.copyfile(self.examples[index], copy)
        return str(copy)

    def read(self, request: gr.Request, path: str | None) -> Opened:
        """Read and show the photo that was dropped; None forgets the photo before."""
        nothing = None, gr.update(value=None, interactive=False), None
        if path is None:
            self.visitors.forget(request.session_hash)
            return Opened("", *nothing)
        upload = Path(path)
        visitor = self.visitors.take(request.session_hash, upload)
        try:
            photo = files.read_upload(upload, self.max_pixels)
        except UnreadableImage as error:
            return Opened(_problem(f"{visitor.name} cannot be used: {error}"), *nothing)
        visitor.photo = photo
        before = files.write_preview(visitor.new_file("before.png"), photo, files.preview_size(photo))
        height, width = photo.rgb.shape[:2]
        factor = CANVAS / max(height, width)
        canvas = picture_of(photo, (max(1, round(factor * height)), max(1, round(factor * width))))
        line = html.escape(f"{visitor.name}, {_size(photo)}")
        return Opened(line, (before, before), nothing[1], canvas[..., :3])

    def cancel(self, request: gr.Request) -> str:
        """Stop the computations of this visitor."""
        self.visitors.of(request.session_hash).stop.set()
        return "Canceled."

    def leave(self, request: gr.Request) -> None:
        """Forget the visitor: the page was closed."""
        self.visitors.forget(request.session_hash)

    # ---------------------------------------------------------------------------------------- results

    def restore(self, request: gr.Request, progress: Any = gr.Progress(), *fields: Any) -> Shown:  # noqa: B008
        """Restore the photo with the settings of the fields."""

        def compute(visitor: Visitor, photo: Photo, job: Job) -> Shown:
            return self._show(visitor, photo, job, "restored", Settings(*fields))

        return Shown(*self._attempt(request, progress, compute, len(Shown._fields)))

    def paint_alpha(
        self,
        request: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008
        editor: dict[str, Any] | None = None,
        inside: float = 1.0,
        *fields: Any,
    ) -> Shown:
        """Restore the photo with another alpha where something is painted."""

        def compute(visitor: Visitor, photo: Photo, job: Job) -> Shown:
            settings, mask = Settings(*fields), _painted(editor)
            alpha = brush.alpha_map(mask, inside, settings.alpha)
            return self._show(visitor, photo, job, f"alpha {inside:g} where you painted", settings, alpha=alpha)

        return Shown(*self._attempt(request, progress, compute, len(Shown._fields)))

    def redraw(
        self,
        request: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008
        editor: dict[str, Any] | None = None,
    ) -> Shown:
        """Draw other texture where something is painted, and keep every other token of the result."""

        def compute(visitor: Visitor, photo: Photo, job: Job) -> Shown:
            before = _shown(visitor)
            settings = before.settings._replace(seed=before.settings.seed + 1)
            what = f"redrawn where you painted, with seed {settings.seed}"
            mask = brush.redraw_mask(_painted(editor))
            return self._show(visitor, photo, job, what, settings, tokens=before.tokens, redraw=mask)

        return Shown(*self._attempt(request, progress, compute, len(Shown._fields)))

    def draw_variants(
        self,
        request: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008
        count: int = 4,
        *fields: Any,
    ) -> tuple[str, Any]:
        """Restore the photo with several seeds; returns the status line, and pictures with captions."""

        def compute(visitor: Visitor, photo: Photo, job: Job) -> tuple[str, Any]:
            settings, visitor.variants, pictures = Settings(*fields), [], []
            for number in range(int(count)):
                chosen = settings._replace(seed=settings.seed + number)
                restored, result = self.engine.restore(photo, visitor.known, chosen, job.part(number, int(count)))
                pictures.append((self._small(visitor, restored), f"Seed {chosen.seed}"))
                visitor.variants.append(result)
            return f"{len(pictures)} variants. Choose one to make it the result.", pictures

        return self._attempt(request, progress, compute, 2)

    def choose(self, request: gr.Request, event: gr.SelectData, progress: Any = gr.Progress()) -> tuple:  # noqa: B008
        """Make a variant the result; returns the fields of `Shown` and its seed."""

        def compute(visitor: Visitor, photo: Photo, job: Job) -> tuple:
            variant = visitor.variants[event.index]
            what = f"variant with seed {variant.settings.seed}"
            shown = self._show(visitor, photo, job, what, variant.settings, tokens=variant.tokens)
            visitor.result = variant
            return *shown, variant.settings.seed

        return self._attempt(request, progress, compute, len(Shown._fields) + 1)

    # ---------------------------------------------------------------------------------------- how it came about

    def film(self, request: gr.Request, progress: Any = gr.Progress()) -> tuple[str, Any, Any]:  # noqa: B008
        """Show the steps of the result; returns the status line, an animation, and its frames with captions."""

        def compute(visitor: Visitor, photo: Photo, job: Job) -> tuple[str, Any, Any]:
            result = _shown(visitor)
            steps, frames = result.film.steps, []
            for number, step in enumerate(steps):
                part = job.part(number, len(steps))
                restored, _ = self.engine.restore(photo, visitor.known, result.settings, part, tokens=step.tokens)
                picture = picture_of(restored, files.preview_size(restored, SMALL))[..., :3]
                factor = self.engine.net(result.settings.model).vqgan.factor
                frames.append(frame(picture, restored.rgb.shape[:2], step.kept, factor))
            paths = [files.write_picture(visitor.new_file("step.png"), one) for one in frames]
            animation = write_film(visitor.new_file("film.webp"), frames)
            captions = [step.caption for step in steps]
            return _steps_taken(result), str(animation), list(zip(map(str, paths), captions, strict=True))

        return self._attempt(request, progress, compute, 3)

    def maps(
        self,
        request: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008
        samples: int = 4,
    ) -> tuple[str, Any]:
        """Show what of the result was invented; returns the status line, and maps with captions."""

        def compute(visitor: Visitor, photo: Photo, job: Job) -> tuple[str, Any]:
            result = _shown(visitor)
            height, width = photo.rgb.shape[:2]
            if height * width > MAPS_PIXELS:
                raise ValueError(f"Maps are drawn of photos up to {MAPS_PIXELS} pixels; this one has {height * width}.")
            found = self.engine.uncertainty(photo, visitor.known, result.settings, job, int(samples))
            vqgan, shown = self.engine.net(result.settings.model).vqgan, panel_size(found.std.shape[2:], MAP_WIDTH)
            panels = panels_of(
                found, result.restored, result.film.redrawn.times, vqgan=vqgan, samples=int(samples), shown=shown
            )
            pictures = [np.asarray(draw([panel], MAP_WIDTH)) for panel in panels]
            paths = [files.write_picture(visitor.new_file("map.png"), picture) for picture in pictures]
            titles = [f"{panel.title} ({panel.note})" for panel in panels]
            status = "Where the first map is bright, another seed draws something else."
            return status, list(zip(map(str, paths), titles, strict=True))

        return self._attempt(request, progress, compute, 2)

    # ---------------------------------------------------------------------------------------- shared

    def _attempt(self, request: gr.Request, progress: Any, compute: Compute, fields: int) -> tuple:
        """What ``compute`` returns; where it fails, the line that says why, and the other fields unchanged."""
        visitor = self.visitors.of(request.session_hash)
        photo, rest = visitor.photo, [gr.skip()] * (fields - 1)
        if photo is None:
            return gr.skip(), *rest  # nothing was dropped, or the status line says what is wrong with it
        job = Job(visitor.begin(), lambda done, total: progress((done, total), desc="Restoring", unit="parts"))
        try:
            return compute(visitor, photo, job)
        except Cancelled:
            return gr.skip(), *rest  # the status line says so already
        except FAILURES as error:
            return _problem(str(error) or type(error).__name__), *rest

    def _show(self, visitor: Visitor, photo: Photo, job: Job, what: str, settings: Settings, **control: Any) -> Shown:
        """Compute a result and show it. what: how it was made, in words; control: see `Engine.restore`."""
        start = time.monotonic()
        restored, result = self.engine.restore(photo, visitor.known, settings, job, **control)
        seconds = time.monotonic() - start
        size = files.preview_size(restored)
        pair = (
            files.write_preview(visitor.new_file("before.png"), photo, size),
            files.write_preview(visitor.new_file("after.png"), restored, size),
        )
        target = files.write_result(visitor.new_file(files.result_name(visitor.name, photo.kind)), restored)
        visitor.result, visitor.download = result, target
        line = f"{visitor.name}, {_size(photo)}: {what} in {seconds:.1f} s, now {_size(restored)}"
        return Shown(html.escape(line), pair, gr.update(value=str(target), interactive=True))

    def _small(self, visitor: Visitor, photo: Photo) -> str:
        size = files.preview_size(photo, SMALL)
        return str(files.write_preview(visitor.new_file("small.png"), photo, size))


def _shown(visitor: Visitor) -> Result:
    if visitor.result is None:
        raise ValueError("Restore the photo first.")
    return visitor.result


def _painted(editor: dict[str, Any] | None) -> Any:
    mask = brush.painted(editor)
    if mask is None:
        raise ValueError("Paint on the picture first.")
    return mask


def _steps_taken(result: Result) -> str:
    total, left_out = result.settings.steps, result.settings.steps - int(result.restored.start_step)
    if not left_out:
        return f"All {total} steps were taken. What is masked is blue."
    return f"The first estimate saved {left_out} of {total} steps. What is masked is blue."


def _size(photo: Photo) -> str:
    height, width = photo.rgb.shape[:2]
    return f"{width} x {height}"


def _problem(text: str) -> str:
    return f"<strong>⚠ {html.escape(text)}</strong>"
