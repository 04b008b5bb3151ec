"""Both stages, the test and the restoration of a photo with the outcome, as a user types them, on shipped options."""

import math
import re

import cv2
import numpy as np
import pytest
import torch
import yaml
from commands import BASICSR, call, torchrun
from photos import save_photos
from small_options import small


def logged(output, name):
    """Values of one loss, in the order of the iterations."""
    return [float(value) for value in re.findall(rf"\b{name}: (\S+)", output)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos, and the options of both stages and of a test."""
    folder = tmp_path_factory.mktemp("training")
    save_photos(folder / "photos", 3, 120, 136)
    for name in ("train_swin_vqgan_tiny", "train_swin_vqgan_tiny_decoder", "train_iter_tiny", "test_iter"):
        small(name, folder)
    return folder


@pytest.fixture(scope="module")
def vqgan(folder):
    """What stage I printed; its checkpoint and that of its decoder's tuning are in the folder."""
    words = ["train:total_iter=12", "train:quantize_start_iter=4", "train:net_d_start_iter=8", "train:revive_freq=5"]
    code, output = call(folder, BASICSR, "train", "-opt", "train_swin_vqgan_tiny.yml", "--force_yml", *words)
    assert code == 0, output
    words = ["train:total_iter=2"]
    code, decoder = call(folder, BASICSR, "train", "-opt", "train_swin_vqgan_tiny_decoder.yml", "--force_yml", *words)
    assert code == 0, decoder
    return output


@pytest.fixture(scope="module")
def trained(folder, vqgan):
    """What stages II and III printed in one process; their checkpoints are in the folder."""
    words = ["train:total_iter=12", "train:warmup_iter=-1", "train:optim_g:lr=3e-3"]
    code, output = call(folder, BASICSR, "train", "-opt", "train_iter_tiny.yml", "--force_yml", *words)
    assert code == 0, output
    return output


def test_stage_one_trains_from_the_command(vqgan):
    losses = logged(vqgan, "l_pix")
    assert len(losses) == 12 and all(math.isfinite(value) for value in losses)
    assert min(losses[-3:]) < losses[0]
    assert len(logged(vqgan, "l_gan")) == 5 and logged(vqgan, "codes_used")[-1] > 1
    assert "Validation kodak24 (3 images)" in vqgan and "# psnr:" in vqgan


def test_stages_two_and_three_train_from_the_command(trained):
    for name in ("l_dist", "l_r", "l_e"):
        losses = logged(trained, name)
        assert len(losses) == 12 and all(math.isfinite(value) for value in losses)
    assert sum(logged(trained, "l_dist")[-3:]) < sum(logged(trained, "l_dist")[:3])
    assert "# psnr:" in trained and "# psnr of bicubic:" in trained


def test_steps_are_drawn_for_tensorboard(folder, trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tb_logger/train_iter_tiny")).Reload()
    assert sorted(events.Tags()["images"]) == ["kodak24/0", "kodak24/1", "kodak24/2"]
    picture = events.Images("kodak24/0")[0]
    # lq, S_l, one to eight steps, result and gt side by side.
    assert picture.height == 120 and 5 * 136 <= picture.width <= 12 * 136


def test_two_processes_train_and_validate_like_one(folder, vqgan):
    words = ["train:total_iter=3", "name=two", "train:autocast=none"]
    code, output = call(
        folder, *torchrun(2), "train", "-opt", "train_iter_tiny.yml", "--launcher", "pytorch", "--force_yml", *words
    )
    assert code == 0, output
    assert all(math.isfinite(value) for name in ("l_dist", "l_r", "l_e") for value in logged(output, name))
    images = sorted(path.name for path in (folder / "experiments/two/visualization").rglob("*.png"))
    assert images == ["0_3.png", "1_3.png", "2_3.png"]
    # The same weights in one process.
    opt = yaml.safe_load((folder / "test_iter.yml").read_text())
    opt["datasets"] = {"test": yaml.safe_load((folder / "train_iter_tiny.yml").read_text())["datasets"]["val"]}
    opt["path"] = {"pretrain_network_g": "experiments/two/models/iter_latest.safetensors"}
    del opt["val"]["sampling"]  # that of the shipped weights; these carry their own
    (folder / "alone.yml").write_text(yaml.safe_dump(opt | {"name": "alone"}))
    code, alone = call(folder, BASICSR, "test", "-opt", "alone.yml")
    assert code == 0, alone
    for name in ("psnr", "ssim", "psnr of bicubic"):
        assert len(logged(alone, name)) == 1 and logged(alone, name) == logged(output, name)
    for index in range(3):
        one, other = f"results/alone/visualization/kodak24/{index}_alone.png", f"kodak24/{index}/{index}_3.png"
        other = cv2.imread(str(folder / "experiments/two/visualization" / other))
        assert np.array_equal(cv2.imread(str(folder / one)), other)


def test_the_outcome_restores_photos(folder, trained):
    model = "experiments/train_iter_tiny/models/iter_latest.safetensors"
    code, output = call(folder, BASICSR, "upscale", "-i", "photos/0.png", "-o", "restored", "--model", model)
    assert code == 0, output
    assert cv2.imread(str(folder / "restored/0.png")).shape == (480, 544, 3)


def test_training_resumes(folder, trained):
    words = ["train:total_iter=14", "train:warmup_iter=-1", "logger:save_checkpoint_freq=12"]
    command = [BASICSR, "train", "-opt", "train_iter_tiny.yml", "--auto_resume", "--force_yml"]
    first = call(folder, *command, "train:total_iter=12", "logger:save_checkpoint_freq=12", "name=resumed")
    assert first[0] == 0, first[1]
    code, output = call(folder, *command, *words, "name=resumed")
    assert code == 0, output
    assert "iter: 12." in output and len(logged(output, "l_dist")) == 2
    state = torch.load(folder / "experiments/resumed/training_states/12.state", weights_only=True)
    assert state["iter"] == 12
