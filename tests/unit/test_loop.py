"""The loops of `basicsr train` and `basicsr test`, in this process, on a small model of BasicSR's own."""

import argparse
import copy
import logging

import pytest
import torch
import yaml
from basicsr.models.sr_model import SRModel
from basicsr.utils import logger
from option_files import EDSR, PAIRS, l1_training
from photos import save_pairs

from basicsr_compat.pipeline import loop
from basicsr_compat.pipeline.options import read_options
from basicsr_compat.schema import OptionProblems

OPTIONS = {
    "name": "run",
    "model_type": "SRModel",
    "scale": 2,
    "num_gpu": 0,
    "manual_seed": 1,
    "datasets": {
        "train": {**PAIRS, "gt_size": 16, "use_hflip": False, "use_rot": False}
        | {"batch_size_per_gpu": 2, "num_worker_per_gpu": 0},
        "val": dict(PAIRS),
    },
    "network_g": {**EDSR, "upscale": 2},
    "path": {},
    "train": l1_training(4),
    "val": {"val_freq": 2, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0}}},
    "logger": {"print_freq": 1, "save_checkpoint_freq": 100},
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(change, is_train=True) -> exit code; `one`, `iterations` and `validations` are what was seen on the way."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logger, "initialized_logger", {})
    monkeypatch.setattr(logging.getLogger("basicsr"), "handlers", [])
    save_pairs(tmp_path / "gt", tmp_path / "lq", 5, (16, 16), scale=2)
    optimize, validate = SRModel.optimize_parameters, SRModel.validation

    def optimize_parameters(self, current_iter):
        call.iterations.append(current_iter)
        optimize(self, current_iter)

    def validation(self, dataloader, current_iter, tb_logger, save_img=False):
        call.validations.append((current_iter, hasattr(self, "gt")))
        torch.rand(())  # some models draw
        validate(self, dataloader, current_iter, tb_logger, save_img)

    monkeypatch.setattr(SRModel, "optimize_parameters", optimize_parameters)
    monkeypatch.setattr(SRModel, "validation", validation)

    def call(change=lambda opt: None, is_train=True, **words):
        opt = copy.deepcopy(OPTIONS)
        change(opt)
        (tmp_path / "x.yml").write_text(yaml.safe_dump(opt))
        words = {"force_yml": None, **words}
        args = argparse.Namespace(opt="x.yml", auto_resume=False, debug=False, launcher="none", **words)
        call.one = loop.Run()
        return (loop.train if is_train else loop.test)(read_options(args, str(tmp_path), is_train), args, call.one)

    call.iterations, call.validations = [], []
    return call


def test_all_iterations_are_done_whatever_the_epoch_leaves_over(run, tmp_path):
    assert run() == 0  # two batches of two in an epoch of five images
    assert run.iterations == [1, 2, 3, 4]
    assert (tmp_path / "experiments/run/models/net_g_latest.pth").is_file()
    assert (tmp_path / "experiments/run/x.yml").is_file() and list((tmp_path / "experiments/run").glob("train_*.log"))


def test_a_validation_has_its_iterations_number_runs_once_and_sees_no_training_batch(run):
    run()
    assert run.validations == [(2, False), (4, False)]
    run.validations.clear()
    run(lambda opt: opt["val"].update(val_freq=3))
    assert run.validations == [(3, False), (4, False)]  # the last, after the training


def test_a_validation_changes_no_random_draw_of_the_training(run, tmp_path):
    def train(name, val_freq):
        run(lambda opt: (opt.update(name=name), opt["val"].update(val_freq=val_freq)))
        return torch.load(tmp_path / f"experiments/{name}/models/net_g_latest.pth", weights_only=True)["params"]

    often, never = train("often", 1), train("never", 100)
    assert all(torch.equal(value, never[name]) for name, value in often.items())


def test_a_forced_seed_is_the_seed(run, tmp_path):
    def trained(name, seed, **words):
        run(lambda opt: opt.update(name=name, manual_seed=seed), **words)
        return torch.load(tmp_path / f"experiments/{name}/models/net_g_latest.pth", weights_only=True)["params"]

    written, forced, other = (
        trained("written", 7),
        trained("forced", 1, force_yml=["manual_seed=7"]),
        trained("other", 1),
    )
    assert all(torch.equal(value, forced[name]) for name, value in written.items())
    assert not all(torch.equal(value, other[name]) for name, value in written.items())


def test_a_start_that_fails_has_not_begun_and_leaves_nothing(run, tmp_path):
    def lose_a_pair(opt):
        (tmp_path / "lq/4.png").unlink()

    with pytest.raises(OptionProblems, match="datasets.train: "):
        run(lose_a_pair)
    assert not run.one.folders.begun and not (tmp_path / "experiments").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda opt: opt["train"].pop("pixel_opt"), "SRModel: Both pixel and perceptual losses are None"),
        (lambda opt: opt["train"].pop("optim_g"), "SRModel: the options lack 'optim_g'"),
        (lambda opt: opt["train"]["optim_g"].update(type="Adan"), "SRModel: optimizer Adan is not supp"),
        (lambda opt: opt["train"]["pixel_opt"].update(weight=2), r"SRModel: .*unexpected keyword argument 'weight'"),
    ],
)
def test_what_basicsrs_model_says_to_its_options_is_a_problem_with_them(run, tmp_path, change, message):
    with pytest.raises(OptionProblems, match=message):
        run(change)
    assert not (tmp_path / "experiments").exists()


def test_a_fault_in_the_first_iteration_is_no_problem_with_the_options(run, monkeypatch):
    def fail(self, current_iter):
        raise KeyError("a fault")

    monkeypatch.setattr(SRModel, "optimize_parameters", fail)
    with pytest.raises(KeyError):
        run()
    assert not run.one.folders.begun


def test_a_test_begins_when_it_has_its_model(run, tmp_path, monkeypatch):
    run()

    def as_a_test(opt):
        del opt["train"], opt["logger"]
        opt["datasets"] = {"test": opt["datasets"]["val"]}
        opt["path"]["pretrain_network_g"] = "experiments/run/models/net_g_latest.pth"

    assert run(as_a_test, is_train=False) == 0
    assert run.one.folders.begun
    assert len(list((tmp_path / "results/run/visualization/test").iterdir())) == 5

    def fail(self, *args, **kwargs):
        raise ValueError("a fault")

    monkeypatch.setattr(SRModel, "validation", fail)
    with pytest.raises(ValueError, match="a fault"):
        run(as_a_test, is_train=False)
    assert run.one.folders.begun
