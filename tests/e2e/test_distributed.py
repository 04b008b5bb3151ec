"""Two processes train and validate as one would; one that fails ends the other, and torchrun or SLURM starts them."""

import copy
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import torch
import yaml
from commands import BASICSR, call, torchrun
from distributed_driver import gradients_of_both_models, validations
from photos import blurred, save
from small_networks import config, small_iter

DRIVER = Path(__file__).parents[1] / "distributed_driver.py"
PHOTOS = {"type": "SecondOrderDegradationDataset", "dataroot_gt": "photos"}
TRAIN = {"gt_size": 64, "batch_size_per_gpu": 2, "num_worker_per_gpu": 1, "dataset_enlarge_ratio": 10}
OPTIONS = {
    "name": "small",
    "model_type": "ITERModel",
    "scale": 4,
    "num_gpu": 0,
    "manual_seed": 1,
    "dist_params": {"backend": "nccl", "timeout": 120},
    "datasets": {
        "train": {**PHOTOS, **TRAIN},
        "val_1": {**PHOTOS, "name": "three"},
        "val_2": {**PHOTOS, "name": "one", "dataroot_gt": "photo"},
    },
    "network_g": {"type": "ITER", **config()},
    "path": {"pretrain_network_vqgan": "vqgan.pth"},
    "train": {
        "ema_decay": 0.9,
        "total_iter": 2,
        "optim_g": {"type": "Adam", "lr": 1e-3},
        "scheduler": {"type": "MultiStepLR", "milestones": [100]},
        **{f"{name}_opt": {"type": "TokenCrossEntropy"} for name in ("dist", "refiner")},
        "evaluator_opt": {"type": "EvaluatorLoss"},
    },
    "val": {"val_freq": 100, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 4}}},
    "logger": {"print_freq": 1, "save_checkpoint_freq": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos, a checkpoint of stage I, and the options of a training run and of its test."""
    folder = tmp_path_factory.mktemp("ranks")
    for seed, name in enumerate(("photos/0", "photos/1", "photos/2", "photo/3")):
        (folder / name).parent.mkdir(exist_ok=True)
        save(folder / f"{name}.png", blurred(96, 104, seed=seed))
    torch.save({"params_ema": small_iter(seed=7).vqgan.state_dict()}, folder / "vqgan.pth")
    (folder / "train.yml").write_text(yaml.safe_dump(OPTIONS))
    test = copy.deepcopy(OPTIONS)
    test["datasets"] = {f"test_{index}": test["datasets"][f"val_{index}"] for index in (1, 2)}
    test["path"] = {"pretrain_network_g": "experiments/first/models/iter_latest.safetensors"}
    del test["train"], test["logger"], test["val"]["val_freq"]
    (folder / "test.yml").write_text(yaml.safe_dump(test))
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    """What the two ranks of one start of torchrun saw."""
    code, output = call(folder, *torchrun(2, sys.executable, DRIVER), "compare")
    assert code == 0, output
    (folder / "output.txt").write_text(output)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


# ---------------------------------------------------------------------------------------------------- training


# Largest difference of a gradient from that of one process, by the parameter's largest gradient: float32 sums over
# the images in another order. Seen: 1.4e-5 (scores of the discriminator cancel) and 1.9e-6.
TOLERANCE = {"vqgan": 5e-5, "iter": 1e-5}


def test_gradients_of_two_ranks_are_those_of_the_joint_batch(ranks, tmp_path):
    one = gradients_of_both_models(tmp_path)
    for (model, accumulate), expected in one.items():
        first, second = (found["gradients"][model, accumulate]["stepped"] for found in ranks)
        assert expected["stepped"].keys() == first.keys() == second.keys()
        for name, gradient in expected["stepped"].items():
            assert torch.equal(first[name], second[name])
            difference = (first[name] - gradient).abs().max()
            assert difference <= TOLERANCE[model] * gradient.abs().max(), (model, accumulate, name)


def test_gradients_are_exchanged_only_where_a_step_follows(ranks):
    for model in ("vqgan", "iter"):
        first, second = (found["gradients"][model, 2]["first"] for found in ranks)
        alive = [name for name in first if first[name] is not None and first[name].any()]
        assert len(alive) > 50
        assert not [name for name in alive if torch.equal(first[name], second[name])]


def test_codebook_averages_and_discriminator_are_the_same_on_all_ranks_after_every_iteration(ranks):
    first, second = (found["history"] for found in ranks)
    # k-means at the third iteration, and a revival after it.
    assert first["codes_made"] == second["codes_made"] and len(first["codes_made"]) >= 2
    assert any("weight_u" in name for name in first["states"][0])
    for one, other in zip(first["states"], second["states"], strict=True):
        for name, value in one.items():
            assert torch.equal(value, other[name]), name


def test_a_decoder_alone_is_trained_alike_on_all_ranks(ranks):
    first, second = (found["decoder_alone"] for found in ranks)
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not torch.equal(first[0]["decoder.0.weight"], first[1]["decoder.0.weight"])


def test_the_frozen_vqgan_is_not_sent_between_ranks(ranks):
    assert [found["frozen_in_ddp"] for found in ranks] == [[], []]


@pytest.mark.draws
def test_ranks_see_different_images_crops_degradations_and_masks(ranks):
    seen = [found["first"] for found in ranks]
    for kind in range(5):  # gt, lq, m_t, alpha, uniform
        samples = [sample for rank in seen for iteration in rank for sample in iteration[kind]]
        assert len(samples) == 8
        assert not any(torch.equal(one, other) for i, one in enumerate(samples) for other in samples[:i]), kind


def test_the_same_seed_gives_the_same_run(ranks, folder):
    for found in ranks:
        for one, other in zip(found["first"], found["second"], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        for one, other in zip(found["history"]["states"], found["again"]["states"], strict=True):
            assert all(torch.equal(value, other[name]) for name, value in one.items())
    first, second = (torch.load(folder / f"experiments/{name}/models/net_g_2.pth") for name in ("first", "second"))
    for key in ("params", "params_ema"):
        assert all(torch.equal(value, second[key][name]) for name, value in first[key].items())


# ---------------------------------------------------------------------------------------------------- validation


def images_under(folder):
    return {str(path.relative_to(folder)): cv2.imread(str(path)) for path in sorted(folder.rglob("*.png"))}


def same_images(one, other):
    return one.keys() == other.keys() and all(np.array_equal(image, other[name]) for name, image in one.items())


def test_two_ranks_validate_as_one(ranks, folder, tmp_path):
    alone = validations(tmp_path)
    for index, expected in enumerate(alone):
        first, second = (found["validations"][index] for found in ranks)
        assert first["metrics"] == second["metrics"] == expected["metrics"]
        assert sorted(first["taken"] + second["taken"]) == sorted(expected["taken"])
        assert [tag for tag, _ in first["pictures"]] == [tag for tag, _ in expected["pictures"]]
        for (_, one), (_, other) in zip(first["pictures"], expected["pictures"], strict=True):
            assert torch.equal(one, other)
    assert [len(expected["taken"]) for expected in alone] == [5, 1]
    assert [len(expected["pictures"]) for expected in alone] == [3, 1]
    images = images_under(tmp_path / "images")
    assert len(images) == 6 and same_images(images, images_under(folder / "validated/images"))


def test_no_rank_waits_for_the_share_of_a_slower_one(ranks):
    assert [len(found["uneven"][0]["taken"]) for found in ranks] == [4, 1]


def test_the_test_command_restores_and_measures_in_two_processes_as_in_one(ranks, folder):
    code, output = call(folder, BASICSR, "test", "-opt", "test.yml", "--force_yml", "name=alone", "val:suffix=small")
    assert code == 0, output
    together = (folder / "output.txt").read_text().partition("Testing three")[2]
    measured = re.findall(r"# psnr: (\S+)", output)
    assert len(measured) == 2 and measured == re.findall(r"# psnr: (\S+)", together)[:2]
    images = images_under(folder / "results/alone/visualization")
    assert list(images) == ["one/3_small.png", *(f"three/{index}_small.png" for index in range(3))]
    assert same_images(images, images_under(folder / "results/small/visualization"))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists threads in /proc")
def test_a_training_leaves_no_thread_of_its_process_group(folder):
    """One that Python's shutdown meets aborts the process, now and then: one finished training run in 15 failed so."""
    code, output = call(folder, *torchrun(2, sys.executable, DRIVER), "threads")
    assert code == 0, output
    assert output.count("0 threads of gloo") == 2, output


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "pairs"), [("succeeds", 20), ("fails", 5)])
def test_no_pair_of_processes_is_aborted_at_its_end(tmp_path, mode, pairs):
    """One in 15 was, by a thread of gloo that freed what a validation had gathered while the interpreter ended."""
    code, output = call(tmp_path, sys.executable, DRIVER.with_name("leaving_driver.py"), pairs, mode)
    assert code == 0 and output.splitlines()[-1] == f"{{0: {2 * pairs}}}", output


# ---------------------------------------------------------------------------------------------------- failures


def test_a_rank_that_fails_because_of_another_names_it(ranks):
    assert ranks[1]["own_fault"] is None
    assert ranks[0]["others_fault"] == "rank 0 ends because rank 1 failed"


def train_with(folder, fault, iteration, *words, torchrun_words=()):
    """Train with a fault in rank 1; returns exit code, output, seconds since the fault, and processes left behind."""
    program = torchrun(2, sys.executable, DRIVER)
    code, output = call(folder, program[0], *torchrun_words, *program[1:], fault, iteration, *words)
    seconds = time.time() - (folder / "fault").stat().st_mtime
    time.sleep(6)  # a DataLoader's worker looks every 5 s whether its process lives
    left = [
        process.info for process in psutil.process_iter(["pid", "cmdline", "cwd"]) if process.info["cwd"] == str(folder)
    ]
    return code, output, seconds, left


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("kill", r"Root Cause \(first observed failure\):\n.*\n.*\n.*\n  rank      : 1 .*\n  exitcode  : -9"),
        ("dataset", r"\[rank1\]: ZeroDivisionError: Caught ZeroDivisionError in DataLoader worker"),
        ("model", r"\[rank1\]: ZeroDivisionError: no such thing"),
        ("memory", r"\[rank1\]: torch.OutOfMemoryError: CUDA out of memory"),
        ("stuck", r"rank 0 ends because another rank died, or did not answer within dist_params.timeout"),
    ],
)
def test_a_rank_that_fails_ends_the_run_and_is_named(folder, fault, message):
    timeout = 20
    words = ["train:total_iter=6", f"dist_params:timeout={timeout}"]
    code, output, seconds, left = train_with(folder, fault, 2, *words)
    assert code != 0
    assert re.search(message, output), output
    assert output.count("Traceback (most recent call last)\n[rank") <= 1 and "[rank0]" not in output
    # torchrun gives the other rank 30 s to end before it kills it.
    assert seconds < 60 + (timeout if fault == "stuck" else 0)
    assert not left


@pytest.mark.slow
@pytest.mark.parametrize("iteration", [1, 3], ids=["before the first checkpoint", "after it"])
def test_a_restart_continues_from_the_last_checkpoint_in_the_same_folder(folder, iteration):
    name = f"restarted_{iteration}"
    words = [f"name={name}", "train:total_iter=4"]
    code, output, _, left = train_with(folder, "kill", iteration, *words, torchrun_words=["--max-restarts=1"])
    assert code == 0, output
    assert ("Resuming training from epoch: 0, iter: 2" in output) == (iteration == 3)
    assert "iter:       4" in output and not left
    assert not list(folder.glob(f"experiments/{name}_archived*"))
    assert torch.load(folder / f"experiments/{name}/training_states/4.state", weights_only=True)["iter"] == 4


@pytest.mark.slow
def test_a_rank_that_fails_in_a_validation_ends_the_others_where_nobody_supervises_them(folder):
    """As under srun, which leaves the other processes running; dist_params.timeout is two minutes here, else 30."""
    port = next(word for word in torchrun(2) if str(word).startswith("--master_port")).partition("=")[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TORCHELASTIC_RESTART_COUNT": "0"}
    environment |= {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    words = [sys.executable, DRIVER, "validation", "0", "val:val_freq=1"]
    processes = [
        subprocess.Popen(
            list(map(str, words)), cwd=folder, env=environment | {"RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        failed = processes[1].communicate(timeout=300)[0]
        other = processes[0].communicate(timeout=60)[0]
    finally:
        processes[0].kill()
    assert [process.returncode for process in processes] == [1, 1]
    assert "ZeroDivisionError: no such thing" in failed
    assert "rank 0 ends because rank 1 failed" in other, other


# ---------------------------------------------------------------------------------------------------- SLURM


def test_slurm_starts_processes_that_train_together(folder, tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames localhost[1-2]" ] && printf "localhost\\nother\\n"\n')
    scontrol.chmod(0o755)
    port = next(word for word in torchrun(2) if str(word).startswith("--master_port")).partition("=")[2]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "MASTER_PORT": port,
        "SLURM_NTASKS": "2",
        "SLURM_NODELIST": "localhost[1-2]",
    }
    words = [BASICSR, "train", "-opt", "train.yml", "--launcher", "slurm", "--force_yml", "name=slurm"]
    processes = [
        subprocess.Popen(
            words,
            cwd=folder,
            env={**environment, "SLURM_PROCID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "world_size: 2" in outputs[0] and "iter:       2" in outputs[0] and "iter:       2" not in outputs[1]
    losses = [float(value) for value in re.findall(r"l_dist: (\S+)", outputs[0])]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
