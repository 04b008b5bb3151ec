"""The options of `basicsr upscale`, in groups. Imports nothing slow, so that help comes at once.

A new option is an argument in the function of its group; a new group is a function and a row in `GROUPS`, which may lie
in a module of its own that imports as little.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
        0.5, "A", "from 0 to 1; low values keep more of the first estimate (fidelity), high ones redraw more (texture)"
    ),
    "schedule": SamplingOption("cosine", "NAME", "share of masked tokens over the steps: cosine, linear or pow<p>"),
    "adaptive": SamplingOption(True, None, "start from the tokens of the first estimate that are evaluated as good"),
    "selection": SamplingOption(
        "evaluator", "NAME", "rule that chooses which tokens are kept: evaluator, confidence, or halton"
    ),
    "temperature": SamplingOption(1.0, "X", "temperature of the token draws, above 0; a low one is more careful"),
    "reevaluate": SamplingOption(True, None, "evaluate kept tokens again in every step"),
    "redraw_kept": SamplingOption(False, None, "draw new tokens at kept positions too"),
    "fidelity": SamplingOption(
        0.0, "F", "from 0 to 1; high values give a result that is closer to the photo, and softer"
    ),
}
SHIPPED_SAMPLING = {"alpha": 0.2, "schedule": "linear", "temperature": 0.8, "fidelity": 0.42}
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
        help="images, folders, or patterns; what is no image in a folder is skipped",
    )
    group.add_argument(
        "-r", "--recursive", action="store_true", help="search subfolders too; OUT gets the same subfolders"
    )
    group.add_argument("--skip-existing", action="store_true", help="skip photos that have a complete result")
    group.add_argument(
        "--frames",
        choices=("first", "all"),
        default="first",
        help="of an animation or a document with pages, restore the first frame, or all into a file of the same kind "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help=f"refuse photos with more pixels; 0 accepts all (default: {MAX_PIXELS})",
    )


def add_output(group: Arguments) -> None:
    """Where results go, and in which form."""
    group.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the results, OUT/<name>.png"
    )
    group.add_argument("--suffix", default="", metavar="X", help="append X to every name: OUT/<name>X.png")
    group.add_argument(
        "--ext",
        default="png",
        metavar="KIND",
        help="kind of the results: png, jpg, webp, tiff, avif, gif, or auto, that of each photo (default: %(default)s)",
    )
    group.add_argument("--quality", type=int, metavar="Q", help="of jpg, webp, and avif, from 1 to 100 (default: 95)")
    group.add_argument("--outscale", type=float, metavar="F", help="enlarge the photos by this factor "
                       "(default: the model's scale)")  # fmt: skip
    group.add_argument(
        "--width", type=int, metavar="PIXELS", help="width of the results; the height follows unless --height is given"
    )
    group.add_argument("--height", type=int, metavar="PIXELS", help="height of the results")
    group.add_argument("--max-side", type=int, metavar="PIXELS", help="reduce results whose longer side is larger")
    group.add_argument(
        "--metadata",
        choices=("keep", "none"),
        default="keep",
        help="EXIF (with orientation and size corrected), XMP, text, and dpi; color profiles are always kept "
        "(default: %(default)s)",
    )


def add_restoration(group: Arguments) -> None:
    """Weights and colors."""
    group.add_argument(
        "--model",
        default="iter_tiny_x4",
        metavar="NAME_OR_PATH",
        help="weights: those that ship, a file (of any network that spandrel knows), or the authors' released_x4 or "
        "released_x2, downloaded once (default: %(default)s)",
    )
    group.add_argument("--seed", type=int, default=0, help="seed of the token draws (default: %(default)s)")
    group.add_argument(
        "--color-correction",
        choices=COLOR_METHODS,
        default="wavelet",
        help="take from the input its low frequencies (wavelet), mean and deviation of every channel (adain, as in the "
        "paper), or nothing (default: %(default)s)",
    )
    group.add_argument(
        "--color-levels",
        type=int,
        default=DEFAULT_LEVELS,
        metavar="N",
        help="levels of wavelet, 1 to 8; more levels take only lower frequencies, and less of the input's noise "
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
    """Devices and memory."""
    group.add_argument(
        "--device",
        default="auto",
        help="cpu, mps, cuda, cuda:N, several that share the photos, such as cuda:0,cuda:1, or auto: cuda, else mps, "
        "else cpu (default: auto)",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="precision of the networks; auto: bf16 if the device supports it (about twice as fast), else fp16 on a "
        "GPU, else float32 (default: auto)",
    )
    group.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="restore larger images in tiles with sides of this many input pixels, which takes less memory; 0: never "
        f"(default: {DEFAULT_TILE} / scale, {DEFAULT_TILE // 4} for x4; twice that for small photos and networks)",
    )
    group.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="process N tiles at once, or N consecutive small images of equal size; results do not depend on it "
        f"(default: 1 on a CPU, as many as fit on a GPU, at most {DEFAULT_BATCH})",
    )


def add_messages(group: Arguments) -> None:
    """Messages."""
    group.add_argument("-q", "--quiet", action="store_true", help="report failures only: no progress, no summary")
    group.add_argument(
        "--json",
        action="store_true",
        help="print a JSON object per result to stdout with input, output, width, height, frames, seconds, start_step, "
        "and seed, tokens, and maps if there are any, or with the reason under skipped or error",
    )
    group.add_argument("-h", "--help", action=CommonHelp, help="explain the common options and exit")
    group.add_argument("--help-all", action="help", help="explain all options and exit")


def _flags(sampling: Mapping[str, object]) -> str:
    words = []
    for name, value in sampling.items():
        flag = name.replace("_", "-")
        words.append((f"--{flag}" if value else f"--no-{flag}") if isinstance(value, bool) else f"--{flag} {value}")
    return " ".join(words)


# What --help explains; --help-all explains the others too.
COMMON = frozenset(
    "-i -r --skip-existing -o --suffix --ext --outscale --model --seed --steps --alpha --fidelity --device -q -h "
    "--help-all".split()
)
COMMON_EXAMPLES = """\
examples:
  basicsr upscale -i photos/ -o results/
  basicsr upscale -i photos/ -o results/ --ext auto --recursive --skip-existing
  basicsr upscale -i old.jpg -o results/ --alpha 0.3 --steps 16 --seed 1
  basicsr upscale -i photos/ -o photos/ --suffix _x4
"""
EPILOG = (
    COMMON_EXAMPLES
    + """\
  basicsr upscale -i photos/*.png -o results/ --ext jpg --quality 90
  basicsr upscale -i old.jpg -o results/ --outscale 1.5
  basicsr upscale -i photos/ -o results/ --max-side 3840 --device cpu,cpu
  basicsr upscale -i photos/ -o results/ --ext auto --frames all --json
  basicsr upscale -i photos/ -o results/ --model experiments/my_iter/models/iter_latest.safetensors
  basicsr upscale -i photos/ -o results/ --model released_x4
  basicsr upscale -i old.jpg -o results/ --maps maps/

More: docs/photos.md. Exit status: 0 all photos restored; 1 some were not (each is named, the others are written);
2 wrong usage, nothing written; 130 interrupted.
"""
)


class CommonHelp(argparse.Action):
    """Prints help on the options in `COMMON`, names the others, and exits: a screen instead of three."""

    def __init__(self, option_strings: list[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        others = [action for action in parser._actions if COMMON.isdisjoint(action.option_strings)]
        names = ", ".join(next(name for name in action.option_strings if name[:2] == "--") for action in others)
        for action in others:
            action.help = argparse.SUPPRESS
        more = textwrap.fill(names, 76, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
        for group in parser._action_groups:
            if not any(COMMON.intersection(action.option_strings) for action in group._group_actions):
                group.description = None
        parser.epilog = f"more options, see --help-all:\n{more}\n\n{COMMON_EXAMPLES}"
        parser.print_help()
        parser.exit()


class Group(NamedTuple):
    """A part of the help: its heading, the text below it, and the function that adds its options."""

    title: str
    description: str | None
    add: Callable[[Arguments], None]


GROUPS = (
    Group("input", None, add_input),
    Group("output", None, add_output),
    Group("restoration", None, add_restoration),
    Group(
        "sampling",
        "Weights may store the settings that they were tuned for, which are then the defaults:\n"
        f"iter_tiny_x4:  {_flags(SHIPPED_SAMPLING)}\nthe authors':  {_flags(RELEASED_SAMPLING)}",
        add_sampling,
    ),
    Group(
        "control by tokens",
        "See docs/control.md. With any of these, the networks process one photo at a time.",
        add_control,
    ),
    Group("device and memory", None, add_device),
    Group("messages", None, add_messages),
)
