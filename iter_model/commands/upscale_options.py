"""The options of `basicsr upscale`, in groups. Imports nothing slow, so that help comes at once.

A new option is an argument in the function of its group; a new group is a function and a row in `GROUPS`, which may lie
in a module of its own that imports as little.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from iter_model.commands.upscale_control import add_control

Arguments = argparse._ArgumentGroup


class SamplingOption(NamedTuple):
    """A field of `SamplingConfig` on the command line. `default` is shown; weights may carry another."""

    default: bool | int | float | str
    metavar: str | None
    help: str


# Named here once more, so that help needs no PyTorch; a test compares.
SAMPLING = {
    "steps": SamplingOption(8, "T", "refinement steps, at least 1"),
    "alpha": SamplingOption(
        0.5, "A", "in [0, 1]; low keeps more of the first estimate (fidelity), high redraws more of it (texture)"
    ),
    "schedule": SamplingOption("cosine", "NAME", "share of masked tokens over the steps: cosine, linear or pow<p>"),
    "adaptive": SamplingOption(True, None, "start from the tokens of the first estimate that are evaluated as good"),
    "selection": SamplingOption(
        "evaluator", "NAME", "what decides which tokens are kept: evaluator, confidence or halton"
    ),
    "temperature": SamplingOption(1.0, "X", "of the token draws, above 0; low is more careful"),
    "reevaluate": SamplingOption(True, None, "evaluate kept tokens anew at each step"),
    "redraw_kept": SamplingOption(False, None, "draw new tokens at kept positions too"),
    "fidelity": SamplingOption(
        0.0, "F", "in [0, 1]; share of the first estimate's mean in what is decoded: truer, and softer"
    ),
}
RELEASED_SAMPLING = {"alpha": 0.7, "schedule": "linear", "reevaluate": False, "redraw_kept": True}
MAX_PIXELS = 178_956_970
COLOR_METHODS = ("none", "adain", "wavelet")
DEFAULT_LEVELS = 4
PRECISIONS = ("auto", "bf16", "fp16", "float32")
DEFAULT_TILE = 512
DEFAULT_BATCH = 16


def add_input(group: Arguments) -> None:
    """What is restored."""
    group.add_argument(
        "-i",
        "--input",
        type=Path,
        required=True,
        nargs="+",
        action="extend",
        metavar="IN",
        help="images, folders of images and patterns; sidecars, videos and raw files in folders are passed over",
    )
    group.add_argument(
        "-r", "--recursive", action="store_true", help="search subfolders too; OUT gets the same subfolders"
    )
    group.add_argument("--skip-existing", action="store_true", help="leave out photos whose result is there and whole")
    group.add_argument(
        "--frames",
        choices=("first", "all"),
        default="first",
        help="of animations and documents: the first, or all as an animation with its delays or a document "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help=f"refuse photos of more pixels, which a small file may have; 0: none (default: {MAX_PIXELS})",
    )


def add_output(group: Arguments) -> None:
    """What becomes of it."""
    group.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the results, OUT/<name>.png"
    )
    group.add_argument("--suffix", default="", metavar="X", help="put behind every name: OUT/<name>X.png")
    group.add_argument(
        "--ext",
        default="png",
        metavar="KIND",
        help="kind of the results: auto (that of each photo, where it can hold the result), png, jpg, webp, tiff, avif "
        "or gif. png holds 16 bits per channel, tiff floats too, the others 8, and jpg no transparency "
        "(default: %(default)s)",
    )
    group.add_argument("--quality", type=int, metavar="Q", help="of jpg, webp and avif, 1 to 100 (default: 95)")
    group.add_argument("--outscale", type=float, metavar="F", help="size of the results over that of the photos "
                       "(default: the model's scale)")  # fmt: skip
    group.add_argument(
        "--width", type=int, metavar="PIXELS", help="width of the results; without --height in proportion"
    )
    group.add_argument("--height", type=int, metavar="PIXELS", help="height of the results")
    group.add_argument("--max-side", type=int, metavar="PIXELS", help="reduce results whose longer side is larger")
    group.add_argument(
        "--metadata",
        choices=("keep", "none"),
        default="keep",
        help="EXIF (upright, of the new size), XMP, text and dpi of the photos; color profiles are always kept "
        "(default: %(default)s)",
    )


def add_restoration(group: Arguments) -> None:
    """With which weights, and which colors."""
    group.add_argument(
        "--model",
        default="iter_tiny_x4",
        metavar="NAME_OR_PATH",
        help="shipped weights, a file (of another network too, if spandrel knows it), or the authors' weights: "
        "released_x4 or released_x2, looked for in "
        "experiments/pretrained_models/ and in the cache, else downloaded into the cache (default: %(default)s)",
    )
    group.add_argument("--seed", type=int, default=0, help="of the token draws (default: %(default)s)")
    group.add_argument(
        "--color-correction",
        choices=COLOR_METHODS,
        default="wavelet",
        help="wavelet: the result takes the low frequencies of the input; adain: the mean and deviation of every "
        "channel, as in the paper; none (default: %(default)s)",
    )
    group.add_argument(
        "--color-levels",
        type=int,
        default=DEFAULT_LEVELS,
        metavar="N",
        help="of wavelet, 1 to 8; more levels take only lower frequencies, and less of the input's noise "
        "(default: %(default)s)",
    )


def add_sampling(group: Arguments) -> None:
    """The fields of `SamplingConfig`."""
    for name, option in SAMPLING.items():
        flag = f"--{name.replace('_', '-')}"
        # None: the default of the model's kind, which is known once the model is.
        if isinstance(option.default, bool):
            text = f"{option.help} (default: {'on' if option.default else 'off'})"
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            text = f"{option.help} (default: {option.default})"
            group.add_argument(flag, type=type(option.default), metavar=option.metavar, help=text)


def add_device(group: Arguments) -> None:
    """Where it is computed, and in how much memory."""
    group.add_argument(
        "--device",
        default="auto",
        help="auto (cuda, else mps, else cpu), cpu, mps, cuda or cuda:N; several, as in cuda:0,cuda:1, share the "
        "photos (default: auto)",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the networks; auto: bf16 where the device computes in it, about twice as fast, else fp16 on a GPU, "
        "else float32 (default: auto)",
    )
    group.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="restore larger images in tiles of this side, in input pixels; 0: never "
        f"(default: {DEFAULT_TILE} / scale, {DEFAULT_TILE // 4} for x4)",
    )
    group.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="tiles that go through the networks together, and small images of equal size that follow one another; the "
        f"results do not depend on it (default: 1 on a CPU, as many as fit on a GPU, at most {DEFAULT_BATCH})",
    )


def add_messages(group: Arguments) -> None:
    """What is told meanwhile."""
    group.add_argument("-q", "--quiet", action="store_true", help="no progress, no summary: only what failed")
    group.add_argument(
        "--json",
        action="store_true",
        help="print a JSON object per result to stdout: input, output, width, height, frames, seconds, start_step, and "
        "seed, tokens, maps where there are such; or skipped or error and why",
    )


def _flag(name: str, value: bool | float | str) -> str:
    name = name.replace("_", "-")
    return (f"--{name}" if value else f"--no-{name}") if isinstance(value, bool) else f"--{name} {value}"


class Group(NamedTuple):
    """A part of the help: its heading, a text below it, and what adds its options."""

    title: str
    description: str | None
    add: Callable[[Arguments], None]


GROUPS = (
    Group("input", None, add_input),
    Group("output", None, add_output),
    Group("restoration", None, add_restoration),
    Group(
        "sampling",
        "weights may carry the settings that they were tuned for, which are then the defaults; those of the authors' "
        f"networks: {' '.join(_flag(name, value) for name, value in RELEASED_SAMPLING.items())}",
        add_sampling,
    ),
    Group(
        "control by tokens",
        "see docs/control.md; with any of these, photos do not go through the network together",
        add_control,
    ),
    Group("device and memory", None, add_device),
    Group("messages", None, add_messages),
)
