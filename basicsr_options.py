"""The options of a BasicSR run: read from the yml and the command line, completed, and checked before anything is made.

Patches nothing: `basicsr_compat` puts it behind BasicSR's own parse_options.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from pathlib import Path

import torch
import yaml

__all__ = ["add_arguments", "nearest", "read_options"]


def nearest(word: str, known) -> str:
    """The hint ` (did you mean 'x'?)` for a misspelt word, or '' where no known word is close."""
    close = difflib.get_close_matches(str(word), [str(item) for item in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def warn(message: str) -> None:
    # BasicSR's logger must not be touched before train_pipeline gives it its file.
    if os.environ.get("RANK", "0") == "0":
        print(f"WARNING: {message}", file=sys.stderr, flush=True)


class _OptionLoader(yaml.SafeLoader):
    """BasicSR's loader runs Python tags, and reads 1e-4, which has no dot, as a string (YAML 1.1)."""


_OptionLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)

# What BasicSR itself reads; a key that nearly is one of these is reported as misspelt.
_KNOWN = {
    "": "name model_type scale num_gpu manual_seed datasets path train val logger dist_params find_unused_parameters",
    "train": "ema_decay optim_g optim_d scheduler total_iter warmup_iter pixel_opt perceptual_opt gan_opt ldl_opt "
    "feature_matching_opt net_d_iters net_d_init_iters",
    "val": "val_freq save_img suffix metrics pbar",
    "logger": "print_freq save_checkpoint_freq use_tb_logger wandb",
}


def _read_yml(path: str) -> dict:
    try:
        with open(path, encoding="utf-8") as file:
            opt = yaml.load(file, Loader=_OptionLoader)
    except FileNotFoundError:
        raise FileNotFoundError(f"-opt {path}: there is no such file (looked from {os.getcwd()})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"-opt {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(opt, dict):
        raise ValueError(f"-opt {path} must hold options as `key: value`, it holds {type(opt).__name__}")
    return opt


def _fill_in(opt: dict, is_train: bool) -> None:
    """BasicSR looks these up without asking; where they are missing it stops with a bare KeyError."""
    opt.setdefault("num_gpu", "auto")
    opt.setdefault("manual_seed", None)
    defaults = {"path": {}, "logger": {"use_tb_logger": False}}
    if is_train:
        defaults["path"] = {"resume_state": None}
        defaults["logger"].update(print_freq=100, save_checkpoint_freq=5000)
    if not is_train or opt.get("val") is not None:
        defaults["val"] = {"save_img": not is_train, "suffix": None, **({"val_freq": 5000} if is_train else {})}
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
    except yaml.YAMLError as error:
        raise ValueError(f"--force_yml {entry!r}: the value is not valid YAML: {error}") from None


def _require(opt: dict, is_train: bool) -> None:
    """BasicSR meets a missing option as a bare KeyError, some only after it has made the run's folders."""
    required = ["name", "model_type", "datasets"]
    if is_train:
        required += ["train", "train.total_iter", "datasets.train", "datasets.train.batch_size_per_gpu"]
        required += ["datasets.train.num_worker_per_gpu"]
    for where in required:
        value = opt
        for key in where.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            raise ValueError(f"the options lack {where}; set it in the yml")
    for phase, dataset in opt["datasets"].items():
        kinds = ("train", "val") if is_train else ("val", "test")
        if phase.split("_")[0] not in kinds or not isinstance(dataset, dict):
            raise ValueError(f"datasets.{phase} must be a section whose name starts with {' or '.join(kinds)}")
    # BasicSR reads 'debug' anywhere in the name as its debug mode, which drops TensorBoard and validates all the time.
    if "debug" in str(opt["name"]) and not str(opt["name"]).startswith("debug"):
        raise ValueError(
            f"name={opt['name']!r} contains 'debug', which BasicSR takes for its debug mode; rename the run, or start "
            "the name with 'debug' where that is meant"
        )
    opt["name"] = str(opt["name"])


def _check_registered(opt: dict) -> None:
    """BasicSR meets an unknown type when it gets there: a metric's at the first validation, hours into a run."""
    from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

    named = {"model_type": (opt["model_type"], MODEL_REGISTRY)}
    sections = [(key, value, ARCH_REGISTRY) for key, value in opt.items() if key.startswith("network_") and value]
    sections += [(f"datasets.{phase}", dataset, DATASET_REGISTRY) for phase, dataset in opt["datasets"].items()]
    metrics = (opt.get("val") or {}).get("metrics") or {}
    sections += [(f"val.metrics.{key}", value, METRIC_REGISTRY) for key, value in metrics.items()]
    for key, value in (opt.get("train") or {}).items():
        if key.endswith("_opt") and isinstance(value, dict) and "type" in value:
            sections.append((f"train.{key}", value, LOSS_REGISTRY))
    for where, section, registry in sections:
        if not isinstance(section, dict) or "type" not in section:
            raise ValueError(f"{where} must be a section with a `type`")
        named[f"{where}.type"] = section["type"], registry
    for where, (name, registry) in named.items():
        if name not in registry and f"{name}_basicsr" not in registry:
            raise ValueError(f"{where}={name!r} is not a registered {registry._name}{nearest(name, registry.keys())}")


def _check_numbers(opt: dict, is_train: bool) -> None:
    """BasicSR divides by these: 0 is a ZeroDivisionError in the middle of the run."""
    if not is_train:
        return
    for where, least in {
        "train.total_iter": 1,
        "logger.print_freq": 1,
        "logger.save_checkpoint_freq": 1,
        "val.val_freq": 1,
        "datasets.train.batch_size_per_gpu": 1,
        "datasets.train.num_worker_per_gpu": 0,
    }.items():
        section = opt
        *path, key = where.split(".")
        for name in path:
            section = section.get(name) or {}
        if key not in section:
            continue
        value = section[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < least:
            raise ValueError(f"{where}={value!r} must be a whole number >= {least}")
        section[key] = int(value)
    scheduler, total = opt["train"].get("scheduler") or {}, opt["train"]["total_iter"]
    if scheduler.get("type") == "CosineAnnealingRestartLR" and sum(scheduler.get("periods", [total])) < total:
        raise ValueError(
            f"train.scheduler.periods={scheduler['periods']} must add up to train.total_iter={total} at least"
        )


_PATH_KEY = re.compile(r"(pretrain_network|param_key|strict_load)_\w+")


def _path_keys(opt: dict) -> tuple[list[str], bool]:
    """The keys known in section `path`, and whether the model may read more of their kind.

    Known are those of the yml's networks and those that the model class names in its attribute `path_keys`. A model of
    another package that has no such attribute may have networks without a section of their own.
    """
    from basicsr.utils.registry import MODEL_REGISTRY

    names = [key.removeprefix("network_") for key in opt if key.startswith("network_") and opt[key]]
    keys = [form.format(name) for name in names for form in ("pretrain_network_{}", "param_key_{}", "strict_load_{}")]
    registered = opt.get("model_type") in MODEL_REGISTRY
    model = MODEL_REGISTRY.get(opt["model_type"]) if registered else None
    own = getattr(model, "path_keys", None)
    open_ended = registered and own is None and not model.__module__.startswith("basicsr.")
    return [*keys, *(own or ()), "resume_state", "ignore_resume_networks"], open_ended


def _check_paths(opt: dict, is_train: bool) -> None:
    """BasicSR makes a folder of an unknown key under path:, trains from scratch, and tests with random weights."""
    path = opt["path"]
    known, open_ended = _path_keys(opt)
    for key, value in path.items():
        if key not in known and not (open_ended and _PATH_KEY.fullmatch(key)):
            raise ValueError(f"path.{key} is not an option{nearest(key, known)}; known here: {', '.join(known)}")
        if not isinstance(value, str) or key.startswith("param_key"):
            continue
        path[key] = value = os.path.expanduser(value)
        names_file = key == "resume_state" or value.endswith((".pth", ".pt", ".ckpt", ".safetensors"))
        if names_file and not os.path.isfile(value):
            raise FileNotFoundError(f"path.{key}={value!r}: there is no such file (looked from {os.getcwd()})")
    weights = [key for key in known if key.startswith("pretrain_")]
    if not is_train and weights and not any(path[key] for key in path if key.startswith("pretrain_")):
        raise ValueError(
            f"path.{weights[0]} is not set: a test without weights would measure a random network; set it to the "
            "checkpoint to test"
        )


def _check_data(opt: dict) -> None:
    """BasicSR meets a missing data folder after it has made the run's own folders and renamed an older run's."""
    for phase, dataset in opt["datasets"].items():
        for key, value in dataset.items():
            if not key.startswith(("dataroot", "meta_info")) or value is None:
                continue
            several = isinstance(value, list)
            values = [os.path.expanduser(str(item)) for item in (value if several else [value])]
            dataset[key] = values if several else values[0]
            for item in values:
                if not os.path.exists(item):
                    raise FileNotFoundError(
                        f"datasets.{phase}.{key}={item!r} does not exist (looked from {os.getcwd()}); "
                        "datasets/README.md says how to get and prepare the images"
                    )


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
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 0:
        raise ValueError(f"num_gpu={asked!r} must be 'auto' or a whole number >= 0")
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add BasicSR's command line arguments for a training or a test to `parser`."""
    parser.add_argument("-opt", "--opt", required=True, metavar="YML", help="the option file")
    parser.add_argument(
        "--force_yml",
        nargs="+",
        metavar="KEY=VALUE",
        help="change options of the file for this run, sections joined by colons: train:total_iter=100 num_gpu=0",
    )
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
        ValueError: an option is missing, unknown or impossible; the message names it and says what to do.
        FileNotFoundError: the option file, a data folder or a checkpoint is not there.
    """
    opt = _read_yml(args.opt)
    _fill_in(opt, is_train)
    for entry in args.force_yml or ():
        _force(opt, entry)
    _require(opt, is_train)
    if args.debug and not opt["name"].startswith("debug"):
        opt["name"] = f"debug_{opt['name']}"
    if is_train and opt["name"].startswith("debug"):
        opt["logger"].update(print_freq=1, save_checkpoint_freq=8)
        if opt.get("val") is not None:
            opt["val"]["val_freq"] = 8
    opt.update(auto_resume=args.auto_resume, is_train=is_train, root_path=root_path, dist=args.launcher != "none")
    for phase, dataset in opt["datasets"].items():
        dataset["phase"] = phase.split("_")[0]
        if "scale" in opt:
            dataset["scale"] = opt["scale"]
    _report_misspelt(opt)
    _check_registered(opt)
    _check_numbers(opt, is_train)
    _check_data(opt)
    _check_paths(opt, is_train)
    _settle_devices(opt)
    _set_run_folders(opt, is_train)
    return opt
