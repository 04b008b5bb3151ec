"""The layout of the page of `basicsr web`: its fields, and the actions that they call (ITER, arXiv:2312.05616)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypedDict

import gradio as gr

from iter_model.web.actions import Actions
from iter_model.web.engine import Settings

TITLE = "ITER: restore a photo"
# A pasted picture is treated like a chosen file.
HEAD = """<script>
document.addEventListener("paste", (event) => {
  const files = event.clipboardData && event.clipboardData.files;
  const input = document.querySelector("#photo input[type=file]");
  if (!files || !files.length || !input) return;
  const data = new DataTransfer();
  data.items.add(files[0]);
  input.files = data.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});
// Gradio's sliders report their release by a pointer, but not by a key.
document.addEventListener("keyup", (event) => {
  if (event.target.type === "range" && event.key !== "Tab") {
    event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  }
});
</script>"""
# Screen readers read the status line aloud.
ON_LOAD = """() => { document.getElementById("status").setAttribute("role", "status"); }"""
CSS = """
.gradio-container { max-width: 1280px !important; }
#status { min-height: 1.5em; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  .gradio-container { padding: 8px !important; }
  /* One column: the photo, the result, and what changes it. */
  #left { display: contents !important; }
  #left > * { order: 3; flex: 1 1 100%; }
  #left > #photo { order: 1; }
  #left > #examples { order: 2; }
  #right { order: 2; flex: 1 1 100%; }
}
"""


class Private(TypedDict):
    """Arguments of every event: programs cannot call it."""

    api_visibility: Literal["private"]


class JobArguments(Private):
    """Arguments of the events that compute. Events of one concurrency_id wait for each other."""

    concurrency_id: str
    concurrency_limit: int


PRIVATE: Private = {"api_visibility": "private"}
JOB: JobArguments = {"concurrency_id": "network", "concurrency_limit": 1, "api_visibility": "private"}


class Fields(NamedTuple):
    """The fields of `Settings`, in their order."""

    alpha: gr.Slider
    fidelity: gr.Slider
    steps: gr.Slider
    seed: gr.Number
    color: gr.Dropdown
    model: gr.Dropdown


class ShownFields(NamedTuple):
    """The fields of `actions.Shown`, in their order."""

    status: gr.HTML
    slider: gr.ImageSlider
    download: gr.DownloadButton


def theme() -> gr.Theme:
    """A theme of system fonts, so that the page works offline."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def build(actions: Actions) -> gr.Blocks:
    """Lay out the fields and connect them with ``actions``."""
    models = actions.engine.models
    with gr.Blocks(title=TITLE, analytics_enabled=False) as demo:
        gr.Markdown(f"# {TITLE}\nDrop a photo, choose it or paste it. It stays on the machine that runs this page.")
        with gr.Row():
            with gr.Column(scale=1, min_width=300, elem_id="left"):
                photo = gr.File(label="Photo", elem_id="photo", height=120)
                if actions.examples:
                    _add_examples(actions, photo)
                fields = _setting_fields(actions.engine.defaults(models[0]), models)
                with gr.Row():
                    start = gr.Button("Restore", variant="primary", elem_id="start")
                    cancel = gr.Button("Cancel", elem_id="cancel")
            with gr.Column(scale=2, min_width=300, elem_id="right"):
                status = gr.HTML("", elem_id="status")
                slider = gr.ImageSlider(
                    label="Before and after", elem_id="slider", interactive=False, buttons=["fullscreen"]
                )
                download = gr.DownloadButton("Download", interactive=False, elem_id="download")
                shown = ShownFields(status, slider, download)
                with gr.Tab("Brush", id="brush"):
                    canvas, jobs = _add_brush(actions, fields, shown)
                with gr.Tab("Variants", id="variants"):
                    jobs += _add_variants(actions, fields, shown)
                with gr.Tab("Steps", id="steps"):
                    jobs += _add_film(actions, status)
                with gr.Tab("Maps", id="maps"):
                    jobs += _add_maps(actions, status)
        read = photo.change(actions.read, photo, [*shown, canvas], show_progress_on=slider, **PRIVATE)
        alpha, fidelity, steps, seed, color, model = fields
        chosen = model.input(actions.engine.defaults, model, [*fields], show_progress_on=slider, **JOB)
        events: list[Callable[..., Any]] = [read.success, start.click, seed.submit, color.input, chosen.success]
        events += [field.release for field in (alpha, fidelity, steps)]
        jobs += [_restore_after(event, actions, fields, shown) for event in events]
        cancel.click(actions.cancel, None, status, cancels=jobs, queue=False, **PRIVATE)
        demo.unload(actions.leave)
        demo.load(None, js=ON_LOAD)
    return demo


def _restore_after(event: Callable[..., Any], actions: Actions, fields: Fields, shown: ShownFields) -> Any:
    """Restore the photo at an event. Where settings change meanwhile, it is restored again with the last ones."""
    return event(actions.restore, [*fields], [*shown], show_progress_on=shown.slider, trigger_mode="always_last", **JOB)


def _add_brush(actions: Actions, fields: Fields, shown: ShownFields) -> tuple[gr.ImageEditor, list]:
    """The picture that the brush paints on, and the events that compute."""
    gr.Markdown("Paint on the photo. Then give what you painted another alpha, or draw other texture there alone.")
    canvas = gr.ImageEditor(
        label="Paint here",
        elem_id="canvas",
        type="numpy",
        format="png",
        image_mode="RGBA",
        sources=(),
        transforms=(),
        layers=False,
        buttons=[],
        brush=gr.Brush(default_size=40, colors=["rgb(255, 120, 0)"], color_mode="fixed"),
    )
    inside = gr.Slider(0, 1, 1, step=0.01, label="Alpha where you painted", elem_id="inside")
    with gr.Row():
        paint = gr.Button("Restore with this alpha", elem_id="paint")
        redraw = gr.Button("Redraw what you painted", elem_id="redraw")
    inputs = [canvas, inside, *fields]
    return canvas, [
        paint.click(actions.paint_alpha, inputs, [*shown], show_progress_on=shown.slider, **JOB),
        redraw.click(actions.redraw, canvas, [*shown], show_progress_on=shown.slider, **JOB),
    ]


def _add_variants(actions: Actions, fields: Fields, shown: ShownFields) -> list:
    gr.Markdown("The same photo with other seeds. Where the variants agree, the photo decides; where not, chance does.")
    count = gr.Slider(2, 8, 4, step=1, label="Variants", elem_id="count")
    draw = gr.Button("Draw variants", elem_id="draw")
    gallery = gr.Gallery(
        label="Variants",
        elem_id="gallery",
        columns=2,
        object_fit="contain",
        buttons=[],
        interactive=False,
        preview=False,
    )
    pictures = [shown.status, gallery]
    return [
        draw.click(actions.draw_variants, [count, *fields], pictures, show_progress_on=gallery, **JOB),
        gallery.select(actions.choose, None, [*shown, fields.seed], show_progress_on=shown.slider, **JOB),
    ]


def _add_film(actions: Actions, status: gr.HTML) -> list:
    gr.Markdown("How the result came about. What is masked is about to be drawn; the rest is kept so far.")
    make = gr.Button("Show the steps", elem_id="make_film")
    film = gr.Image(label="Film", elem_id="film", interactive=False, buttons=["fullscreen"])
    frames = gr.Gallery(
        label="Steps", elem_id="frames", columns=2, object_fit="contain", buttons=["fullscreen"], interactive=False
    )
    return [make.click(actions.film, None, [status, film, frames], show_progress_on=film, **JOB)]


def _add_maps(actions: Actions, status: gr.HTML) -> list:
    gr.Markdown("What of the result was read from the photo, and what was invented. Each map has its scale below it.")
    samples = gr.Slider(2, 16, 4, step=1, label="Results to compare", elem_id="samples")
    measure = gr.Button("Show the maps", elem_id="make_maps")
    maps = gr.Gallery(
        label="Maps", elem_id="maps", columns=2, object_fit="contain", buttons=["fullscreen"], interactive=False
    )
    return [measure.click(actions.maps, samples, [status, maps], show_progress_on=maps, **JOB)]


def _add_examples(actions: Actions, photo: gr.File) -> None:
    picture = gr.Image(visible=False, type="filepath")
    samples = [[str(path)] for path in actions.thumbnails()]
    examples = gr.Dataset(
        components=[picture], samples=samples, type="index", label="Or try one of these", elem_id="examples"
    )
    examples.click(actions.example, examples, photo, **PRIVATE)


def _setting_fields(defaults: Settings, models: list[str]) -> Fields:
    """A field for every setting."""
    return Fields(
        gr.Slider(
            0,
            1,
            defaults.alpha,
            step=0.01,
            label="Alpha",
            elem_id="alpha",
            info="Low keeps more of the first estimate; high redraws more of it, with more texture.",
        ),
        gr.Slider(
            0,
            1,
            defaults.fidelity,
            step=0.01,
            label="Fidelity",
            elem_id="fidelity",
            info="High is truer to the photo, and softer.",
        ),
        gr.Slider(1, 32, defaults.steps, step=1, label="Steps", elem_id="steps"),
        gr.Number(
            defaults.seed,
            label="Seed",
            precision=0,
            minimum=0,
            maximum=2**53 - 1,
            elem_id="seed",
            info="Another number draws other texture. Press Enter.",
        ),
        gr.Dropdown(
            ["wavelet", "adain", "none"],
            value=defaults.color_correction,
            label="Color correction",
            elem_id="color",
            info="wavelet: the photo's own colors.",
        ),
        gr.Dropdown(models, value=defaults.model, label="Model", visible=len(models) > 1, elem_id="model"),
    )
