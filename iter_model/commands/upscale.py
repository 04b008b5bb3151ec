"""`basicsr upscale`: restores photos with ITER (arXiv:2312.05616) and writes each to a file of its own."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from iter_arch import SamplingConfig
    from iter_model.photo.folders import Job, Plan
    from iter_model.photo.restorer import Restorer

EPILOG = """\
examples:
  basicsr upscale -i photos/ -o results/
  basicsr upscale -i photos/ -o results/ --recursive --skip-existing
  basicsr upscale -i photos/*.png -o results/ --ext jpg --quality 90
  basicsr upscale -i old.jpg -o results/ --alpha 0.3 --steps 16 --seed 1
  basicsr upscale -i photos/ -o results/ --model experiments/my_iter/models/iter_latest.safetensors
  basicsr upscale -i photos/ -o results/ --model released_x4

exit status: 0 all restored; 1 some were not (each is named, the others are written); 2 wrong usage, nothing written;
130 interrupted
"""


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
COLOR_METHODS = ("none", "adain", "wavelet")
DEFAULT_LEVELS = 4
PRECISIONS = ("auto", "bf16", "float32")
DEFAULT_TILE = 512
DEFAULT_BATCH = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `basicsr upscale`; those of the sampling are the fields of `SamplingConfig`."""
    parser.description = "Restore photos: every image of IN, enlarged by the model's scale, becomes OUT/<name>.png."
    parser.epilog = EPILOG
    _add_files(parser)
    _add_computing(parser)
    parser.add_argument(
        "--color-correction",
        choices=COLOR_METHODS,
        default="wavelet",
        help="wavelet: the result takes the low frequencies of the input; adain: the mean and deviation of every "
        "channel, as in the paper; none (default: %(default)s)",
    )
    parser.add_argument(
        "--color-levels",
        type=int,
        default=DEFAULT_LEVELS,
        metavar="N",
        help="of wavelet, 1 to 8; more levels take only lower frequencies, and less of the input's noise "
        "(default: %(default)s)",
    )
    _add_sampling(parser)


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        required=True,
        nargs="+",
        action="extend",
        metavar="IN",
        help="images and folders of images; sidecars, videos and raw files in them are passed over",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the results, OUT/<name>.png"
    )
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="search subfolders too; OUT gets the same subfolders"
    )
    parser.add_argument(
        "--ext",
        default="png",
        metavar="KIND",
        help="kind of the results: png, jpg, webp or avif; all but png hold 8 bits a channel, and jpg no transparency "
        "(default: %(default)s)",
    )
    parser.add_argument("--quality", type=int, metavar="Q", help="of jpg, webp and avif, 1 to 100 (default: 95)")
    parser.add_argument(
        "--metadata",
        choices=("keep", "none"),
        default="keep",
        help="EXIF (upright, of the new size), XMP and dpi of the photos; color profiles are always kept "
        "(default: %(default)s)",
    )
    parser.add_argument("--suffix", default="", metavar="X", help="put behind every name: OUT/<name>X.png")
    parser.add_argument("--skip-existing", action="store_true", help="leave out photos whose result is there and whole")
    parser.add_argument(
        "--model",
        default="iter_tiny_x4",
        metavar="NAME_OR_PATH",
        help="shipped weights, a file, or the authors' weights: released_x4 or released_x2, looked for in "
        "experiments/pretrained_models/ and in the cache, else downloaded into the cache (default: %(default)s)",
    )


def _add_computing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of the token draws (default: %(default)s)")
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="restore larger images in tiles of this side, in input pixels; 0: never "
        f"(default: {DEFAULT_TILE} / scale, {DEFAULT_TILE // 4} for x4)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="tiles that go through the networks together, and small images of equal size that follow one another; the "
        f"results do not depend on it (default: 1 on a CPU, as many as fit on a GPU, at most {DEFAULT_BATCH})",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: cuda where there is one (default: auto)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the networks; auto: bf16 where the device computes in it, about twice as fast (default: auto)",
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "sampling",
        "weights may carry the settings that they were tuned for, which are then the defaults; those of the authors' "
        f"networks: {' '.join(_flag(name, value) for name, value in RELEASED_SAMPLING.items())}",
    )
    for name, option in SAMPLING.items():
        flag = f"--{name.replace('_', '-')}"
        # None: the default of the model's kind, which is known once the model is.
        if isinstance(option.default, bool):
            text = f"{option.help} (default: {'on' if option.default else 'off'})"
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            text = f"{option.help} (default: {option.default})"
            group.add_argument(flag, type=type(option.default), metavar=option.metavar, help=text)


def _flag(name: str, value: bool | float | str) -> str:
    name = name.replace("_", "-")
    return (f"--{name}" if value else f"--no-{name}") if isinstance(value, bool) else f"--{name} {value}"


def run(args: argparse.Namespace) -> int:
    """Restore ``args.input`` into ``args.output``; all options are those of `add_arguments`.

    Returns:
        The exit status: 0 all restored, 1 some were not, 2 wrong usage (nothing was written), 130 interrupted.
    """
    from iter_model.photo.jobs import Output, restore_files

    args.output = args.output.expanduser()
    try:
        try:
            restorer, jobs = _prepare(args)
        except (ValueError, OSError) as error:
            print(f"basicsr upscale: error: {error}", file=sys.stderr)
            return 2
        failed = restore_files(restorer, jobs, Output(args.quality, args.metadata == "keep"))
    except KeyboardInterrupt:
        print(f"interrupted; images finished so far are in {args.output}", file=sys.stderr)
        return 130
    images = "1 image" if len(jobs) == 1 else f"{len(jobs)} images"
    print(f"restored {len(jobs) - failed} of {images} in {args.output}" + (f" ({failed} failed)" if failed else ""))
    return 1 if failed else 0


def _prepare(args: argparse.Namespace) -> tuple[Restorer, list[Job]]:
    """Everything that can be wrong with the words of the command; ValueError or OSError says what is."""
    from iter_arch import SamplingConfig, load_pretrained
    from iter_arch.color import check_levels
    from iter_arch.precision import choose_dtype
    from iter_model.photo.folders import plan
    from iter_model.photo.restorer import Restorer, choose_batch, choose_device, choose_tile
    from iter_model.photo.writer import WRITERS

    if args.ext not in WRITERS:
        raise ValueError(f"--ext={args.ext} must be one of {', '.join(WRITERS)}")
    sampling_config(args, SamplingConfig())  # a problem shows before the model is loaded or downloaded
    check_levels(args.color_levels, "--color-levels")
    if args.quality is not None and not (args.ext != "png" and 1 <= args.quality <= 100):
        raise ValueError(f"--quality={args.quality} must be from 1 to 100, and --ext jpg, webp or avif")
    planned = plan(args.input, args.output, recursive=args.recursive, suffix=args.suffix, ext=args.ext)
    device = choose_device(args.device)
    net = load_pretrained(args.model).to(device, choose_dtype(args.precision, device))
    tile = choose_tile(args.tile, net)
    restorer = Restorer(
        net=net,
        config=sampling_config(args, net.sampling),
        seed=args.seed,
        tile=tile,
        batch=choose_batch(args.batch, net, tile, device),
        color_correction=args.color_correction,
        color_levels=args.color_levels,
    )
    args.output.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=args.output).close()  # where nothing can be written, that shows now
    return restorer, _announced(planned, args.skip_existing)


def _announced(planned: Plan, skip_existing: bool) -> list[Job]:
    """The jobs that are left to do; says what is passed over and what is named in another way than usual."""
    from iter_model.photo.folders import is_restored
    from iter_model.photo.progress import say

    if planned.passed_over:
        say(f"passed over: {', '.join(map(str, planned.passed_over))}")
    for source, target in planned.told_apart:
        say(f"{source} becomes {target.name}: another photo has the same name")
    jobs = [job for job in planned.jobs if not (skip_existing and is_restored(job))]
    if len(jobs) < len(planned.jobs):
        say(f"skipped {len(planned.jobs) - len(jobs)} that are restored already")
    return jobs


def sampling_config(args: argparse.Namespace, defaults: SamplingConfig) -> SamplingConfig:
    """The sampling options; ValueError names a wrong one as it is written on the command line."""
    import dataclasses

    if not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed={args.seed} must be in [0, 2**63)")
    given = {name: getattr(args, name) for name in SAMPLING}
    try:
        return dataclasses.replace(defaults, **{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise ValueError(str(error).replace("val.sampling.", "--")) from None
