"""What pipeline/checkpoints.py makes sure of, a claim at a time, on a small model of BasicSR's own."""

import builtins
import os
import random

import numpy as np
import pytest
import torch
from basicsr.models.sr_model import SRModel
from small_models import sr_options

from basicsr_compat.files import atomic_save
from basicsr_compat.pipeline import checkpoints
from basicsr_compat.pipeline.best import save_best
from basicsr_compat.pipeline.checkpoints import load_resume_state, progress_of
from basicsr_compat.schema import OptionProblems


def options(folder, **changes):
    """Those of a small SRModel whose best weights are kept."""
    val = {"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0}}, "key_metric": "psnr"}
    return sr_options(folder, **{"logger": {"keep_last": None}, "val": val, **changes})


@pytest.fixture
def model(tmp_path):
    return SRModel(options(tmp_path))


@pytest.fixture
def errors(monkeypatch):
    """What is logged as an error."""
    errors = []
    logger = checkpoints.get_root_logger()
    monkeypatch.setattr(logger, "error", errors.append)
    return errors


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------- saving


@pytest.fixture(params=["PytorchStreamWriter failed writing file", "basic_ios::clear: iostream error"])
def full_disk(monkeypatch, request):
    """torch.save writes half a file and fails, as on a full disk."""
    calls = []

    def save(obj, path, *args, **kwargs):
        calls.append(path)
        with builtins.open(path, "wb") as file:
            file.write(b"half a file")
        raise RuntimeError(request.param)

    monkeypatch.setattr(torch, "save", save)
    monkeypatch.setattr(checkpoints.time, "sleep", lambda seconds: None)
    return calls


def test_a_failed_save_leaves_the_older_file_and_no_other(tmp_path, full_disk):
    (tmp_path / "net.pth").write_bytes(b"older")
    with pytest.raises(OSError, match=r"net\.pth.*(failed writing|iostream error)"):
        atomic_save({}, tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == b"older"
    assert names(tmp_path) == ["net.pth"]


def test_an_interrupted_save_leaves_the_older_file(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    (tmp_path / "net.pth").write_bytes(b"older")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_save({}, tmp_path / "net.pth")
    assert names(tmp_path) == ["net.pth"]
    assert (tmp_path / "net.pth").read_bytes() == b"older"


def test_an_intermediate_checkpoint_that_cannot_be_written_is_an_error_in_the_log(model, tmp_path, full_disk, errors):
    model.save(0, 2)
    assert len(full_disk) == 3 and names(tmp_path) == []  # tried three times; no state of networks that are not there
    assert "cannot write" in errors[0] and "No training state of iteration 2" in errors[1]


def test_the_last_networks_that_cannot_be_written_end_the_run(model, full_disk):
    with pytest.raises(checkpoints.NotSaved, match="net_g_latest.pth"):
        model.save(-1, -1)


def test_old_checkpoints_are_removed_and_the_best_is_kept(model, tmp_path):
    model.save(0, 1)
    model.save(-1, "best")
    model.opt["logger"]["keep_last"] = 2
    torch.save({}, tmp_path / "9.state")  # of a run that was set back
    for iteration in (2, 3, 4):
        model.save(0, iteration)
    assert names(tmp_path) == ["3.state", "4.state", "9.state", "net_g_3.pth", "net_g_4.pth", "net_g_best.pth"]


@pytest.mark.parametrize(("better", "kept"), [("higher", 2), ("lower", 1)])
def test_the_best_weights_by_the_key_metric_are_saved(model, tmp_path, better, kept):
    model.opt["val"]["metrics"]["psnr"]["better"] = better
    for iteration, value in enumerate([20.0, 25.0, float("nan"), 22.0], start=1):
        with torch.no_grad():
            model.net_g.conv_first.bias.fill_(iteration)
        model.metric_results = {"psnr": value}
        save_best(model, model.opt["val"], iteration)
    best = torch.load(tmp_path / "net_g_best.pth", weights_only=True)["params"]["conv_first.bias"]
    assert (best == kept).all()
    assert progress_of(model).best == {"metric": "psnr", "value": [20.0, 25.0][kept - 1], "iter": kept}


# ------------------------------------------------------------------------------------------- resuming


def test_a_saved_model_is_resumed_with_its_best_metrics_and_generators(model, tmp_path):
    model.feed_data({"lq": torch.rand(1, 3, 8, 8), "gt": torch.rand(1, 3, 16, 16)})
    model.optimize_parameters(1)
    best = {"set": {"psnr": {"better": "higher", "val": np.float64(31.5), "iter": 1}}}
    model.best_metric_results = best
    model.save(0, 1)
    expected = random.random(), np.random.rand(), torch.rand(())

    opt = options(tmp_path)
    opt["path"]["resume_state"] = str(tmp_path / "1.state")
    state = load_resume_state(opt)
    resumed = SRModel(opt)
    resumed.resume_training(state)
    assert (random.random(), np.random.rand(), torch.rand(())) == expected
    for key, value in model.net_g.state_dict().items():
        assert torch.equal(value, resumed.net_g.state_dict()[key])
    assert resumed.optimizer_g.state_dict()["state"].keys() == model.optimizer_g.state_dict()["state"].keys()
    assert resumed.best_metric_results == best


@pytest.mark.parametrize("harm", ["truncated state", "truncated network", "changed network", "missing network"])
def test_auto_resume_takes_the_newest_whole_checkpoint(model, tmp_path, capsys, monkeypatch, harm):
    for iteration in (9, 10, 2):
        model.save(0, iteration)
    for name in ("11.state.tmp-0123abcd", "net_g_11.pth.tmp-89abcdef", "notes.tmp-1"):
        (tmp_path / name).write_bytes(b"half")
    if harm == "missing network":
        (tmp_path / "net_g_10.pth").unlink()
    elif harm == "changed network":
        torch.save({"params": {}}, tmp_path / "net_g_10.pth")
    else:
        path = tmp_path / ("10.state" if "state" in harm else "net_g_10.pth")
        path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    opt = options(tmp_path, auto_resume=True)
    opt["path"]["pretrain_network_g"] = "weights.pth"
    assert load_resume_state(opt)["iter"] == 9
    assert opt["path"]["pretrain_network_g"] == str(tmp_path / "net_g_9.pth")
    assert opt["path"]["started_from"] == "weights.pth"
    assert "passes over" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("*.tmp*")] == ["notes.tmp-1"]


def test_a_damaged_state_that_was_asked_for_is_refused(model, tmp_path):
    model.save(0, 3)
    (tmp_path / "net_g_3.pth").unlink()
    opt = options(tmp_path)
    opt["path"]["resume_state"] = str(tmp_path / "3.state")
    with pytest.raises(OptionProblems, match=r"path\.resume_state=.*net_g_3\.pth is missing"):
        load_resume_state(opt)


def test_a_state_of_an_earlier_version_resumes_with_a_warning(model, tmp_path, capsys):
    model.save(0, 3)
    state = torch.load(tmp_path / "3.state", weights_only=True)
    old = {key: state[key] for key in ("epoch", "iter", "optimizers", "schedulers")}
    torch.save(old, tmp_path / "3.state")
    opt = options(tmp_path, auto_resume=True)
    SRModel(opt).resume_training(load_resume_state(opt))
    assert "is of an earlier version" in capsys.readouterr().err
    (tmp_path / "net_g_3.pth").write_bytes((tmp_path / "net_g_3.pth").read_bytes()[:-100])
    assert load_resume_state(options(tmp_path, auto_resume=True)) is None


def test_a_seed_that_was_drawn_is_kept(model, tmp_path):
    model.opt["manual_seed"] = 77
    model.save(0, 3)
    opt = options(tmp_path, auto_resume=True, manual_seed=5, manual_seed_drawn=True)
    load_resume_state(opt)
    assert opt["manual_seed"] == 77 and "manual_seed_drawn" not in opt
    opt = options(tmp_path, auto_resume=True, manual_seed=5)
    load_resume_state(opt)
    assert opt["manual_seed"] == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"params": {"weight": torch.zeros(1)}}, r"weights of a network \('params'\), not the state of a training run"),
        ({"conv.weight": torch.zeros(1)}, r"weights of a network \('conv.weight'\).*set path\.pretrain_network_g"),
        ({"iter": 3}, "does not hold the state of a training run"),
        ([1, 2], "does not hold the state of a training run"),
    ],
)
def test_what_is_no_state_is_named_as_what_it_is(tmp_path, content, message):
    torch.save(content, tmp_path / "net_g_latest.pth")
    opt = options(tmp_path)
    opt["path"]["resume_state"] = str(tmp_path / "net_g_latest.pth")
    with pytest.raises(OptionProblems, match=rf"path\.resume_state=.*{message}"):
        load_resume_state(opt)


# ------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (lambda state: {"params": state}, "params"),
        (lambda state: {"params": {f"module._orig_mod.{name}": value for name, value in state.items()}}, "params"),
        (lambda state: {"params": state}, "params_ema"),  # of which there is none, and nobody asked for it
        (lambda state: state, None),
        (lambda state: {"state_dict": state}, None),
    ],
    ids=["as saved", "of wrapped networks", "without an average", "weights themselves", "of another script"],
)
def test_the_weights_of_a_checkpoint_are_loaded(model, tmp_path, content, key):
    state = {name: torch.full_like(value, 0.5) for name, value in model.net_g.state_dict().items()}
    torch.save(content(state), tmp_path / "net.pth")
    model.load_network(model.net_g, str(tmp_path / "net.pth"), True, key)
    assert all(torch.equal(value, state[name]) for name, value in model.net_g.state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"params_ema": {}}, "has no 'params', it has 'params_ema'"),
        ([1, 2], "holds no state dict but a list"),
        ({"params": {"x": 1}}, "holds no state dict"),
        ({"params": {"x": torch.zeros(1)}}, "is of another architecture than"),
    ],
)
def test_a_checkpoint_of_something_else_is_named(model, tmp_path, content, message):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=message):
        model.load_network(model.net_g, str(tmp_path / "net.pth"), True, "params")
