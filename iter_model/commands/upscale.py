"""`basicsr upscale`: restores photos with ITER (arXiv:2312.05616) and writes each to a file of its own."""

from __future__ import annotations

import argparse
import sys
import tempfile
from typing import TYPE_CHECKING

from iter_model.commands.upscale_control import is_asked_for
from iter_model.commands.upscale_options import GROUPS, SAMPLING

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
  basicsr upscale -i old.jpg -o results/ --maps maps/

exit status: 0 all restored; 1 some were not (each is named, the others are written); 2 wrong usage, nothing written;
130 interrupted
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `basicsr upscale`, group by group."""
    parser.description = "Restore photos: every image of IN, enlarged by the model's scale, becomes OUT/<name>.png."
    parser.epilog = EPILOG
    for group in GROUPS:
        group.add(parser.add_argument_group(group.title, group.description))


def run(args: argparse.Namespace) -> int:
    """Restore ``args.input`` into ``args.output``; all options are those of `add_arguments`.

    Returns:
        The exit status: 0 all restored, 1 some were not, 2 wrong usage (nothing was written), 130 interrupted.
    """
    from iter_model.photo.controlled import Controls, restore_controlled
    from iter_model.photo.jobs import Output, restore_files
    from iter_model.photo.progress import say

    args.output = args.output.expanduser()
    try:
        try:
            restorer, jobs = _prepare(args)
            controls = Controls.of(args, jobs) if is_asked_for(args) else None
        except (ValueError, OSError) as error:
            print(f"basicsr upscale: error: {error}", file=sys.stderr)
            return 2
        if controls is not None:
            failed = restore_controlled(restorer, jobs, controls, say)
        else:
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
