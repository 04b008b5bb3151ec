"""The options of a BasicSR run: read from the yml and the command line, completed, and checked before anything is made.

Imports neither torch nor BasicSR before it reads a file: `basicsr --help` takes its arguments from here.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from basicsr_compat.pipeline import check
from basicsr_compat.pipeline.metric_rules import better_of
from basicsr_compat.pipeline.yml import OptionLoader, read_yml
from basicsr_compat.schema import OptionProblems, format_error, nearest


def warn(message: str) -> None:
    """Print a warning. BasicSR's logger must not be used before it has its file."""
    if os.environ.get("RANK", "0") == "0":
        print(f"WARNING: {message}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------- completing


def _fill_in(opt: dict, is_train: bool) -> None:
    """Set the defaults of options whose absence would be a bare KeyError in BasicSR."""
    opt.setdefault("num_gpu", "auto")
    opt.setdefault("manual_seed", None)
    defaults: dict[str, dict[str, Any]] = {"path": {}, "logger": {"use_tb_logger": False}}
    if is_train:
        defaults["path"] = {"resume_state": None}
        defaults["logger"].update(print_freq=100, save_checkpoint_freq=5000, keep_last=None)
    if not is_train or opt.get("val") is not None:
        in_training = {"val_freq": 5000, "key_metric": None} if is_train else {}
        defaults["val"] = {"save_img": not is_train, "suffix": None, **in_training}
    for section, values in defaults.items():
        opt[section] = {**values, **(opt.get(section) or {})}
    for phase, dataset in (opt.get("datasets") or {}).items():
        if isinstance(dataset, dict):
            dataset.setdefault("name", phase)
            dataset.setdefault("io_backend", {"type": "disk"})


def _force(opt: dict, entry: str) -> None:
    """Apply one --force_yml entry. BasicSR runs it as code, and adds a misspelled key as a new one."""
    path, equals, text = entry.partition("=")
    keys = [key.strip() for key in path.split(":")]
    if not equals:
        raise OptionProblems(f"--force_yml {entry!r} must have the form section:key=value, e.g. train:total_iter=100")
    section = opt
    for depth, key in enumerate(keys):
        known = section if isinstance(section, dict) else ()
        optional = check.path_keys(opt)[0] if keys[:depth] == ["path"] else ()
        if key not in known and key not in optional:
            where, hint = ":".join(keys[: depth + 1]), nearest(key, [*known, *optional])
            raise OptionProblems(
                f"--force_yml {entry!r}: the yml has no {where}{hint}; a key must be there to be forced"
            )
        if depth < len(keys) - 1:
            section = section[key]
    text = text.strip()
    try:
        section[keys[-1]] = None if text.lower() == "none" else yaml.load(text, Loader=OptionLoader)
    except Exception as error:  # as in read_yml
        raise OptionProblems(f"--force_yml {entry!r}: the value is not valid YAML: {format_error(error)}") from None


def _expand_paths(opt: dict) -> None:
    """Expand `~` and `$HOME`, and drop a slash at the end of a folder. BasicSR expands `~` only in some keys."""

    def expand(value):
        if isinstance(value, list):
            return [expand(item) for item in value]
        if not isinstance(value, str):
            return value
        value = os.path.expandvars(os.path.expanduser(value))
        return value.rstrip("/") or value

    for dataset in opt["datasets"].values():
        for key in dataset:
            if str(key).startswith(("dataroot", "meta_info")):
                dataset[key] = expand(dataset[key])
    for key, value in opt["path"].items():
        if not str(key).startswith(("param_key", "ignore_resume")):
            opt["path"][key] = expand(value)


def _settle_devices(opt: dict) -> None:
    """Use only GPUs that exist. BasicSR crashes where num_gpu is larger, and with options of CUDA on a CPU.

    One process uses one GPU: BasicSR's DataParallel gathers the losses of several into one vector.
    """
    import torch

    there = torch.cuda.device_count()
    asked = there if opt["num_gpu"] == "auto" else opt["num_gpu"]
    if asked > there and (there == 0 or not opt["dist"]):
        warn(f"num_gpu={asked}, but this machine has {there}: running on {f'{there} GPU' if there else 'the CPU'}")
        asked = there
    if asked > 1 and not opt["dist"]:
        warn(how_to_use_all_gpus(asked, opt["is_train"]))
        asked = 1
    opt["num_gpu"] = asked
    train = opt["datasets"].get("train")
    if asked == 0 and train is not None:
        if train.get("prefetch_mode") == "cuda":
            warn("datasets.train.prefetch_mode=cuda needs a GPU: using none")
            train["prefetch_mode"] = None
        train["pin_memory"] = False


def how_to_use_all_gpus(count: int, is_train: bool) -> str:
    """The warning for a run in one process on a machine with several GPUs."""
    command = "train" if is_train else "test"
    return (
        f"one process uses one of the {count} GPUs; for all of them: torchrun --nproc_per_node={count} --no-python "
        f"basicsr {command} -opt X.yml --launcher pytorch"
    )


def _set_run_folders(opt: dict, is_train: bool) -> None:
    root = Path(opt["root_path"], "experiments" if is_train else "results", opt["name"])
    opt["path"]["experiments_root" if is_train else "results_root"] = str(root)
    opt["path"]["log"] = str(root)
    opt["path"]["visualization"] = str(root / "visualization")
    if is_train:
        opt["path"]["models"] = str(root / "models")
        opt["path"]["training_states"] = str(root / "training_states")


# ------------------------------------------------------------------------------------------- the command line


def add_option_file(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the option file and changes to it to `parser`."""
    parser.add_argument("-opt", "--opt", required=True, metavar="YML", help="the option file")
    parser.add_argument(
        "--force_yml",
        nargs="+",
        metavar="KEY=VALUE",
        help="change options for this run; join sections with colons: train:total_iter=100 num_gpu=0",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add BasicSR's command line arguments for a training run or a test to `parser`."""
    add_option_file(parser)
    parser.add_argument("--auto_resume", action="store_true", help="continue from the last complete checkpoint")
    parser.add_argument("--debug", action="store_true", help="name the run debug_... and log, validate, and save often")
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm"],
        default="none",
        help="what starts processes; pytorch: torchrun",
    )
    # torch.distributed.launch passes the dash; BasicSR knows the underscore only
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def read_options(args: argparse.Namespace, root_path: str, is_train: bool) -> dict:
    """Read, complete, and check the options of a run; makes no files or folders.

    Args:
        args: the command line, parsed with `add_arguments`.
        root_path: folder in which `experiments/` or `results/` will be made.
        is_train: whether this is a training run.

    Raises:
        OptionProblems: the file is missing or holds no options; or options are missing, unknown, or impossible, or name
            data or checkpoints that do not exist. Each gets a line with the remedy.
    """
    opt, problems, missing = examine(args, root_path, is_train)
    if problems or missing:
        raise OptionProblems([*problems, *missing])
    return opt


def examine(args: argparse.Namespace, root_path: str, is_train: bool | None) -> tuple[dict, list[str], list[str]]:
    """Like `read_options`, but return the problems and the missing files instead of raising.

    Args:
        args, root_path: see `read_options`.
        is_train: None: a training run where the yml has a data set for one.

    Returns:
        The options, which are usable where there are no problems, and have the key 'is_train' where all their sections
        exist; the problems; and the missing files that the options name.

    Raises:
        OptionProblems: the file is missing or holds no options.
    """
    opt, problems = read_yml(args.opt)
    if is_train is None:
        datasets = opt.get("datasets")
        is_train = "train" in (datasets if isinstance(datasets, dict) and datasets else opt)
    unfit = list(check.unfit_sections(opt, is_train))
    if not unfit:
        _fill_in(opt, is_train)
        for entry in args.force_yml or ():
            try:
                _force(opt, entry)
            except OptionProblems as error:
                unfit += error.problems
        unfit += check.unfit_sections(opt, is_train)
    unfit += check.missing_options(opt, is_train)
    if unfit:
        return opt, check.one_per_field([*problems, *unfit]), []
    _complete(opt, is_train)
    problems += check.problems_of(opt, is_train)
    missing = check.missing_files(opt)
    check.report_misspelt(opt, warn)
    opt.update(auto_resume=args.auto_resume, is_train=is_train, root_path=root_path, dist=args.launcher != "none")
    if not problems:
        _name_debug_run(opt, args.debug)
        _settle_devices(opt)
        _set_run_folders(opt, is_train)
    return opt, check.one_per_field(problems), missing


def _complete(opt: dict, is_train: bool) -> None:
    """Convert values to the form that their readers expect. The options may still have problems."""
    if type(opt["name"]) is int:
        opt["name"] = str(opt["name"])
    for phase, dataset in opt["datasets"].items():
        dataset["phase"] = phase.split("_")[0]
        if "scale" in opt:
            dataset["scale"] = opt["scale"]
    metrics = (opt.get("val") or {}).get("metrics")
    for section in metrics.values() if isinstance(metrics, dict) and is_train else ():
        if isinstance(section, dict) and (better := better_of(section)):
            section["better"] = better  # BasicSR's record of the best takes higher for better
    _expand_paths(opt)


def _name_debug_run(opt: dict, debug: bool) -> None:
    if debug and not opt["name"].startswith("debug"):
        opt["name"] = f"debug_{opt['name']}"
    if opt["is_train"] and opt["name"].startswith("debug"):
        opt["logger"].update(print_freq=1, save_checkpoint_freq=8)
        if opt.get("val") is not None:
            opt["val"]["val_freq"] = 8
