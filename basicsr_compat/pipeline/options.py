"""The options of a BasicSR run: read from the yml and the command line, completed, and checked before anything is made.

Patches nothing: `basicsr_compat` puts it behind BasicSR's own parse_options.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml

from basicsr_compat.schema import Count, Natural, OneOf, OptionProblems, format_key, format_value, nearest, problems_in

__all__ = [
    "LoggerOptions",
    "Network",
    "OptionProblems",
    "add_arguments",
    "add_option_file",
    "build_on_meta",
    "examine",
    "nearest",
    "read_options",
    "registered",
]


def registered(kind: str, **further: Any) -> OneOf:
    """A section whose `type` is a name in BasicSR's registry of this kind; further: see `OneOf`."""

    def names() -> Collection[str]:
        return _registry(kind).keys()

    def find(name: str) -> Callable[..., Any] | None:
        return _registry(kind).get(name) if name in names() or f"{name}_basicsr" in names() else None

    return OneOf(f"registered {kind}", find, names, **further)


def _registry(kind: str) -> Any:
    from basicsr.utils import registry  # imports all of BasicSR, which basicsr_compat has to repair first

    return getattr(registry, f"{kind.upper()}_REGISTRY")


Section = Mapping[str, Any]
Network = Annotated[Section, registered("arch")]


@dataclass(frozen=True, kw_only=True)
class LoggerOptions:
    """The section `logger`. keep_last: how many checkpoints are kept; ~ for all of them."""

    print_freq: Count = 100
    save_checkpoint_freq: Count = 5000
    keep_last: Count | None = None
    use_tb_logger: bool = False
    wandb: Section | None = None


def warn(message: str) -> None:
    # BasicSR's logger must not be touched before train_pipeline gives it its file.
    if os.environ.get("RANK", "0") == "0":
        print(f"WARNING: {message}", file=sys.stderr, flush=True)


class _OptionLoader(yaml.SafeLoader):
    """BasicSR's loader runs Python tags, and reads 1e-4, which has no dot, as a string (YAML 1.1)."""

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """4e5 is a whole number, as total_iter must be one."""
        value = self.construct_yaml_float(node)
        return int(value) if "." not in node.value and value.is_integer() else value


_OptionLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
_OptionLoader.add_constructor("tag:yaml.org,2002:float", _OptionLoader.construct_number)

# What BasicSR itself reads; a key that nearly is one of these is reported as misspelt.
_KNOWN = {
    "": "name model_type scale num_gpu manual_seed datasets path train val logger dist_params find_unused_parameters",
    "train": "ema_decay optim_g optim_d scheduler total_iter warmup_iter pixel_opt perceptual_opt gan_opt ldl_opt "
    "feature_matching_opt net_d_iters net_d_init_iters",
    "val": "val_freq save_img suffix metrics pbar key_metric",
    "logger": " ".join(field.name for field in fields(LoggerOptions)),
}


_MOST_OPTIONS, _DEEPEST = 100_000, 50


def _read_yml(path: str) -> dict:
    try:
        with open(path, encoding="utf-8") as file:
            opt = yaml.load(file, Loader=_OptionLoader)
    except FileNotFoundError:
        raise FileNotFoundError(f"-opt {path}: there is no such file (looked from {os.getcwd()})") from None
    except OSError as error:
        raise FileNotFoundError(f"-opt {path} cannot be read: {error.strerror}") from None
    except Exception as error:  # besides YAMLError, whatever a tag raises of a text that it does not fit: !!bool maybe
        raise ValueError(f"-opt {path} is not valid YAML: {_one_line(error)}") from None
    if not isinstance(opt, dict):
        raise ValueError(f"-opt {path} must hold options as `key: value`, it holds {type(opt).__name__}")
    _refuse_endless(opt, path)
    return opt


def _refuse_endless(opt: dict, path: str) -> None:
    """Aliases of YAML let a short file stand for an endless one, which whoever copies or prints it would meet."""
    waiting, count = [(opt, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > _DEEPEST or count > _MOST_OPTIONS:
            raise ValueError(f"-opt {path} is nested too deeply, or refers to itself by an alias (*name)")
        if isinstance(value, dict | list):
            waiting += [(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)]


def _unfit_sections(opt: dict, is_train: bool) -> Iterator[str]:
    """Say which sections that BasicSR looks into are none."""
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


def _fill_in(opt: dict, is_train: bool) -> None:
    """BasicSR looks these up without asking; where they are missing it stops with a bare KeyError."""
    opt.setdefault("num_gpu", "auto")
    opt.setdefault("manual_seed", None)
    defaults = {"path": {}, "logger": {"use_tb_logger": False}}
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
    """BasicSR runs a --force_yml entry as code, and makes a new key, which nobody reads, of a misspelt one."""
    path, equals, text = entry.partition("=")
    keys = [key.strip() for key in path.split(":")]
    if not equals:
        raise ValueError(f"--force_yml {entry!r} must have the form section:key=value, e.g. train:total_iter=100")
    section = opt
    for depth, key in enumerate(keys):
        known = section if isinstance(section, dict) else ()
        optional = _path_keys(opt)[0] if keys[:depth] == ["path"] else ()
        if key not in known and key not in optional:
            where, hint = ":".join(keys[: depth + 1]), nearest(key, [*known, *optional])
            raise ValueError(f"--force_yml {entry!r}: the yml has no {where}{hint}; a key must be there to be forced")
        if depth < len(keys) - 1:
            section = section[key]
    text = text.strip()
    try:
        section[keys[-1]] = None if text.lower() == "none" else yaml.load(text, Loader=_OptionLoader)
    except Exception as error:  # as in _read_yml
        raise ValueError(f"--force_yml {entry!r}: the value is not valid YAML: {_one_line(error)}") from None


def _missing(opt: dict, is_train: bool) -> Iterator[str]:
    """BasicSR meets a missing option as a bare KeyError, some only after it has made the run's folders."""
    required = ["name", "model_type", "datasets"]
    if is_train:
        required += ["train", "train.total_iter", "datasets.train", "datasets.train.batch_size_per_gpu"]
        required += ["datasets.train.num_worker_per_gpu"]
    for where in required:
        value, absent = opt, None
        for depth, key in enumerate(where.split("."), 1):
            value = value.get(key) if isinstance(value, dict) else None
            if value is None:
                absent = ".".join(where.split(".")[:depth])
                break
        if absent == where:
            yield f"the options lack {where}; set it in the yml"


def _name_problems(name: Any) -> Iterator[str]:
    """The name becomes a folder, which is renamed where there is one already."""
    parts = Path(name).parts if isinstance(name, str) else ()
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name or max(map(len, parts)) > 100:
        yield f"name={format_value(name)} must be the name of a folder to be made, such as my_run"
    # BasicSR reads 'debug' anywhere in the name as its debug mode, which drops TensorBoard and validates all the time.
    elif "debug" in name and not name.startswith("debug"):
        yield (
            f"name={name!r} contains 'debug', which BasicSR takes for its debug mode; rename the run, or start "
            "the name with 'debug' where that is meant"
        )


def _unregistered(opt: dict) -> Iterator[str]:
    """BasicSR meets an unknown type when it gets there: a metric's at the first validation, hours into a run."""
    model = opt["model_type"]
    if not isinstance(model, str) or registered("model").find(model) is None:
        yield f"model_type={format_value(model)} is not a registered model{nearest(model, _registry('model').keys())}"
    named = [("arch", key, value) for key, value in opt.items() if str(key).startswith("network_") and value]
    named += [("dataset", f"datasets.{phase}", dataset) for phase, dataset in opt["datasets"].items()]
    metrics = (opt.get("val") or {}).get("metrics") or {}
    if not isinstance(metrics, dict):
        yield f"val.metrics={format_value(metrics)} must be a section with a section for each metric"
        metrics = {}
    named += [("metric", f"val.metrics.{format_key(key)}", value) for key, value in metrics.items()]
    for key, value in (opt.get("train") or {}).items():
        if str(key).endswith("_opt") and isinstance(value, dict) and "type" in value:
            named.append(("loss", f"train.{key}", value))
    for kind, where, section in named:
        if not isinstance(section, dict) or "type" not in section:
            yield f"{where} must be a section with a `type`"
        elif not isinstance(section["type"], str) or registered(kind).find(section["type"]) is None:
            hint = nearest(section["type"], _registry(kind).keys())
            yield f"{where}.type={format_value(section['type'])} is not a registered {kind}{hint}"
        elif kind == "arch":
            yield from problems_in(section, Network, where)


def _impossible_numbers(opt: dict, is_train: bool) -> Iterator[str]:
    """BasicSR divides by these: 0 is a ZeroDivisionError in the middle of the run."""
    if not is_train:
        return
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


def _unknown_key_metric(opt: dict) -> Iterator[str]:
    val = opt.get("val") or {}
    metrics = val.get("metrics")
    name, known = val.get("key_metric"), list(metrics) if isinstance(metrics, dict) else []
    if name is not None and name not in known:
        yield (
            f"val.key_metric={format_value(name)} must be the name of one of val.metrics: "
            f"{', '.join(map(str, known)) or 'there are none'}{nearest(name, known)}"
        )


_PATH_KEY = re.compile(r"(pretrain_network|param_key|strict_load)_\w+")


def _path_keys(opt: dict) -> tuple[list[str], bool]:
    """The keys known in section `path`, and whether the model may read more of their kind.

    Known are those of the yml's networks and those that the model class names in its attribute `path_keys`. A model of
    another package that has no such attribute may have networks without a section of their own.
    """
    names = [str(key).removeprefix("network_") for key in opt if str(key).startswith("network_") and opt[key]]
    keys = [form.format(name) for name in names for form in ("pretrain_network_{}", "param_key_{}", "strict_load_{}")]
    model = _model_class(opt)
    own = getattr(model, "path_keys", None)
    open_ended = model is not None and own is None and not model.__module__.startswith("basicsr.")
    return [*keys, *(own or ()), "resume_state", "ignore_resume_networks"], open_ended


def _model_class(opt: dict) -> Any:
    name = opt.get("model_type")
    return registered("model").find(name) if isinstance(name, str) else None


def _path_problems(opt: dict, is_train: bool) -> Iterator[str]:
    """BasicSR makes a folder of an unknown key under path:, trains from scratch, and tests with random weights."""
    path = opt["path"]
    known, open_ended = _path_keys(opt)
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
        opt["path"][key] = value = os.path.expanduser(value)
        names_file = key == "resume_state" or value.endswith((".pth", ".pt", ".ckpt", ".safetensors"))
        if names_file and not os.path.isfile(value):
            yield f"path.{key}={format_value(value)}: there is no such file (looked from {os.getcwd()})"


def _missing_data(opt: dict) -> Iterator[str]:
    """BasicSR meets a missing data folder after it has made the run's own folders and renamed an older run's."""
    for phase, dataset in opt["datasets"].items():
        for key, value in dataset.items():
            if not str(key).startswith(("dataroot", "meta_info")) or value is None:
                continue
            several = isinstance(value, list)
            values = value if several else [value]
            if not all(isinstance(item, str) for item in values):
                yield f"datasets.{phase}.{key}={format_value(value)} must be a path"
                continue
            values = [os.path.expanduser(item) for item in values]
            dataset[key] = values if several else values[0]
            for item in values:
                if not os.path.exists(item):
                    yield (
                        f"datasets.{phase}.{key}={format_value(item)} does not exist (looked from {os.getcwd()}); "
                        "datasets/README.md says how to get and prepare the images"
                    )


def build_on_meta(opt: dict) -> tuple[dict[str, torch.nn.Module], list[str]]:
    """The networks of the sections network_*, without memory for their weights; and what cannot be built.

    Their constructors know which options cannot go together.
    """
    networks, problems = {}, []
    for key, section in opt.items():
        if not str(key).startswith("network_") or not section or list(problems_in(section, Network, key)):
            continue
        arguments = {name: value for name, value in section.items() if name != "type"}
        try:
            with torch.device("meta"):
                networks[key] = registered("arch").find(section["type"])(**copy.deepcopy(arguments))
        except Exception as error:  # whatever PyTorch says to sizes that cannot be
            problems.append(f"{key} of type {section['type']} cannot be built: {_one_line(error)}")
    return networks, problems


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _declared_problems(opt: dict, is_train: bool) -> Iterator[str]:
    """What the classes of model and data sets say that declare their options: see CONTRIBUTING.md."""
    for phase, dataset in opt["datasets"].items():
        name = dataset.get("type")
        found = registered("dataset").find(name) if isinstance(name, str) else None
        if hasattr(found, "option_problems"):
            yield from found.option_problems(dataset, f"datasets.{phase}")
    model = _model_class(opt)
    if hasattr(model, "option_problems"):
        networks, problems = build_on_meta(opt)
        yield from problems
        yield from model.option_problems(opt, is_train, networks)


def _report_misspelt(opt: dict) -> None:
    """BasicSR ignores keys that it does not know, `ema_deacy` among them; models read their own, so this only warns."""
    for section, words in _KNOWN.items():
        known = words.split()
        for key in (opt.get(section) or {}) if section else opt:
            if key in known or str(key).startswith(("network_", "optim_")) or str(key).endswith("_opt"):
                continue
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.85)
            if close:
                where = f"{section}.{key}" if section else key
                warn(f"{where} is not an option of BasicSR, did you mean {close[0]!r}?")


def _settle_devices(opt: dict) -> None:
    """BasicSR takes num_gpu at its word: no GPU there is a crash, as are CUDA streams and pinned memory on a CPU."""
    there = torch.cuda.device_count()
    asked = there if opt["num_gpu"] == "auto" else opt["num_gpu"]
    if asked > there and (there == 0 or not opt["dist"]):
        warn(f"num_gpu={asked}, but this machine has {there}: running on {f'{there} GPU' if there else 'the CPU'}")
        asked = there
    opt["num_gpu"] = asked
    train = opt["datasets"].get("train")
    if asked == 0 and train is not None:
        if train.get("prefetch_mode") == "cuda":
            warn("datasets.train.prefetch_mode=cuda needs a GPU: using none")
            train["prefetch_mode"] = None
        train["pin_memory"] = False


def _set_run_folders(opt: dict, is_train: bool) -> None:
    root = Path(opt["root_path"], "experiments" if is_train else "results", opt["name"])
    opt["path"]["experiments_root" if is_train else "results_root"] = str(root)
    opt["path"]["log"] = str(root)
    opt["path"]["visualization"] = str(root / "visualization")
    if is_train:
        opt["path"]["models"] = str(root / "models")
        opt["path"]["training_states"] = str(root / "training_states")


def add_option_file(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what the options are to `parser`."""
    parser.add_argument("-opt", "--opt", required=True, metavar="YML", help="the option file")
    parser.add_argument(
        "--force_yml",
        nargs="+",
        metavar="KEY=VALUE",
        help="change options of the file for this run, sections joined by colons: train:total_iter=100 num_gpu=0",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add BasicSR's command line arguments for a training or a test to `parser`."""
    add_option_file(parser)
    parser.add_argument("--auto_resume", action="store_true", help="go on from the newest saved state of this run")
    parser.add_argument("--debug", action="store_true", help="name the run debug_...: log, validate and save often")
    parser.add_argument(
        "--launcher", choices=["none", "pytorch", "slurm"], default="none", help="pytorch: started by torchrun"
    )
    # torch.distributed.launch passes the dash; BasicSR knows the underscore only
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def read_options(args: argparse.Namespace, root_path: str, is_train: bool) -> dict:
    """The options of a run, completed and checked; makes nothing.

    Args:
        args: the command line, parsed with `add_arguments`.
        root_path: folder in which `experiments/` or `results/` is to be made.
        is_train: whether this is a training.

    Raises:
        OptionProblems: options are missing, unknown or impossible, or name data or checkpoints that are not there; the
            message says of each what to do, a line each.
        ValueError: the option file holds no options.
        FileNotFoundError: the option file is not there.
    """
    opt, problems, missing = examine(args, root_path, is_train)
    if problems or missing:
        raise OptionProblems([*problems, *missing])
    return opt


def examine(args: argparse.Namespace, root_path: str, is_train: bool | None) -> tuple[dict, list[str], list[str]]:
    """As `read_options`, for who goes on where files are missing.

    Args:
        is_train: None: a training where the yml has a data set for it.

    Returns:
        The options, which can be used where there are no problems, and have the key 'is_train' where all their sections
        are there; what is wrong in them; and which files they name that are not there. ValueError and FileNotFoundError
        as `read_options`.
    """
    opt = _read_yml(args.opt)
    if is_train is None:
        datasets = opt.get("datasets")
        is_train = "train" in (datasets if isinstance(datasets, dict) and datasets else opt)
    problems = list(_unfit_sections(opt, is_train))
    if not problems:
        _fill_in(opt, is_train)
        for entry in args.force_yml or ():
            try:
                _force(opt, entry)
            except ValueError as error:
                problems.append(str(error))
        problems += _unfit_sections(opt, is_train)
    problems += _missing(opt, is_train)
    if problems:
        return opt, _one_a_field(problems), []
    if isinstance(opt["name"], int | float):
        opt["name"] = str(opt["name"])
    problems = [*_name_problems(opt["name"]), *_unregistered(opt), *_impossible_numbers(opt, is_train)]
    problems += _unknown_key_metric(opt)
    problems += problems_in(opt["num_gpu"], Natural | Literal["auto"], "num_gpu")
    problems += problems_in(opt["manual_seed"], Natural | None, "manual_seed")
    problems += _path_problems(opt, is_train)
    for phase, dataset in opt["datasets"].items():
        dataset["phase"] = phase.split("_")[0]
        if "scale" in opt:
            dataset["scale"] = opt["scale"]
    problems += _declared_problems(opt, is_train)
    missing = [*_missing_data(opt), *_missing_checkpoints(opt)]
    _report_misspelt(opt)
    opt.update(auto_resume=args.auto_resume, is_train=is_train, root_path=root_path, dist=args.launcher != "none")
    if not problems:
        _name_debug_run(opt, args.debug)
        _settle_devices(opt)
        _set_run_folders(opt, is_train)
    return opt, _one_a_field(problems), missing


def _one_a_field(problems: Iterable[str]) -> list[str]:
    """The first of the problems of each field: a value that is no number is not too small as well."""
    first: dict[str, str] = {}
    for problem in problems:
        first.setdefault(problem.partition("=")[0], problem)
    return list(first.values())


def _name_debug_run(opt: dict, debug: bool) -> None:
    if debug and not opt["name"].startswith("debug"):
        opt["name"] = f"debug_{opt['name']}"
    if opt["is_train"] and opt["name"].startswith("debug"):
        opt["logger"].update(print_freq=1, save_checkpoint_freq=8)
        if opt.get("val") is not None:
            opt["val"]["val_freq"] = 8
