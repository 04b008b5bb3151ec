"""Repairs of BasicSR 1.4.2 for today's PyTorch, torchvision, NumPy and OpenCV, on CPU as on GPU.

The only place that patches BasicSR. Importing it applies every repair once; our packages import it before anything
else, so that their users, and the DataLoader workers that unpickle their classes, have the repairs too. Each repair is
one function that says why it is there, looks for the fault itself and not for a version number, and may run twice.
Nothing here reads the command line, starts CUDA or opens the network at import.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib.util
import math
import os
import random
import re
import sys
import types
from pathlib import Path

import torch
import yaml


def _stand_in_for_functional_tensor() -> None:
    """torchvision 0.17 removed the module from which BasicSR imports rgb_to_grayscale."""
    name = "torchvision.transforms.functional_tensor"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    from torchvision.transforms.functional import rgb_to_grayscale

    module = types.ModuleType(name, "Stand-in: torchvision moved this module's functions to transforms.functional.")
    module.rgb_to_grayscale = rgb_to_grayscale
    sys.modules[name] = module


_stand_in_for_functional_tensor()

import basicsr.train  # noqa: E402
from basicsr.models import base_model  # noqa: E402
from basicsr.utils import dist_util, misc, options  # noqa: E402


def _replace(old, new) -> None:
    """Put `new` where any loaded BasicSR module holds `old`: its modules import each other's functions by name."""
    for name, module in list(sys.modules.items()):
        if module is not None and name.partition(".")[0] == "basicsr":
            for attribute, value in list(vars(module).items()):
                if value is old:
                    setattr(module, attribute, new)


# ---------------------------------------------------------------------------------------------------- distributed


def init_dist(launcher: str, backend: str = "nccl", **kwargs) -> None:
    """BasicSR's divides by the number of GPUs, 0 on a CPU, and makes every DataLoader worker start by a slow spawn."""
    if launcher == "slurm" and torch.cuda.is_available():
        return dist_util._init_dist_slurm(backend, **kwargs)
    if launcher != "pytorch":
        raise ValueError(f"launcher={launcher!r} must be 'pytorch' (torchrun), or 'slurm' on machines with GPUs")
    kwargs.pop("port", None)  # torchrun chose it; torch refuses the argument
    if torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    else:
        backend = "gloo"
    torch.distributed.init_process_group(backend=backend, **kwargs)


def _model_to_device(self, net):
    """BasicSR's hands CUDA device numbers to DistributedDataParallel on a CPU."""
    net = net.to(self.device)
    if self.opt["dist"]:
        return torch.nn.parallel.DistributedDataParallel(
            net,
            device_ids=[torch.cuda.current_device()] if self.device.type == "cuda" else None,
            find_unused_parameters=self.opt.get("find_unused_parameters", False),
        )
    return torch.nn.DataParallel(net) if self.opt["num_gpu"] > 1 else net


# ---------------------------------------------------------------------------------------------------- options


class _OptionLoader(yaml.SafeLoader):
    """YAML without code; numbers as people write them: YAML 1.1 reads 1e-4, which has no dot, as a string."""


_OptionLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def nearest(word: str, known) -> str:
    """The hint `, did you mean 'x'?` for a misspelt word, or nothing where no known word is close."""
    close = difflib.get_close_matches(str(word), [str(item) for item in known], n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _force(opt: dict, entry: str) -> None:
    """One --force_yml entry `a:b=value`. BasicSR's execs it, and a misspelt key becomes a new one that nobody reads."""
    path, equals, text = entry.partition("=")
    keys = [key.strip() for key in path.split(":")]
    if not equals:
        raise ValueError(f"--force_yml {entry!r} must have the form section:key=value, e.g. train:total_iter=100")
    section = opt
    for depth, key in enumerate(keys):
        where = ":".join(keys[: depth + 1])
        if not isinstance(section, dict) or key not in section:
            known = section if isinstance(section, dict) else ()
            raise ValueError(f"--force_yml {entry!r}: the options have no key {where!r}{nearest(key, known)}")
        if depth < len(keys) - 1:
            section = section[key]
    text = text.strip()
    section[keys[-1]] = None if text.lower() == "none" else yaml.load(text, Loader=_OptionLoader)


def _fill_in(opt: dict, is_train: bool) -> None:
    """Defaults for what BasicSR looks up without asking, a bare KeyError each."""
    opt.setdefault("num_gpu", "auto")
    opt.setdefault("manual_seed", None)
    for section, defaults in {
        "path": {"resume_state": None} if is_train else {},
        "logger": {"print_freq": 100, "save_checkpoint_freq": 5000, "use_tb_logger": False},
        "val": {"save_img": not is_train, "suffix": None, **({"val_freq": 5000} if is_train else {})},
    }.items():
        if section in ("val", "logger") and section not in opt and is_train and section == "val":
            continue
        if opt.get(section) is None:
            opt[section] = {}
        for key, value in defaults.items():
            opt[section].setdefault(key, value)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-opt", "--opt", required=True, help="option file (yml)")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none")
    parser.add_argument("--auto_resume", action="store_true")
    parser.add_argument("--debug", action="store_true")
    # torch.distributed.launch passes the dash, BasicSR knows the underscore only
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    parser.add_argument("--force_yml", nargs="+", default=None, metavar="KEY=VALUE")
    return parser.parse_args()


def parse_options(root_path: str, is_train: bool = True) -> tuple[dict, argparse.Namespace]:
    """The options of this run, from the command line and its yml, checked before anything is made.

    Args:
        root_path: folder in which `experiments/` or `results/` is made.
        is_train: whether this is a training.

    Returns:
        The options and the parsed command line, as BasicSR's own parse_options.
    """
    args = _arguments()
    with open(args.opt, encoding="utf-8") as file:
        opt = yaml.load(file, Loader=_OptionLoader)
    _fill_in(opt, is_train)
    for entry in args.force_yml or ():
        _force(opt, entry)

    opt["auto_resume"] = args.auto_resume
    opt["is_train"] = is_train
    opt["root_path"] = root_path
    if args.debug and not opt["name"].startswith("debug"):
        opt["name"] = "debug_" + opt["name"]
    if opt["num_gpu"] == "auto":
        opt["num_gpu"] = torch.cuda.device_count()

    opt["dist"] = args.launcher != "none"
    if opt["dist"]:
        init_dist(args.launcher, **(opt.get("dist_params") or {}))
    opt["rank"], opt["world_size"] = dist_util.get_dist_info()
    if opt["manual_seed"] is None:
        opt["manual_seed"] = random.randint(1, 10000)
    misc.set_random_seed(opt["manual_seed"] + opt["rank"])

    for phase, dataset in opt["datasets"].items():
        dataset["phase"] = phase.split("_")[0]
        if "scale" in opt:
            dataset["scale"] = opt["scale"]
        for key in ("dataroot_gt", "dataroot_lq"):
            if dataset.get(key) is not None:
                dataset[key] = os.path.expanduser(dataset[key])
    for key, value in opt["path"].items():
        if isinstance(value, str) and ("resume_state" in key or "pretrain_network" in key):
            opt["path"][key] = os.path.expanduser(value)

    root = Path(root_path, "experiments" if is_train else "results", opt["name"])
    opt["path"]["experiments_root" if is_train else "results_root"] = str(root)
    opt["path"]["log"] = str(root)
    opt["path"]["visualization"] = str(root / "visualization")
    if is_train:
        opt["path"]["models"] = str(root / "models")
        opt["path"]["training_states"] = str(root / "training_states")
        if "debug" in opt["name"]:
            if opt.get("val") is not None:
                opt["val"]["val_freq"] = 8
            opt["logger"]["print_freq"] = 1
            opt["logger"]["save_checkpoint_freq"] = 8
    return opt, args


# ---------------------------------------------------------------------------------------------------- training


def load_resume_state(opt: dict) -> dict | None:
    """BasicSR's looks for states under the working directory, whatever root_path is, and needs a CUDA device."""
    if opt["auto_resume"]:
        states = Path(opt["path"]["training_states"]).glob("*.state")
        newest = max(states, key=lambda path: int(path.stem), default=None)
        if newest is not None:
            opt["path"]["resume_state"] = str(newest)
    if not opt["path"].get("resume_state"):
        return None
    state = torch.load(opt["path"]["resume_state"], map_location="cpu", weights_only=True)
    misc.check_resume(opt, state["iter"])
    return state


def _epochs_from_loader(create):
    """BasicSR rounds an epoch's iterations up where the loader rounds down: 40 asked, 21 done; or none, and exit 0."""

    @functools.wraps(create)
    def create_train_val_dataloader(opt, logger):
        train_loader, sampler, val_loaders, epochs, total_iters = create(opt, logger)
        if len(train_loader) == 0:
            raise ValueError(
                f"datasets.train: {len(train_loader.dataset)} images are fewer than one batch of "
                f"{train_loader.batch_size} on each of {opt['world_size']} processes; lower batch_size_per_gpu or set "
                "dataset_enlarge_ratio"
            )
        return train_loader, sampler, val_loaders, math.ceil(total_iters / len(train_loader)), total_iters

    return create_train_val_dataloader


# ---------------------------------------------------------------------------------------------------- images


def _integer_jpeg_quality(add):
    """OpenCV refuses the float quality that BasicSR draws; it used to cut it down, so we do."""

    @functools.wraps(add)
    def add_jpg_compression(img, quality=90):
        return add(img, int(quality))

    return add_jpg_compression


def _contiguous_input(filter2d):
    """filter2D views its input, which fails on the channels-last images that DiffJPEG returns."""

    @functools.wraps(filter2d)
    def filter2D(img, kernel):  # noqa: N802
        return filter2d(img.contiguous(), kernel)

    return filter2D


def _apply() -> None:
    from basicsr.data import degradations
    from basicsr.utils import img_process_util

    for module, name, wrap in (
        (degradations, "add_jpg_compression", _integer_jpeg_quality),
        (img_process_util, "filter2D", _contiguous_input),
        (basicsr.train, "create_train_val_dataloader", _epochs_from_loader),
    ):
        _replace(getattr(module, name), wrap(getattr(module, name)))
    _replace(dist_util.init_dist, init_dist)
    _replace(options.parse_options, parse_options)
    _replace(basicsr.train.load_resume_state, load_resume_state)
    base_model.BaseModel.model_to_device = _model_to_device


_apply()
