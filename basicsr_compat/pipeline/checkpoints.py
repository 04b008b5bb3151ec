"""Saves and resumes training runs: files are written atomically, and losses after a resume are exactly the same.

These are plain functions on a model of BasicSR's. `install_pipeline` makes them methods of `BaseModel`; our own models
call them from their methods, so they work in BasicSR's own train.py too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info, master_only
from basicsr.utils.misc import check_resume
from torch import nn

from basicsr_compat.files import (
    NotSaved,
    atomic_save,
    checksum,
    find_state,
    plain_name,
    read_checkpoint,
    remove_leftovers,
    require_fit,
)
from basicsr_compat.pipeline.options import warn
from basicsr_compat.pipeline.randomness import random_state, set_random_state
from basicsr_compat.pipeline.schedules import resume_optimizers
from basicsr_compat.schema import OptionProblems, format_error, format_value


@dataclass
class Progress:
    """The progress of a training run, as far as BasicSR's models do not keep it.

    consumed: samples of this epoch that all ranks have trained on; None where they are not counted.
    saved: iteration of the last state written.
    best: metric, value, and iteration of net_g_best.pth.
    iteration, networks: the checkpoint being written, and the checksum of each of its files; None for one that could
        not be written.
    """

    consumed: int | None = None
    saved: int | None = None
    best: dict[str, Any] | None = None
    iteration: int | None = None
    networks: dict[str, int | None] = field(default_factory=dict)


def progress_of(model: BaseModel) -> Progress:
    """The progress of a model's training run; attaches a new one where there is none."""
    if not hasattr(model, "progress"):
        model.progress = Progress()
    return model.progress


# ------------------------------------------------------------------------------------------- saving


@master_only
def save_network(
    model: BaseModel,
    net: nn.Module | list[nn.Module],
    net_label: str,
    current_iter: int | str,
    param_key: str | list[str] = "params",
    **record: Any,
) -> None:
    """Save networks to one file atomically.

    BasicSR's writes in place, and continues where the disk is full.

    Args:
        current_iter: an iteration; -1 for the end of the run; or 'best', for which only net_g is saved.
        record: plain values that the file holds besides the networks.

    Raises:
        NotSaved: the file of the end or of the best could not be written. That of an iteration is an error in the log.
    """
    if current_iter == "best" and net_label != "net_g":
        return
    nets = net if isinstance(net, list) else [net]
    keys = param_key if isinstance(param_key, list) else [param_key]
    if len(nets) != len(keys):
        raise ValueError(f"{len(nets)} networks for {len(keys)} keys {keys}: the numbers must be the same")
    content = dict(record)
    for one, key in zip(nets, keys, strict=True):
        state = model.get_bare_model(one).state_dict()
        content[key] = {plain_name(name): value.detach().cpu() for name, value in state.items()}
    name = f"{net_label}_{'latest' if current_iter == -1 else current_iter}.pth"
    path = os.path.join(model.opt["path"]["models"], name)
    if not _is_iteration(current_iter):
        return _save(content, path)
    progress = progress_of(model)
    if progress.iteration != current_iter:
        progress.iteration, progress.networks = current_iter, {}
    try:
        _save(content, path)
        progress.networks[name] = checksum(path)
    except OSError as error:
        progress.networks[name] = None
        get_root_logger().error(f"{error}. Training continues; the checkpoints before this one are as they were.")


def save_training_state(model: BaseModel, epoch: int, current_iter: int | str) -> None:
    """Save what a training run needs besides its networks to continue exactly; all ranks must call it.

    BasicSR's forgets the best metrics, the place in the epoch and all random generators. Written last: a state implies
    its networks, whose checksums it holds. Where one of them could not be written there is none.
    """
    if not _is_iteration(current_iter):
        return
    own = {"random": random_state(), "manual_seed": model.opt["manual_seed"]}
    if hasattr(model, "training_state"):
        own["model"] = _on_cpu(model.training_state(current_iter))
    rank, world_size = get_dist_info()
    ranks: list[dict[str, Any] | None] | None = [own]
    if world_size > 1:
        ranks = [None] * world_size if rank == 0 else None
        torch.distributed.gather_object(own, ranks)
    if rank != 0:
        return
    progress = progress_of(model)
    networks = progress.networks if progress.iteration == current_iter else {}
    if None in networks.values():
        return get_root_logger().error(f"No training state of iteration {current_iter}: its networks are not all saved")
    state = {
        "epoch": epoch,
        "iter": current_iter,
        "networks": networks,
        "optimizers": [optimizer.state_dict() for optimizer in model.optimizers],
        "schedulers": [scheduler.state_dict() for scheduler in model.schedulers],
        "warmup_iter": model.opt["train"].get("warmup_iter", -1),
        "best_metric_results": {
            dataset: {name: {**record, "val": float(record["val"])} for name, record in records.items()}
            for dataset, records in getattr(model, "best_metric_results", {}).items()
        },
        "best": progress.best,
        "ranks": ranks,
    }
    if progress.consumed is not None:
        state["consumed"] = progress.consumed
    try:
        _save(state, os.path.join(model.opt["path"]["training_states"], f"{current_iter}.state"))
    except OSError as error:
        return get_root_logger().error(f"{error}. Training continues; the states before this one are as they were.")
    progress.saved = current_iter
    prune(model.opt, current_iter)


def _is_iteration(current_iter: int | str) -> TypeGuard[int]:
    """Whether a checkpoint is that of an iteration, not of the end of the run (-1) or the best."""
    return isinstance(current_iter, int) and current_iter != -1


def _save(content: Any, path: str) -> None:
    for waiting in (1, 1, 0):  # as BasicSR: network file systems fail now and then
        try:
            return atomic_save(content, path)
        except NotSaved as error:
            if not waiting:
                raise
            get_root_logger().warning(f"Save error: {error}; trying again")
            time.sleep(waiting)


def _on_cpu(value: Any) -> Any:
    """Plain containers of tensors, the tensors on the CPU: another rank may not have this one's device."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value


def prune(opt: dict[str, Any], current_iter: int) -> None:
    """Keep the states and networks of the newest logger.keep_last iterations up to this one, and those beyond it."""
    keep_last = (opt.get("logger") or {}).get("keep_last")
    if not keep_last:
        return
    states = {int(path.stem): path for path in _states(opt)}
    kept = sorted(iteration for iteration in states if iteration <= current_iter)[-keep_last:]
    # States first: none may be there without its networks.
    old = [path for iteration, path in sorted(states.items()) if iteration < kept[0]]
    for path in sorted(Path(opt["path"]["models"]).glob("net_*.pth")):
        label = path.stem.rpartition("_")[2]
        if label.isdigit() and int(label) < kept[0]:
            old.append(path)
    try:
        for path in old:
            path.unlink(missing_ok=True)
    except OSError as error:
        get_root_logger().error(f"An old checkpoint cannot be removed (logger.keep_last): {error}")


# ------------------------------------------------------------------------------------------- finding a state


def _states(opt: dict[str, Any]) -> list[Path]:
    return [path for path in Path(opt["path"]["training_states"]).glob("*.state") if path.stem.isdigit()]


def read_state(path: str | os.PathLike, opt: dict[str, Any]) -> dict[str, Any]:
    """Read a state whose networks are complete. Raises ValueError or FileNotFoundError where they are not."""
    state = read_checkpoint(path)
    if not isinstance(state, dict) or not {"iter", "epoch", "optimizers", "schedulers"} <= state.keys():
        raise ValueError(_what_it_is_instead(state))
    models = Path(opt["path"]["models"])
    if "networks" in state:
        for name, crc in state["networks"].items():
            if not (models / name).is_file():
                raise FileNotFoundError(f"{models / name} is missing")
            if checksum(models / name) != crc:
                raise ValueError(f"{models / name} is damaged, or of another run than the state")
        return state
    # Of a version that did not name the networks.
    networks = list(models.glob(f"net_*_{state['iter']}.pth"))
    if not networks:
        raise FileNotFoundError(f"{models} has no networks of iteration {state['iter']}")
    for network in networks:
        read_checkpoint(network)
    return state


def _what_it_is_instead(content: Any) -> str:
    remedy = "name a file of training_states/, which ends in .state, or resume by --auto_resume"
    if isinstance(content, dict) and any(isinstance(value, dict | torch.Tensor) for value in content.values()):
        keys = ", ".join(format_value(key) for key in list(content)[:3])
        return (
            f"this file holds the weights of a network ({keys}), not the state of a training run; {remedy}; to start "
            "from these weights set path.pretrain_network_g"
        )
    return f"this file does not hold the state of a training run; {remedy}"


def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """The state that a training run continues from; None for a new run.

    BasicSR's searches the working directory, needs a CUDA device, and crashes on a truncated state.

    Args:
        opt: the options; with auto_resume the newest state whose networks are whole becomes path.resume_state, the
            networks' paths are those of the state, and path.started_from is what pretrain_network_g was.

    Raises:
        OptionProblems: the state named in path.resume_state, or one of its networks, is damaged or missing.
    """
    drawn = opt.pop("manual_seed_drawn", False)
    if opt["rank"] == 0:
        for folder in ("models", "training_states"):
            remove_leftovers(opt["path"][folder])
    path, state = _newest_state(opt) if opt["auto_resume"] else _named_state(opt)
    if state is None:
        return None
    opt["path"]["resume_state"] = path
    if "ranks" not in state:
        warn(f"{path} is of an earlier version: the epoch starts anew, and the losses are not exactly those of a run "
             "that was never stopped")  # fmt: skip
    elif drawn:
        opt["manual_seed"] = _of_rank(state, opt)["manual_seed"]
    opt["path"]["started_from"] = opt["path"].get("pretrain_network_g")
    check_resume(opt, state["iter"])
    return state


def _newest_state(opt: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    found = sorted(_states(opt), key=lambda one: int(one.stem), reverse=True)
    for path in map(str, found):
        try:
            return path, read_state(path, opt)
        except (ValueError, OSError) as error:
            warn(f"--auto_resume passes over {path}: {format_error(error)}")
    if found:
        warn("--auto_resume finds no whole checkpoint: the training starts anew")
    return "", None


def _named_state(opt: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    path = opt["path"].get("resume_state")
    if not path:
        return "", None
    try:
        return path, read_state(path, opt)
    except (ValueError, OSError) as error:
        raise OptionProblems(f"path.resume_state={path!r}: {format_error(error)}") from error


def _of_rank(state: dict[str, Any], opt: dict[str, Any]) -> dict[str, Any]:
    """The part of a state that this rank wrote; with another number of ranks, a similar one."""
    return state["ranks"][opt["rank"] % len(state["ranks"])]


# ------------------------------------------------------------------------------------------- resuming


def resume_training(model: BaseModel, resume_state: dict[str, Any]) -> None:
    """Continue a model from a state.

    BasicSR's forgets what its own states do not hold, see `save_training_state`, and keeps the state's learning rate
    and milestones where the options have changed.
    """
    resume_optimizers(model, resume_state)
    if resume_state.get("best_metric_results"):
        model.best_metric_results = resume_state["best_metric_results"]
    progress_of(model).best = resume_state.get("best")
    if "ranks" not in resume_state:
        return
    own = _of_rank(resume_state, model.opt)
    if hasattr(model, "load_training_state") and "model" in own:
        model.load_training_state(own["model"])
    if len(resume_state["ranks"]) == model.opt["world_size"]:
        set_random_state(own["random"])
    else:
        get_root_logger().warning(
            f"The state is of {len(resume_state['ranks'])} processes, this training of {model.opt['world_size']}: "
            "it continues from the same place, with other random draws"
        )


# ------------------------------------------------------------------------------------------- loading


def load_network(
    model: BaseModel, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = "params"
) -> None:
    """Load the weights of a network; nothing in the file is executed.

    BasicSR's unpickles code on older PyTorch, and takes `params` where the asked param_key is not there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, lacks `param_key`, or is of another architecture.
    """
    net = model.get_bare_model(net)
    content = read_checkpoint(load_path)
    if param_key is not None and isinstance(content, Mapping) and param_key not in content:
        asked = {value for key, value in model.opt["path"].items() if key.startswith("param_key")}
        # Models ask for params_ema of their own accord, for the EMA copy of a network that has none saved.
        if param_key in asked or "params" not in content:
            raise ValueError(
                f"checkpoint {load_path!r} has no {param_key!r}, it has {', '.join(map(repr, list(content)[:5]))}; "
                "set path.param_key_... to one of them, or to ~ for a file that holds the weights themselves"
            )
        get_root_logger().info(f"{load_path} has no {param_key}: using params.")
        param_key = "params"
    state = find_state(content, load_path, param_key)
    get_root_logger().info(f"Loading {net.__class__.__name__} model from {load_path}, with param key: [{param_key}].")
    if strict:
        misfit = f"checkpoint {load_path!r} is of another architecture than {net.__class__.__name__}"
        require_fit(net.state_dict(), state, misfit)
    model._print_different_keys_loading(net, state, strict)
    net.load_state_dict(state, strict=strict)
