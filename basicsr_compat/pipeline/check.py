"""The check of a run's options: lists every problem with key, section, value, rule, and the nearest known key.

Options that BasicSR itself reads are declared here. Those of networks, models, data sets, and losses come from their
arguments or declarations (see CONTRIBUTING.md). The check makes nothing and opens no file.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from basicsr_compat.pipeline.metric_rules import key_metric_problems
from basicsr_compat.pipeline.sections import Section, build_on_meta, find_type, unregistered
from basicsr_compat.schema import Count, Natural, format_key, format_value, nearest, problems_in


@dataclass(frozen=True, kw_only=True)
class LoggerOptions:
    """The section `logger`. keep_last: number of checkpoints to keep; ~ for all."""

    print_freq: Count = 100
    save_checkpoint_freq: Count = 5000
    keep_last: Count | None = None
    use_tb_logger: bool = False
    wandb: Section | None = None


def problems_of(opt: dict, is_train: bool) -> list[str]:
    """Everything that is wrong with completed options except missing files, one line per problem."""
    problems = [*_name_problems(opt["name"]), *unregistered(opt)]
    if is_train:
        problems += [*_impossible_numbers(opt), *key_metric_problems(opt)]
    problems += problems_in(opt["num_gpu"], Natural | Literal["auto"], "num_gpu")
    problems += problems_in(opt["manual_seed"], Natural | None, "manual_seed")
    return problems + [*_path_problems(opt, is_train), *_declared_problems(opt, is_train)]


def missing_files(opt: dict) -> list[str]:
    """The files and folders that the options name and that do not exist."""
    return [*_missing_data(opt), *_missing_checkpoints(opt)]


# What BasicSR itself reads; a key that nearly is one of these is reported as misspelt.
_KNOWN = {
    "": "name model_type scale num_gpu manual_seed datasets path train val logger dist_params find_unused_parameters",
    "train": "ema_decay optim_g optim_d scheduler total_iter warmup_iter pixel_opt perceptual_opt gan_opt ldl_opt "
    "feature_matching_opt net_d_iters net_d_init_iters",
    "val": "val_freq save_img suffix metrics pbar key_metric",
    "logger": " ".join(field.name for field in fields(LoggerOptions)),
}


def unfit_sections(opt: dict, is_train: bool) -> Iterator[str]:
    """Say which options must be sections and are not."""
    optional = ["path", "logger", "train", "val", *(key for key in opt if str(key).startswith("network_"))]
    for key in optional:
        if opt.get(key) is not None and not isinstance(opt[key], dict):
            yield f"{key}={format_value(opt[key])} must be a section of options, `key: value`"
    datasets = opt.get("datasets")
    if datasets is None:
        return
    kinds = ("train", "val") if is_train else ("val", "test")
    if not isinstance(datasets, dict):
        yield f"datasets={format_value(datasets)} must be a section with a section for each set"
        return
    for phase, dataset in datasets.items():
        if str(phase).split("_")[0] not in kinds or not isinstance(phase, str) or not isinstance(dataset, dict):
            yield f"datasets.{format_key(phase)} must be a section whose name starts with {' or '.join(kinds)}"


def missing_options(opt: dict, is_train: bool) -> Iterator[str]:
    """Say which options are missing; BasicSR raises a bare KeyError, for some only after it has made folders."""
    required = ["name", "model_type", "datasets"]
    if is_train:
        required += ["train", "train.total_iter", "datasets.train", "datasets.train.batch_size_per_gpu"]
        required += ["datasets.train.num_worker_per_gpu"]
    for where in required:
        value: Any = opt
        absent = None
        for depth, key in enumerate(where.split("."), 1):
            value = value.get(key) if isinstance(value, dict) else None
            if value is None:
                absent = ".".join(where.split(".")[:depth])
                break
        if absent == where:
            yield f"the options lack {where}; set it in the yml"


def _name_problems(name: Any) -> Iterator[str]:
    """Say what is wrong with the name, which becomes that of a folder; an older folder of that name is renamed."""
    parts = Path(name).parts if isinstance(name, str) else ()
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name or max(map(len, parts)) > 100:
        yield f"name={format_value(name)} must be the name of a folder to be made, such as my_run"
    # BasicSR reads 'debug' anywhere in the name as its debug mode, which drops TensorBoard and validates all the time.
    elif "debug" in name and not name.startswith("debug"):
        yield (
            f"name={name!r} contains 'debug', which BasicSR takes for its debug mode; rename the run, or start "
            "the name with 'debug' where that is meant"
        )


def _impossible_numbers(opt: dict) -> Iterator[str]:
    """Say which numbers must not be 0: BasicSR divides by them in the middle of the run."""
    for where, annotation in {
        "train.total_iter": Count,
        "logger.print_freq": Count,
        "logger.save_checkpoint_freq": Count,
        "logger.keep_last": Count | None,
        "val.val_freq": Count,
        "datasets.train.batch_size_per_gpu": Count,
        "datasets.train.num_worker_per_gpu": Natural,
    }.items():
        section = opt
        *path, key = where.split(".")
        for name in path:
            section = section.get(name) or {}
        if section.get(key) is not None:
            if isinstance(section[key], float) and section[key].is_integer():
                section[key] = int(section[key])
            yield from problems_in(section[key], annotation, where)
    batch, queue = opt["datasets"]["train"]["batch_size_per_gpu"], opt.get("queue_size")
    if isinstance(batch, int) and isinstance(queue, int) and batch > 0 and queue % batch:
        yield f"queue_size={queue} must be a multiple of datasets.train.batch_size_per_gpu={batch}"
    scheduler, total = opt["train"].get("scheduler") or {}, opt["train"]["total_iter"]
    if isinstance(scheduler, dict) and scheduler.get("type") == "CosineAnnealingRestartLR" and isinstance(total, int):
        periods = scheduler.get("periods")
        if not isinstance(periods, list) or not all(isinstance(period, int) for period in periods):
            yield f"train.scheduler.periods={format_value(periods)} must be a list of whole numbers"
        elif sum(periods) < total:
            yield f"train.scheduler.periods={format_value(periods)} must add up to train.total_iter={total} at least"


_PATH_KEY = re.compile(r"(pretrain_network|param_key|strict_load)_\w+")


def path_keys(opt: dict) -> tuple[list[str], bool]:
    """The keys known in section `path`, and whether the model may read more of their kind.

    These are the keys of the yml's networks, and those in the attribute `path_keys` of the model class. A model of
    another package without this attribute may have networks without a section of their own.
    """
    names = [str(key).removeprefix("network_") for key in opt if str(key).startswith("network_") and opt[key]]
    keys = [form.format(name) for name in names for form in ("pretrain_network_{}", "param_key_{}", "strict_load_{}")]
    model = find_type("model", opt.get("model_type"))
    own = getattr(model, "path_keys", None)
    open_ended = model is not None and own is None and not model.__module__.startswith("basicsr.")
    return [*keys, *(own or ()), "resume_state", "ignore_resume_networks"], open_ended


def _path_problems(opt: dict, is_train: bool) -> Iterator[str]:
    """Say which keys under path: are unknown: BasicSR makes a folder of each, and uses random weights."""
    path = opt["path"]
    known, open_ended = path_keys(opt)
    for key, value in path.items():
        where = f"path.{format_key(key)}"
        if key not in known and not (open_ended and isinstance(key, str) and _PATH_KEY.fullmatch(key)):
            yield f"{where} is not an option{nearest(key, known)}; known here: {', '.join(known)}"
        elif key.startswith("strict_load"):
            yield from problems_in(value, bool, where)
        elif key != "ignore_resume_networks":
            yield from problems_in(value, str | None, where)
    weights = [key for key in known if key.startswith("pretrain_")]
    if not is_train and weights and not any(path[key] for key in path if str(key).startswith("pretrain_")):
        yield (
            f"path.{weights[0]} is not set: a test without weights would measure a random network; set it to the "
            "checkpoint to test"
        )


def _missing_checkpoints(opt: dict) -> Iterator[str]:
    for key, value in opt["path"].items():
        if not isinstance(value, str) or str(key).startswith("param_key"):
            continue
        names_file = key == "resume_state" or value.endswith((".pth", ".pt", ".ckpt", ".safetensors"))
        if names_file and not os.path.isfile(value):
            yield f"path.{key}={format_value(value)}: there is no such file (looked from {os.getcwd()})"


def _missing_data(opt: dict) -> Iterator[str]:
    """The missing data folders, which BasicSR notices only after it has made and renamed folders of runs."""
    for phase, dataset in opt["datasets"].items():
        for key, value in dataset.items():
            if not str(key).startswith(("dataroot", "meta_info")) or value is None:
                continue
            values = value if isinstance(value, list) else [value]
            if not all(isinstance(item, str) for item in values):
                yield f"datasets.{phase}.{key}={format_value(value)} must be a path"
                continue
            for item in values:
                if not os.path.exists(item):
                    yield (
                        f"datasets.{phase}.{key}={format_value(item)} does not exist (looked from {os.getcwd()}); "
                        "datasets/README.md says how to get and prepare the images"
                    )


def _declared_problems(opt: dict, is_train: bool) -> Iterator[str]:
    """The problems that the model and the data sets find in the options that they declare; see CONTRIBUTING.md."""
    for phase, dataset in opt["datasets"].items():
        found = find_type("dataset", dataset.get("type"))
        if hasattr(found, "option_problems"):
            yield from found.option_problems(dataset, f"datasets.{phase}")
    model = find_type("model", opt.get("model_type"))
    if hasattr(model, "option_problems"):
        networks, problems = build_on_meta(opt)
        yield from problems
        yield from model.option_problems(opt, is_train, networks)


def report_misspelt(opt: dict, warn: Callable[[str], None]) -> None:
    """Warn of keys like `ema_deacy`, which BasicSR ignores. They are no errors, because models may read their own."""
    for section, words in _KNOWN.items():
        known = words.split()
        for key in (opt.get(section) or {}) if section else opt:
            if key in known or str(key).startswith(("network_", "optim_")) or str(key).endswith("_opt"):
                continue
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.85)
            if close:
                where = f"{section}.{key}" if section else key
                warn(f"{where} is not an option of BasicSR, did you mean {close[0]!r}?")


def one_per_field(problems: Iterable[str]) -> list[str]:
    """The first problem of each field, because a value that is no number need not be called too small as well."""
    first: dict[str, str] = {}
    for problem in problems:
        first.setdefault(problem.partition("=")[0], problem)
    return list(first.values())
