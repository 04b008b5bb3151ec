"""The layout of the page of `basicsr web`: its fields, and which action each of them calls (ITER, arXiv:2312.05616)."""

from __future__ import annotations

import gradio as gr

from iter_model.web.actions import Actions
from iter_model.web.engine import Settings

TITLE = "ITER: restore a photo"
# A pasted picture goes the way of a chosen file; the status line is read aloud.
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
// Gradio's sliders tell that they were released by a pointer, not by a key.
document.addEventListener("keyup", (event) => {
  if (event.target.type === "range" && event.key !== "Tab") {
    event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  }
});
</script>"""
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
# Jobs of this name wait for each other.
NETWORK = {"concurrency_id": "network", "concurrency_limit": 1}
PRIVATE = {"api_visibility": "private"}


def theme() -> gr.Theme:
    """System fonts: a page that is used offline fetches none."""
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
                with gr.Tab("Result"):
                    slider = gr.ImageSlider(
                        label="Before and after", elem_id="slider", interactive=False, buttons=["fullscreen"]
                    )
                    download = gr.DownloadButton("Download", interactive=False, elem_id="download")
        shown = [status, slider, download]
        job = {"fn": actions.restore, "inputs": fields, "outputs": shown, "show_progress_on": slider}
        # What is changed while a photo is restored counts afterwards.
        job |= NETWORK | PRIVATE | {"trigger_mode": "always_last"}
        read = photo.change(actions.read, photo, shown, show_progress_on=slider, **PRIVATE)
        alpha, fidelity, steps, seed, color, model = fields
        chosen = model.input(actions.engine.defaults, model, fields, show_progress_on=slider, **NETWORK, **PRIVATE)
        jobs = [read.success(**job), start.click(**job), seed.submit(**job), color.input(**job), chosen.success(**job)]
        jobs += [field.release(**job) for field in (alpha, fidelity, steps)]
        cancel.click(actions.cancel, None, status, cancels=jobs, queue=False, **PRIVATE)
        demo.unload(actions.leave)
        demo.load(None, js=ON_LOAD)
    return demo


def _add_examples(actions: Actions, photo: gr.File) -> None:
    picture = gr.Image(visible=False, type="filepath")
    samples = [[str(path)] for path in actions.thumbnails()]
    examples = gr.Dataset(
        components=[picture], samples=samples, type="index", label="Or try one of these", elem_id="examples"
    )
    examples.click(actions.example, examples, photo, **PRIVATE)


def _setting_fields(defaults: Settings, models: list[str]) -> list[gr.components.Component]:
    """A field of every setting, in their order."""
    return [
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
    ]
