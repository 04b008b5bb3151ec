"""`basicsr upscale`: restores photos with ITER (arXiv:2312.05616) and writes each to its own file."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from iter_model.commands import usage_error
from iter_model.commands.upscale_control import is_asked_for
from iter_model.commands.upscale_options import EPILOG, GROUPS, SAMPLING

# Options of `upscale_control` that need tokens.
CONTROLS = ("alpha_map", "variants", "save_tokens", "redraw", "tokens_from", "maps")

if TYPE_CHECKING:
    from iter_arch import SamplingConfig
    from iter_model.photo.canvas import OutputSize
    from iter_model.photo.controlled import Controls
    from iter_model.photo.folders import Job, Plan
    from iter_model.photo.jobs import Output
    from iter_model.photo.progress import Reporter
    from iter_model.photo.restorer import Restorer

# Shipped weights that show what the method does, and no more.
DEMONSTRATION = {"iter_tiny_x4": "released_x4"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `basicsr upscale`, group by group."""
    parser.description = "Restore and enlarge photos: every image of IN becomes OUT/<name>.png."
    parser.epilog = EPILOG
    parser.usage = "basicsr upscale -i IN [IN ...] -o OUT [options]"
    for group in GROUPS:
        group.add(parser.add_argument_group(group.title, group.description))


def run(args: argparse.Namespace) -> int:
    """Restore ``args.input`` into ``args.output``; all options are those of `add_arguments`.

    Returns:
        The exit status: 0 all restored, 1 some were not, 2 wrong usage (nothing was written), 130 interrupted.
    """
    from iter_model.photo.controlled import Controls
    from iter_model.photo.jobs import restore_files
    from iter_model.photo.processes import Processes, Refused
    from iter_model.photo.progress import Reporter

    args.output = Path(os.path.expanduser(args.output))
    processes = Processes.of_torchrun()
    reporter = Reporter(quiet=args.quiet, as_json=args.json, processes=processes)
    try:
        try:
            given = None if processes.is_first else processes.hear()
            output, planned = _output(args), given[0] if given else _plan(args)
            controls = Controls.of(args, planned, output.max_pixels) if is_asked_for(args) else None
            restorers = make_restorers(args, processes.local_rank)
            if given is None:
                _prepare_folders(args.output, planned, controls)
        except Refused:
            return 2
        except (ValueError, OSError) as error:
            processes.refuse()
            return usage_error("upscale", error)
        if given is None:
            _announce(args, planned, reporter)
            given = planned, _left_to_do(args, planned, controls, reporter)
            processes.tell(given)
        jobs = given[1]
        failed = restore_files(restorers, jobs, output, reporter, processes, controls)
        failed = processes.total(failed)  # torchrun ends all of them as soon as one ends with an error
    except KeyboardInterrupt:
        if processes.is_first:
            print(f"interrupted; images finished so far are in {args.output}", file=sys.stderr)
        return 130
    images = "1 image" if len(jobs) == 1 else f"{len(jobs)} images"
    some = f" ({failed} failed)" if failed else ""
    reporter.summary(f"restored {len(jobs) - failed} of {images} in {args.output}{some}")
    return 1 if failed else 0


def make_restorers(args: argparse.Namespace, local_rank: int | None = None) -> list[Restorer]:
    """Make a restorer for each device from the options of the command.

    Args:
        args: see `add_arguments`.
        local_rank: number of this process among those of this machine, see `choose_devices`.

    Raises:
        ValueError: an option is impossible, or the weights are no checkpoint.
        OSError: the weights are missing, or cannot be downloaded.
    """
    import copy

    from iter_arch import SamplingConfig
    from iter_arch.color import check_levels
    from iter_arch.precision import choose_dtype
    from iter_model.peer import PeerNetwork, load_network
    from iter_model.photo.devices import choose_batch, choose_devices, choose_tile, choose_whole
    from iter_model.photo.restorer import Restorer

    sampling_config(args, SamplingConfig())  # a problem shows before the model is loaded or downloaded
    check_levels(args.color_levels, "--color-levels")
    size = _size(args)
    devices = choose_devices(args.device, local_rank)
    dtypes = [choose_dtype(args.precision, device) for device in devices]
    loaded = load_network(args.model)
    config = None
    if isinstance(loaded, PeerNetwork):
        _refuse_control(args, loaded.architecture)
        dtypes = [loaded.usable(dtype, args.precision) for dtype in dtypes]
    else:
        config = sampling_config(args, loaded.sampling)
    tile = choose_tile(args.tile, loaded)
    restorers = []
    for index, (device, dtype) in enumerate(zip(devices, dtypes, strict=True)):
        net = (copy.deepcopy(loaded) if index < len(devices) - 1 else loaded).to(device, dtype)
        restorers.append(
            Restorer(
                net=net,
                config=config,
                seed=args.seed,
                tile=tile,
                batch=choose_batch(args.batch, net, tile, device),
                color_correction=args.color_correction,
                color_levels=args.color_levels,
                size=size,
                whole=choose_whole(args.tile, net),
            )
        )
    return restorers


def _refuse_control(args: argparse.Namespace, architecture: str) -> None:
    """Raise ValueError for options that a network without tokens cannot follow."""
    given = [name for name in SAMPLING if getattr(args, name) is not None]
    given += [name for name in ("seed", *CONTROLS) if getattr(args, name)]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{flags} cannot be applied: {args.model} is a {architecture}, which samples no tokens")


def _output(args: argparse.Namespace) -> Output:
    from iter_model.photo.jobs import Output
    from iter_model.photo.writer import WRITERS

    if args.ext not in ("auto", *WRITERS):
        raise ValueError(f"--ext={args.ext} must be one of auto, {', '.join(WRITERS)}")
    lossy = [name for name, writer in WRITERS.items() if writer.lossy]
    if args.quality is not None and not (args.ext in ("auto", *lossy) and 1 <= args.quality <= 100):
        raise ValueError(f"--quality={args.quality} must be from 1 to 100, and --ext {', '.join(lossy)} or auto")
    return Output(
        quality=args.quality,
        keeps_metadata=args.metadata == "keep",
        all_frames=args.frames == "all",
        is_auto=args.ext == "auto",
        max_pixels=_max_pixels(args.max_pixels),
    )


def _max_pixels(given: int | None) -> int:
    from basicsr_compat.images import MAX_PIXELS

    if given is not None and given < 0:
        raise ValueError(f"--max-pixels={given} must be 0 (no limit) or above")
    return MAX_PIXELS if given is None else given or sys.maxsize


def _size(args: argparse.Namespace) -> OutputSize:
    from iter_model.photo.canvas import OutputSize

    given = {name: getattr(args, name) for name in ("outscale", "width", "height", "max_side")}
    for name, value in given.items():
        if value is not None and not 0 < value < 2**20:
            raise ValueError(f"--{name.replace('_', '-')}={value} must be above 0 and below {2**20}")
    chosen = [name for name in given if given[name] is not None]
    if len(chosen) > 1 and set(chosen) != {"width", "height"}:
        raise ValueError(f"only one of {', '.join('--' + name.replace('_', '-') for name in chosen)} can be given")
    return OutputSize(**given)


def _plan(args: argparse.Namespace) -> Plan:
    from iter_model.photo.folders import plan

    if args.variants is not None and args.variants < 1:
        raise ValueError(f"--variants={args.variants} must be at least 1")
    _check_seed(args.seed, args.variants or 1)
    return plan(
        args.input,
        args.output,
        recursive=args.recursive,
        suffix=args.suffix,
        ext=args.ext,
        all_frames=args.frames == "all",
        seeds=range(args.seed, args.seed + (args.variants or 0)),
    )


def _prepare_folders(output: Path, planned: Plan, controls: Controls | None) -> None:
    from iter_model.photo.folders import oversized, prepare_folders

    tops = {output} if controls is None or controls.maps is None else {output, controls.maps}
    beside = [] if controls is None else [path for job in planned.jobs for path in controls.files_of(job).values()]
    results = [path for job in planned.jobs for path in (job.target, oversized(job.target))]
    prepare_folders(tops, [*results, *beside])


def _announce(args: argparse.Namespace, planned: Plan, reporter: Reporter) -> None:
    """Report files that are passed over, results with longer names than usual, and the quality of the weights."""
    if args.model in DEMONSTRATION:
        reporter.say(
            f"{args.model} is a small network that demonstrates the method; the authors' networks restore better: "
            f"--model {DEMONSTRATION[args.model]}"
        )
    if planned.passed_over:
        reporter.say(f"passed over: {', '.join(map(str, planned.passed_over))}")
        for path in planned.passed_over:
            reporter.skipped(path, "no photo")
    for source, target, _ in planned.told_apart:
        reporter.say(f"{source} becomes {target.name}: another photo has the same name")


def _left_to_do(args: argparse.Namespace, planned: Plan, controls: Controls | None, reporter: Reporter) -> list[Job]:
    from iter_model.photo.folders import is_restored, oversized

    if not args.skip_existing:
        return planned.jobs

    def is_done(job: Job) -> bool:
        beside = () if controls is None else controls.files_of(job).values()
        return is_restored(job.target, oversized(job.target)) and all(path.is_file() for path in beside)

    done = [job for job in planned.jobs if is_done(job)]
    for job in done:
        reporter.skipped(job.source, "restored already")
    if done:
        reporter.say(f"skipped {len(done)} that are restored already")
    return [job for job in planned.jobs if job not in done]


def _check_seed(seed: int, count: int = 1) -> None:
    if not 0 <= seed <= 2**63 - count:
        raise ValueError(f"--seed={seed} must be in [0, 2**63{f' - {count - 1}' if count > 1 else ''})")


def sampling_config(args: argparse.Namespace, defaults: SamplingConfig) -> SamplingConfig:
    """The sampling options; ValueError names a wrong one as it is written on the command line."""
    import dataclasses

    _check_seed(args.seed)
    given = {name: getattr(args, name) for name in SAMPLING}
    try:
        return dataclasses.replace(defaults, **{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise ValueError(str(error).replace("val.sampling.", "--")) from None
