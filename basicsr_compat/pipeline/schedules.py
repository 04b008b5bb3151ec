"""Optimizers and learning rates of a resumed training run, which follow the schedule of the options."""

from __future__ import annotations

from typing import Any

from basicsr.models.base_model import BaseModel
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR
from basicsr.utils import get_root_logger

from basicsr_compat.schema import OptionProblems, format_value

# Of a scheduler's state, where it is in its schedule.
_PLACE = ("last_epoch", "_step_count", "_last_lr")


def resume_optimizers(model: BaseModel, state: dict[str, Any]) -> None:
    """Load the state of the optimizers, with the options and the schedule of the yml.

    Where the schedule is that of the state, it continues exactly. Another schedule is replayed from its start.
    """
    counts = (len(state["optimizers"]), len(state["schedulers"]))
    if counts != (len(model.optimizers), len(model.schedulers)):
        raise OptionProblems(
            f"path.resume_state={format_value(model.opt['path'].get('resume_state'))}: it is of a training run with "
            f"{counts[0]} optimizers and {counts[1]} schedulers, this one has {len(model.optimizers)} and "
            f"{len(model.schedulers)}"
        )
    same = _same_schedule(model, state)
    rates = []
    for optimizer, saved in zip(model.optimizers, state["optimizers"], strict=True):
        groups = []
        for own, other in zip(optimizer.param_groups, saved["param_groups"], strict=True):
            rates.append((own["lr"], other["lr"]))
            options = {name: value for name, value in own.items() if name != "params"}
            groups.append({**other, **options} | ({"lr": other["lr"]} if same else {}))
        optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    if same:
        for scheduler, saved in zip(model.schedulers, state["schedulers"], strict=True):
            if _is_basicsrs(scheduler):
                saved = {name: saved[name] for name in _PLACE if name in saved}
            scheduler.load_state_dict(saved)
        return
    warmup_iter = model.opt["train"].get("warmup_iter", -1)
    for current_iter in range(1, state["iter"] + 1):
        BaseModel.update_learning_rate(model, current_iter, warmup_iter)
    now = [group["lr"] for optimizer in model.optimizers for group in optimizer.param_groups]
    get_root_logger().info(
        "The schedule of the options is another than the state's: the learning rates continue at "
        + ", ".join(f"{new:.4g} instead of {old:.4g}" for new, (_, old) in zip(now, rates, strict=True))
    )


def _is_basicsrs(scheduler: Any) -> bool:
    return isinstance(scheduler, MultiStepRestartLR | CosineAnnealingRestartLR)


def _same_schedule(model: BaseModel, state: dict[str, Any]) -> bool:
    """Whether the learning rates of a state follow the schedule of the options; assumed for other projects' models."""
    if not all(map(_is_basicsrs, model.schedulers)):
        return True
    if state.get("warmup_iter", -1) != model.opt["train"].get("warmup_iter", -1) and "warmup_iter" in state:
        return False
    for scheduler, saved in zip(model.schedulers, state["schedulers"], strict=True):
        own = scheduler.state_dict()
        schedule = [name for name in vars(scheduler) if name in own and name not in _PLACE and not name.startswith("_")]
        if any(_plain(own[name]) != _plain(saved.get(name)) for name in schedule):
            return False
    return True


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
