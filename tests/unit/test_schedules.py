"""The learning rates of a resumed training run are those of a training run with its options, whatever the state had."""

import copy

import pytest
import torch
from basicsr.models.sr_model import SRModel
from small_models import sr_options

from basicsr_compat.pipeline.checkpoints import read_state

MULTI = {"type": "MultiStepLR", "milestones": [2, 4, 9], "gamma": 0.5}
RESTART = {"type": "MultiStepRestartLR", "milestones": [3, 8], "gamma": 0.1, "restarts": [0, 5]}
RESTART["restart_weights"] = [1, 0.5]
COSINE = {"type": "CosineAnnealingRestartLR", "periods": [5, 20], "restart_weights": [1, 0.5], "eta_min": 1e-5}


def model_of(folder, train):
    opt = sr_options(folder, logger={"keep_last": None})
    opt["train"].update(copy.deepcopy(train))
    torch.manual_seed(0)
    return SRModel(opt)


def rates(model, train, first, last):
    """Learning rates of iterations, as the loop sets them."""
    found = []
    for current_iter in range(first, last + 1):
        model.update_learning_rate(current_iter, warmup_iter=train.get("warmup_iter", -1))
        found.append(model.get_current_learning_rate())
    return found


def options_of(scheduler, lr=0.01, **train):
    return {"scheduler": scheduler, "optim_g": {"type": "Adam", "lr": lr}, **train}


CHANGES = [
    ("no change", options_of(MULTI), options_of(MULTI)),
    ("no change", options_of(RESTART, warmup_iter=4), options_of(RESTART, warmup_iter=4)),
    ("no change", options_of(COSINE, warmup_iter=9), options_of(COSINE, warmup_iter=9)),
    ("milestones passed since", options_of(MULTI), options_of(MULTI | {"milestones": [5]})),
    ("milestones to come", options_of(MULTI), options_of(MULTI | {"milestones": [9, 10]})),
    ("gamma", options_of(MULTI), options_of(MULTI | {"gamma": 0.9})),
    ("lr", options_of(MULTI), options_of(MULTI, lr=0.5)),
    ("lr", options_of(RESTART), options_of(RESTART, lr=0.5)),
    ("restarts", options_of(RESTART), options_of(RESTART | {"restarts": [0, 7], "restart_weights": [1, 2]})),
    ("lr", options_of(COSINE), options_of(COSINE, lr=0.5)),
    ("periods", options_of(COSINE), options_of(COSINE | {"periods": [8, 20]})),
    ("warm-up", options_of(MULTI, warmup_iter=4), options_of(MULTI, warmup_iter=10)),
    ("another class", options_of(COSINE), options_of(MULTI)),
]


@pytest.mark.parametrize(("before", "after"), [change[1:] for change in CHANGES], ids=[change[0] for change in CHANGES])
def test_the_schedule_is_always_the_options(tmp_path, before, after):
    stopped = model_of(tmp_path, before)
    rates(stopped, before, 1, 6)
    stopped.save(0, 6)
    expected = rates(model_of(tmp_path, after), after, 1, 14)[6:]
    resumed = model_of(tmp_path, after)
    resumed.resume_training(read_state(tmp_path / "6.state", resumed.opt))
    assert rates(resumed, after, 7, 14) == expected


def test_other_options_of_the_optimizer_are_the_options_and_what_it_gathered_is_the_states(tmp_path):
    first = model_of(tmp_path, options_of(MULTI))
    batch = {"lq": torch.rand(1, 3, 8, 8), "gt": torch.rand(1, 3, 16, 16)}
    first.feed_data(batch)
    first.optimize_parameters(1)
    first.save(0, 1)
    after = options_of(MULTI)
    after["optim_g"] |= {"weight_decay": 0.25, "betas": [0.5, 0.6]}
    resumed = model_of(tmp_path, after)
    resumed.resume_training(read_state(tmp_path / "1.state", resumed.opt))
    (group,) = resumed.optimizer_g.param_groups
    assert group["weight_decay"] == 0.25 and list(group["betas"]) == [0.5, 0.6]
    moments = [state["exp_avg"] for state in first.optimizer_g.state.values()]
    assert all(map(torch.equal, moments, [state["exp_avg"] for state in resumed.optimizer_g.state.values()]))


def test_a_schedule_of_another_projects_class_is_the_states(tmp_path):
    def with_plateau():
        model = model_of(tmp_path, options_of(MULTI))
        model.schedulers = [torch.optim.lr_scheduler.ReduceLROnPlateau(model.optimizer_g, patience=0)]
        return model

    first = with_plateau()
    for loss in (1.0, 2.0, 3.0):
        first.schedulers[0].step(loss)
    first.save(0, 6)
    resumed = with_plateau()
    resumed.resume_training(read_state(tmp_path / "6.state", resumed.opt))
    assert resumed.get_current_learning_rate() == first.get_current_learning_rate() != [0.01]
    assert resumed.schedulers[0].best == 1.0


def test_a_state_of_another_number_of_optimizers_is_refused(tmp_path):
    model = model_of(tmp_path, options_of(MULTI))
    model.save(0, 6)
    state = read_state(tmp_path / "6.state", model.opt)
    state["optimizers"] *= 2
    with pytest.raises(ValueError, match="2 optimizers and 1 schedulers, this one has 1 and 1"):
        model.resume_training(state)
