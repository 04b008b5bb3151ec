"""The authors' released checkpoints in the `basicsr` command, on small networks of their form."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from small_networks import RELEASED_FORM, small_iter

from iter_arch import SamplingConfig, load_pretrained, save_pretrained
from iter_arch.iter_arch import ITER
from iter_arch.pretrained.released import from_released, to_released
from iter_model import commands

ROOT = Path(__file__).parents[2]
PHOTOS = {"name": "photos", "type": "SingleImageDataset", "dataroot_lq": "photos", "io_backend": {"type": "disk"}}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with a photo and released files of both scales in their place."""
    monkeypatch.chdir(tmp_path)
    folder = Path("experiments/pretrained_models")
    folder.mkdir(parents=True)
    for scale in (2, 4):
        theirs = to_released(small_iter(scale, **RELEASED_FORM).state_dict())
        rest = {key: value for key, value in theirs.items() if not key.startswith("vqgan.")}
        torch.save({"params": rest}, folder / f"ITER_x{scale}.pth")
    vqgan = {key.removeprefix("vqgan."): value for key, value in theirs.items() if key.startswith("vqgan.")}
    torch.save({"params": vqgan}, folder / "ITER_swinvqgan.pth")
    Path("photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    cv2.imwrite("photos/a.png", cv2.resize(pixels, (24, 20), interpolation=cv2.INTER_CUBIC))
    return tmp_path


def basicsr(*words, status=0):
    """Run the command as a process in the current folder; what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "iter_model.commands", *map(str, words)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == status, process.stdout + process.stderr
    return process.stdout + process.stderr


def write_options(source, scale=4, **changes):
    """An option file of the project for the small network of this scale."""
    opt = yaml.safe_load((ROOT / "options" / source).read_text(encoding="utf-8"))
    opt |= {
        "num_gpu": 0,
        "scale": scale,
        "network_g": {"type": "ITER"} | small_iter(scale, **RELEASED_FORM).config,
    } | changes
    Path(source).write_text(yaml.safe_dump(opt))
    return opt


def test_upscale_takes_them_by_name_and_by_path(here):
    for model in ("released_x4", "experiments/pretrained_models/ITER_x4.pth"):
        out = basicsr("upscale", "-i", "photos", "-o", f"out/{model}", "--model", model, "--device", "cpu")
        assert f"restored 1 of 1 image in out/{model}" in out
    images = [cv2.imread(str(path)) for path in sorted(Path("out").rglob("a.png"))]
    assert len(images) == 2 and images[0].shape == (80, 96, 3) and images[0].std() > 1
    np.testing.assert_array_equal(*images)


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        ([], {}),
        (["--alpha", "0.2", "--reevaluate"], {"alpha": 0.2, "reevaluate": True}),
        (["--steps", "3"], {"steps": 3}),
        (["--no-redraw-kept", "--alpha", "0"], {"redraw_kept": False, "alpha": 0.0}),
    ],
)
def test_upscale_samples_as_their_authors_unless_told_otherwise(here, monkeypatch, flags, changes):
    configs = []
    restore = ITER.restore
    monkeypatch.setattr(
        ITER,
        "restore",
        lambda net, lq, *, config, **rest: configs.append(config) or restore(net, lq, config=config, **rest),
    )
    save_pretrained(small_iter(), "paper.safetensors")
    for model in ("released_x4", "paper.safetensors"):
        assert commands.main(["upscale", "-i", "photos", "-o", "out", "--model", model, *flags]) == 0
    released = {"steps": 8, "alpha": 0.7, "schedule": "linear", "reevaluate": False, "redraw_kept": True} | changes
    assert configs == [SamplingConfig(**released), SamplingConfig(**changes)]


def test_a_wrong_option_is_named_before_anything_is_downloaded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("a.png", np.zeros((8, 8, 3), np.uint8))
    command = ["upscale", "-i", "a.png", "-o", "out", "--model", "released_x4", "--alpha", "2"]
    assert commands.main(command) == 2
    assert "--alpha=2.0 must be a number in [0, 1]" in capsys.readouterr().err
    assert os.listdir() == ["a.png"]


def write_test_options():
    """Those of the released x4 for photos without a ground truth."""
    opt = write_options("test_released_x4.yml", datasets={"test": PHOTOS})
    opt["val"]["metrics"] = {"niqe": opt["val"]["metrics"]["niqe"]}
    Path("test_released_x4.yml").write_text(yaml.safe_dump(opt))


def test_the_test_options_run(here):
    write_test_options()
    basicsr("test", "-opt", "test_released_x4.yml")
    (image,) = Path("results/test_released_x4/visualization/photos").glob("*.png")
    assert cv2.imread(str(image)).shape == (80, 96, 3)


def test_a_checkpoint_without_vqgan_never_meets_a_random_one(here):
    write_test_options()
    Path("experiments/pretrained_models/ITER_swinvqgan.pth").unlink()
    released = "path:pretrain_network_g=experiments/pretrained_models/ITER_x4.pth"
    out = basicsr("test", "-opt", "test_released_x4.yml", "--force_yml", released, status=2)
    assert "holds no VQGAN: name one in path.pretrain_network_vqgan" in out


@pytest.mark.parametrize(("scale", "iterations"), [(4, [1, 2]), (2, [1])])
def test_training_continues_from_them(here, scale, iterations):
    """Fine-tuning of a released checkpoint, and its resumption: the VQGAN stays theirs, the rest moves a little."""
    released = Path(f"experiments/pretrained_models/ITER_x{scale}.pth")
    opt = write_options("train_iter_tiny.yml", scale, name="tuned")
    opt["datasets"] = {
        "train": opt["datasets"]["train"] | {"dataroot_gt": "gt", "gt_size": 64, "batch_size_per_gpu": 2}
    }
    opt["path"] = {"pretrain_network_g": str(released), "pretrain_network_vqgan": f"released_x{scale}"}
    opt["train"] |= {"autocast": "none", "warmup_iter": -1}
    opt["train"]["optim_g"]["lr"] = 1e-5
    opt["logger"] = {"print_freq": 1, "save_checkpoint_freq": 1, "use_tb_logger": False}
    del opt["val"]
    Path("gt").mkdir()
    for index in range(2):
        cv2.imwrite(f"gt/{index}.png", np.random.default_rng(index).integers(0, 256, (96, 96, 3), dtype=np.uint8))

    def train(total_iter):
        opt["train"]["total_iter"] = total_iter
        Path("tuned.yml").write_text(yaml.safe_dump(opt))
        basicsr("train", "-opt", "tuned.yml", "--auto_resume")
        return load_pretrained("experiments/tuned/models/iter_latest.safetensors").state_dict()

    start = load_pretrained(released).state_dict()
    assert from_released(torch.load(released)["params"]).keys() < start.keys()
    for tuned in map(train, iterations):
        changed = {key for key in start if not torch.equal(start[key], tuned[key])}
        assert changed and not any(key.startswith("vqgan.") for key in changed)
        for key in changed:
            torch.testing.assert_close(tuned[key], start[key], rtol=0, atol=5e-5)
    # The result is again of their form.
    basicsr("convert", "experiments/tuned/models/iter_latest.safetensors", "tuned.pth")
    assert torch.load("tuned.pth")["params"].keys() > torch.load(released)["params"].keys()
