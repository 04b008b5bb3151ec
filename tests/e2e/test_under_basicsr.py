"""Our models under BasicSR's own train.py and test.py, in a process that only imports our packages."""

import os
import re
import subprocess
import sys

import pytest
import torch
import yaml
from photos import save_photos
from small_networks import VQGAN, config

# As a host project does it; the pipeline of `basicsr train` is not installed.
HOST = """
import sys
import iter_arch, iter_data, iter_model
from basicsr.models.base_model import BaseModel
from basicsr.{kind} import {kind}_pipeline
assert BaseModel.save_network.__wrapped__.__module__ == "basicsr.models.base_model"
assert {kind}_pipeline.__code__.co_filename.endswith("basicsr/{kind}.py")
{kind}_pipeline(".")
"""
PHOTOS = {"type": "SecondOrderDegradationDataset", "dataroot_gt": "photos", "io_backend": {"type": "disk"}}
TRAIN = {"name": "train", "gt_size": 64, "batch_size_per_gpu": 2, "num_worker_per_gpu": 0, "dataset_enlarge_ratio": 10}
COMMON = {
    "scale": 4,
    "num_gpu": 0,
    "manual_seed": 1,
    "datasets": {"train": {**PHOTOS, **TRAIN}, "val": {**PHOTOS, "name": "set"}},
    "val": {"val_freq": 4, "save_img": True, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 4}}},
    "logger": {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False},
}
SCHEDULE = {
    "ema_decay": 0.9,
    "total_iter": 4,
    "optim_g": {"type": "Adam", "lr": 1e-3},
    "scheduler": {"type": "MultiStepLR", "milestones": [100]},
}
STAGE_ONE = COMMON | {
    "name": "one",
    "model_type": "SwinVQGANModel",
    "network_g": {"type": "SwinVQGAN", **VQGAN},
    "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4},
    "path": {},
    "train": SCHEDULE
    | {
        "pixel_opt": {"type": "L1Loss"},
        "gan_opt": {"type": "GANLoss", "gan_type": "hinge", "loss_weight": 0.1},
        "optim_d": {"type": "Adam", "lr": 1e-3},
        "revive_freq": 2,
    },
}
STAGE_TWO = COMMON | {
    "name": "two",
    "model_type": "ITERModel",
    "network_g": {"type": "ITER", **config()},
    "path": {"pretrain_network_vqgan": "experiments/one/models/net_g_latest.pth"},
    "train": SCHEDULE
    | {f"{name}_opt": {"type": "TokenCrossEntropy"} for name in ("dist", "refiner")}
    | {"evaluator_opt": {"type": "EvaluatorLoss"}, "queue_size": 4},
}


def host(folder, kind, opt, *words):
    """Train or test by BasicSR's pipeline; returns what it printed."""
    (folder / "host.yml").write_text(yaml.safe_dump(opt))
    code = HOST.format(kind=kind)
    result = subprocess.run(
        [sys.executable, "-c", code, "-opt", "host.yml", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos, and the outcome of stage I."""
    folder = tmp_path_factory.mktemp("host")
    save_photos(folder / "photos", 2, 96, 104)
    (folder / "one.txt").write_text(host(folder, "train", STAGE_ONE))
    return folder


def weights(folder, name, iteration):
    return torch.load(folder / f"experiments/{name}/models/net_g_{iteration}.pth", weights_only=True)


def test_stage_one_trains_validates_and_saves(folder):
    output = (folder / "one.txt").read_text()
    assert "Validation set (2 images)" in output and "# psnr:" in output
    assert len(re.findall(r"l_pix: \S+", output)) == 4
    assert set(weights(folder, "one", "latest")) == {"params", "params_ema", "gt_usm"}
    assert sorted(path.name for path in (folder / "experiments/one/visualization").rglob("*_4.png")) == [
        "0_4.png",
        "1_4.png",
    ]


@pytest.mark.parametrize("opt", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_a_resumed_training_has_the_state_of_the_one_that_stopped(folder, opt):
    """BasicSR's own loop begins the epoch anew; what is the model's own is as it was, the averages too."""
    name = f"resumed_{opt['name']}"
    opt = opt | {"name": name, "train": opt["train"] | {"total_iter": 2}}
    host(folder, "train", opt)
    saved = weights(folder, name, 2)
    state = torch.load(folder / f"experiments/{name}/training_states/2.state", weights_only=True)
    assert state["iter"] == 2 and "model" in state["ranks"][0]
    still = opt["train"] | {"total_iter": 4, "optim_g": {"type": "Adam", "lr": 1e-3}}
    output = host(folder, "train", opt | {"train": still}, "--auto_resume")
    assert "Resuming training from epoch: 0, iter: 2" in output and len(re.findall(r"iter: +\d+, lr", output)) == 2
    resumed = weights(folder, name, 4)
    before, after = (one["params_ema"] for one in (saved, resumed))
    # Two steps with a decay of 3/12 and 4/13 and more: the average has moved, and not begun anew.
    assert any(not torch.equal(value, after[key]) for key, value in before.items())


def test_stages_two_and_three_are_tested(folder):
    host(folder, "train", STAGE_TWO)
    test = {key: value for key, value in STAGE_TWO.items() if key not in ("train", "logger")}
    test |= {"name": "tested", "datasets": {"test": {**PHOTOS, "name": "set"}}}
    test["path"] = {"pretrain_network_g": "experiments/two/models/iter_latest.safetensors"}
    output = host(folder, "test", test)
    assert "Validation set (2 images)" in output and "# psnr:" in output
    images = sorted(path.name for path in (folder / "results/tested/visualization/set").glob("*.png"))
    assert images == ["0_tested.png", "1_tested.png"]
