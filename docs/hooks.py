"""Fills docs/options.md from the declarations of the options while MkDocs builds the site."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

from basicsr_compat.schema import declared, describe

MARKER = re.compile(r"^<!-- options: ([\w.]+)\.(\w+) -->$", re.MULTILINE)
# Options that BasicSR reads itself.
BASICSR = {
    "name": "The name of a run is that of its folder; the name of a data set appears in logs and results.",
    "model_type": "The model class, from BasicSR's `MODEL_REGISTRY`.",
    "scale": "s, how much larger the result is.",
    "num_gpu": "GPUs of a process; `0` trains on the CPU.",
    "manual_seed": "Seed of the run; a random one if left out.",
    "datasets": "`train` and `val`, or any names in a test: one data set each.",
    "network_g": "The network: `type` and its arguments.",
    "path": "Checkpoints to start from; see the ready option files.",
    "train": "The training run: the next sections.",
    "val": "Validation: the section `val`.",
    "logger": "Logging and checkpoints: the section `logger`.",
    "dist_params": "Settings for several processes, such as `{timeout: 1800}` in seconds.",
    "find_unused_parameters": "An argument of `DistributedDataParallel`.",
    "total_iter": "Iterations of the run.",
    "optim_g": "Optimizer: `type`, a class of `torch.optim`, and its arguments.",
    "optim_d": "Optimizer of the discriminator.",
    "scheduler": "Learning rate: `MultiStepLR` or `CosineAnnealingRestartLR`, and its arguments.",
    "pixel_opt": "Pixel loss, such as `{type: L1Loss, loss_weight: 1.0}`.",
    "ssim_opt": "SSIM loss.",
    "perceptual_opt": "Perceptual loss.",
    "gan_opt": "GAN loss; needs a section `network_d`.",
    "dist_opt": "Loss of E_l's tokens, Eq. 2.",
    "refiner_opt": "Loss of the refiner's tokens, Eq. 4.",
    "evaluator_opt": "Loss of the evaluator, Eq. 9.",
    "val_freq": "Iterations between validations.",
    "save_img": "Whether result images are written.",
    "suffix": "Appended to the names of result images.",
    "metrics": "Name: `type`, a metric of BasicSR or `pyiqa`, its arguments, and `better: higher` or `lower`.",
    "pbar": "Whether a progress bar is shown.",
    "print_freq": "Iterations between lines in the log.",
    "save_checkpoint_freq": "Iterations between checkpoints.",
    "use_tb_logger": "Whether TensorBoard's files are written.",
    "wandb": "Settings of Weights & Biases, as in BasicSR.",
    "phase": "Set by BasicSR: `train`, `val`, or `test`.",
    "type": "The data set class.",
    "use_shuffle": "Whether a training run shuffles the photos.",
    "num_worker_per_gpu": "Loader processes per GPU.",
    "batch_size_per_gpu": "Images per GPU and iteration.",
    "dataset_enlarge_ratio": "Repeats the list of photos, to make epochs longer.",
    "prefetch_mode": "`cpu` or `cuda` loads the next batch while the current one trains.",
    "num_prefetch_queue": "Batches that `prefetch_mode: cpu` keeps ready.",
    "pin_memory": "Whether batches are in pinned memory.",
    "persistent_workers": "Whether loader processes survive an epoch.",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace `<!-- options: module.Class -->` by the table of the options of that class."""

    def table(match: re.Match[str]) -> str:
        importlib.import_module("basicsr.models")  # iter_model's options are declared while it registers its models
        return options_table(getattr(importlib.import_module(match[1]), match[2]))

    return MARKER.sub(table, markdown)


def options_table(declaration: type) -> str:
    """A Markdown table: option, default, what it must be, what it means."""
    annotations = declared(declaration).annotations
    parameters = inspect.signature(declaration).parameters
    said = meanings(declaration)
    rows = ["| Option | Default | Value | Meaning |", "|---|---|---|---|"]
    for name, parameter in parameters.items():
        default = "required" if parameter.default is parameter.empty else f"`{_yml(parameter.default)}`"
        meaning = said.get(name) or said.get(name.removesuffix("2")) or BASICSR.get(name, "")
        if name.endswith("2") and name not in said:
            meaning += " In the second round."
        cells = [f"`{name}`", default, describe(annotations[name]), meaning]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def meanings(declaration: type) -> dict[str, str]:
    """What the docstrings of a class and of those it inherits from say about each option: `name, name: text.`"""
    found: dict[str, str] = {}
    for cls in reversed(declaration.__mro__):
        text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
        known = "|".join(map(re.escape, inspect.signature(cls).parameters)) if cls is not object else ""
        if not known:
            continue
        names = rf"(?:{known})(?:, (?:{known}))*"
        parts = re.split(rf"(?:^|(?<=[.;] )|(?<=;\n))\s*({names}): ", text, flags=re.MULTILINE)
        for keys, meaning in zip(parts[1::2], parts[2::2], strict=True):
            meaning = " ".join(meaning.partition("\n\n")[0].split()).rstrip(";. ")
            if re.match("[a-z]{2,}[ ,]|a ", meaning):  # not a symbol, nor a name with a dot
                meaning = meaning[0].upper() + meaning[1:]
            found |= dict.fromkeys(keys.split(", "), f"{meaning}.")
    return found


def _yml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "~" if value is None else str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yml, value))}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
