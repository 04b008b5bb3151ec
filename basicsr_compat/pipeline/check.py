"""The check of a run's options: a list of every problem, each with key, section, value, rule and the nearest known key.

What BasicSR itself looks up is declared here; what a class of a network, model, data set or loss takes is read from its
arguments, or from what it declares (see CONTRIBUTING.md). Nothing is made, and no file is opened.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from basicsr_compat.schema import (
    Count,
    Natural,
    OneOf,
    OptionProblems,
    format_error,
    format_key,
    format_value,
    nearest,
    problems_in,
)

if TYPE_CHECKING:
    import torch

# ------------------------------------------------------------------------------------------- declarations


def registered(kind: str, **further: Any) -> OneOf:
    """A section whose `type` is a name in BasicSR's registry of this kind; further: see `OneOf`."""

    def names() -> Collection[str]:
        return _registry(kind).keys()

    def find(name: str) -> Callable[..., Any] | None:
        known = [key for key in (name, f"{name}_basicsr") if key in names()]
        return _registry(kind).get(known[0]) if known else None

    return OneOf(f"registered {kind}", find, names, **further)


def _registry(kind: str) -> Any:
    from basicsr.utils import registry  # imports all of BasicSR

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


# ------------------------------------------------------------------------------------------- the list


def problems_of(opt: dict, is_train: bool) -> list[str]:
    """Everything that is wrong with completed options, a line for each problem; files aside."""
    problems = [
        *_name_problems(opt["name"]),
        *_unregistered(opt),
    ]
    if is_train:
        problems += [*_impossible_numbers(opt), *_key_metric_problems(opt)]
    problems += problems_in(opt["num_gpu"], Natural | Literal["auto"], "num_gpu")
    problems += problems_in(opt["manual_seed"], Natural | None, "manual_seed")
    return problems + [*_path_problems(opt, is_train), *_declared_problems(opt, is_train)]


def missing_files(opt: dict) -> list[str]:
    """The files and folders that the options name and that are not there."""
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


def missing_options(opt: dict, is_train: bool) -> Iterator[str]:
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


def _impossible_numbers(opt: dict) -> Iterator[str]:
    """BasicSR divides by these: 0 is a ZeroDivisionError in the middle of the run."""
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


# BasicSR's metrics; those of others say it by an attribute: `metric.better = lambda section: "lower"`.
_BETTER = {"calculate_psnr": "higher", "calculate_ssim": "higher", "calculate_niqe": "lower"}


def better_of(section: Mapping[str, Any]) -> str | None:
    """Which values of a metric are better, 'higher' or 'lower'; None where neither its section nor it says so."""
    if "better" in section or not isinstance(section.get("type"), str):
        return section.get("better")
    says = getattr(registered("metric").find(section["type"]), "better", None)
    return says(section) if says else _BETTER.get(section["type"])


def _key_metric_problems(opt: dict) -> Iterator[str]:
    val = opt.get("val") or {}
    metrics = val.get("metrics")
    name, known = val.get("key_metric"), list(metrics) if isinstance(metrics, dict) else []
    if name is not None and name not in known:
        yield (
            f"val.key_metric={format_value(name)} must be the name of one of val.metrics: "
            f"{', '.join(map(str, known)) or 'there are none'}{nearest(name, known)}"
        )
    elif name is not None and isinstance(metrics[name], dict) and better_of(metrics[name]) is None:
        yield (
            f"val.metrics.{name}.better is missing: val.key_metric keeps the best model, and "
            f"{format_value(metrics[name].get('type'))} does not say whether higher or lower is better"
        )


_PATH_KEY = re.compile(r"(pretrain_network|param_key|strict_load)_\w+")


def path_keys(opt: dict) -> tuple[list[str], bool]:
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
    """BasicSR meets a missing data folder after it has made the run's own folders and renamed an older run's."""
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


def build_on_meta(opt: dict) -> tuple[dict[str, torch.nn.Module], list[str]]:
    """The networks of the sections network_*, without memory for their weights; and what cannot be built.

    Their constructors know which options cannot go together.
    """
    import torch

    networks, problems = {}, []
    for key, section in opt.items():
        if not str(key).startswith("network_") or not section or list(problems_in(section, Network, key)):
            continue
        arguments = {name: value for name, value in section.items() if name != "type"}
        try:
            with torch.device("meta"):
                networks[key] = registered("arch").find(section["type"])(**copy.deepcopy(arguments))
        except Exception as error:  # whatever PyTorch says to sizes that cannot be
            problems.append(f"{key} of type {section['type']} cannot be built: {format_error(error)}")
    return networks, problems


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


def report_misspelt(opt: dict, warn: Callable[[str], None]) -> None:
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


# ------------------------------------------------------------------------------------------- helpers


@contextlib.contextmanager
def naming(where: str, section: Mapping[str, Any]) -> Iterator[None]:
    """Around a constructor: what it says to its options becomes a problem of the section that they are in.

    Constructors of BasicSR and of other projects speak in many ways. An error that does not speak of the options is a
    fault, and stays as it is.

    Raises:
        OptionProblems: instead of a ValueError, an OSError, an assertion with a text, an unknown or missing argument
            and a KeyError for an option that the section lacks.
    """
    try:
        yield
    except OptionProblems:
        raise
    except (ValueError, OSError, NotImplementedError) as error:
        text = format_error(error)
        # What is said of an option by its name needs no more.
        raise OptionProblems(text if _NAMED.match(text) else f"{where}: {text}") from error
    except AssertionError as error:
        if not str(error):
            raise
        raise OptionProblems(f"{where}: {format_error(error)}") from error
    except KeyError as error:
        key = error.args[0] if error.args else None
        if isinstance(key, str) and " " in key:  # a sentence of a registry
            raise OptionProblems(f"{where}: {key}") from error
        if not isinstance(key, str) or key in section:
            raise
        raise OptionProblems(f"{where}: the options lack {key!r}") from error
    except TypeError as error:
        if "__init__() got an unexpected" not in str(error) and "__init__() missing" not in str(error):
            raise
        raise OptionProblems(f"{where}: {error}") from error


_NAMED = re.compile(r"(datasets|path|train|val|network_\w+|logger|dist_params)[.=]\w")


def one_per_field(problems: Iterable[str]) -> list[str]:
    """The first of the problems of each field: a value that is no number is not too small as well."""
    first: dict[str, str] = {}
    for problem in problems:
        first.setdefault(problem.partition("=")[0], problem)
    return list(first.values())
