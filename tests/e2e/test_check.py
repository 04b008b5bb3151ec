"""`basicsr check` as a user types it: a report, its exit code, and nothing on disk afterwards."""

from pathlib import Path

import pytest
import torch
import yaml
from commands import BASICSR, call
from photos import blurred, save
from small_networks import VQGAN, config, small_iter

from iter_arch import SwinVQGAN, save_pretrained

OPTIONS = Path(__file__).parents[2] / "options"


@pytest.fixture
def folder(tmp_path):
    """Photos, weights, and the options of stage I and of a test with small networks."""
    (tmp_path / "photos").mkdir()
    for index in range(2):
        save(tmp_path / f"photos/{index}.png", blurred(72, 80 + 8 * index, seed=index))
    for name in ("train_swin_vqgan_tiny", "test_iter_kodak24"):
        opt = yaml.safe_load((OPTIONS / f"{name}.yml").read_text())
        for dataset in opt["datasets"].values():
            dataset["dataroot_gt"] = "photos"
        if "train" in opt:
            opt["network_g"] = {"type": "SwinVQGAN", **VQGAN}
            opt["network_d"]["num_feat"] = 4
            opt["datasets"]["train"]["batch_size_per_gpu"] = 2
        else:
            opt["network_g"] |= config()
            opt["path"]["pretrain_network_g"] = "weights.safetensors"
            opt["datasets"]["test"]["type"] = "SecondOrderDegradationDataset"
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump(opt))
    save_pretrained(small_iter(), tmp_path / "weights.safetensors")
    return tmp_path


def check(folder, *words):
    """Exit code and output; nothing may be made, changed or removed."""

    def content():
        return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}

    before = content()
    code, output = call(folder, BASICSR, "check", *words)
    assert content() == before
    assert "Traceback" not in output
    return code, output


def test_it_says_where_the_stages_see_different_ground_truths(folder):
    opt = yaml.safe_load((OPTIONS / "train_iter_tiny.yml").read_text())
    for dataset in opt["datasets"].values():
        dataset["dataroot_gt"] = "photos"
    opt["datasets"]["train"] |= {"gt_size": 64, "batch_size_per_gpu": 2, "gt_usm": True}
    opt["network_g"] |= config()
    opt["path"]["pretrain_network_vqgan"] = "vqgan.pth"
    (folder / "two.yml").write_text(yaml.safe_dump(opt))
    torch.save({"params": small_iter().vqgan.state_dict(), "gt_usm": False}, folder / "vqgan.pth")
    code, output = check(folder, "-opt", "two.yml")
    assert code == 0, output
    assert "datasets.train.gt_usm=true, but vqgan.pth was trained with gt_usm: false" in output


def test_a_training_is_checked_up_to_its_first_step(folder):
    code, output = check(folder, "-opt", "train_swin_vqgan_tiny.yml")
    assert code == 0, output
    assert "datasets.train: 2 images" in output
    parameters = sum(parameter.numel() for parameter in SwinVQGAN(**VQGAN).parameters())
    assert f"network_g: SwinVQGAN, {parameters / 1e6:.1f} M parameters" in output
    assert "train.ssim_opt: SSIMLoss" in output and "val.metrics.psnr: calculate_psnr" in output
    assert "batch: one step of 2 images" in output and "l_pix" in output and output.endswith("all well\n")


def test_a_test_is_checked_up_to_its_smallest_image(folder):
    code, output = check(folder, "-opt", "test_iter_kodak24.yml")
    assert code == 0, output
    assert "photos/0.png (18x20) restored" in output and "psnr" in output


def test_without_its_data_the_rest_is_checked(folder):
    code, output = check(
        folder, "-opt", "train_swin_vqgan_tiny.yml", "--force_yml", "datasets:train:dataroot_gt=nowhere"
    )
    assert code == 2, output
    assert "problem  datasets.train.dataroot_gt='nowhere' does not exist" in output
    assert "ok       datasets.val: 2 images" in output and "ok       network_d: UNetDiscriminatorSN" in output
    assert "skipped  batch: no data" in output and output.endswith("1 problem\n")


def test_every_problem_is_listed_and_no_code_is_run(folder):
    words = ["train:ema_decay=2", "train:optim_g:type=Adan", "network_g:swin:heads=3", "train:pixel_opt:type=L1Los"]
    code, output = check(folder, "-opt", "train_swin_vqgan_tiny.yml", "--force_yml", *words)
    assert code == 2, output
    for start in ("train.ema_decay=2 must", "train.optim_g.type='Adan' is not", "network_g of type SwinVQGAN cannot"):
        assert f"problem  {start}" in output
    assert "did you mean 'L1Loss'" in output and output.endswith("4 problems\n")

    (folder / "train_swin_vqgan_tiny.yml").write_text("name: !!python/object/apply:os.mkdir ['made-by-code']")
    code, output = check(folder, "-opt", "train_swin_vqgan_tiny.yml")
    assert code == 2 and "is not valid YAML" in output and len(output.splitlines()) == 2


def test_a_training_with_problems_names_them_all_and_makes_nothing(folder):
    words = ["train:ema_decay=2", "datasets:val:seed=-1"]
    opt = yaml.safe_load((folder / "train_swin_vqgan_tiny.yml").read_text())
    opt["datasets"]["val"]["seed"] = 0
    (folder / "train_swin_vqgan_tiny.yml").write_text(yaml.safe_dump(opt))
    before = sorted(folder.rglob("*"))
    code, output = call(folder, BASICSR, "train", "-opt", "train_swin_vqgan_tiny.yml", "--force_yml", *words)
    assert code == 2 and sorted(folder.rglob("*")) == before
    assert "basicsr train: error: train.ema_decay=2 must be" in output
    assert "basicsr train: error: datasets.val.seed=-1 must be" in output and "Traceback" not in output


def test_the_projects_own_files_are_checked_from_any_folder(tmp_path):
    code, output = check(tmp_path, "-opt", "iter:test_iter.yml")
    assert code == 0, output
    assert "datasets.test: 7 images" in output and output.endswith("all well\n")
