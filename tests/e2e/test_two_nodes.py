"""Training across two nodes: a launcher each, one rendezvous; a node that is killed, and both started again."""

import os
import re
import signal
import socket
import subprocess
import time

import psutil
import pytest
import torch
import yaml
from commands import BASICSR, TORCHRUN, call, torchrun
from photos import save_photos
from small_networks import config, small_iter

ITERATIONS, KEPT = 16, 4
OPTIONS = {
    "name": "nodes",
    "model_type": "ITERModel",
    "scale": 4,
    "num_gpu": 0,
    "manual_seed": 1,
    "dist_params": {"timeout": 60},
    "datasets": {
        "train": {
            "type": "SecondOrderDegradationDataset",
            "dataroot_gt": "photos",
            "gt_size": 64,
            "batch_size_per_gpu": 2,
            "num_worker_per_gpu": 1,
            "dataset_enlarge_ratio": 10,
        }
    },
    "network_g": {"type": "ITER", **config()},
    "path": {"pretrain_network_vqgan": "vqgan.pth"},
    "train": {
        "total_iter": ITERATIONS,
        "optim_g": {"type": "Adam", "lr": 1e-3},
        "scheduler": {"type": "MultiStepLR", "milestones": [100]},
        **{f"{name}_opt": {"type": "TokenCrossEntropy"} for name in ("dist", "refiner")},
        "evaluator_opt": {"type": "EvaluatorLoss"},
    },
    "logger": {"print_freq": 1, "save_checkpoint_freq": KEPT},
}
TRAIN = ["train", "-opt", "train.yml", "--launcher", "pytorch"]


@pytest.fixture
def folder(tmp_path):
    save_photos(tmp_path / "photos", 3, 96, 104)
    torch.save({"params_ema": small_iter(seed=7).vqgan.state_dict()}, tmp_path / "vqgan.pth")
    (tmp_path / "train.yml").write_text(yaml.safe_dump(OPTIONS))
    return tmp_path


def losses(output):
    """{iteration: what its line says of the losses}."""
    found = {}
    for line in output.splitlines():
        if match := re.search(r"iter: *([\d,]+).*?(l_dist: .*)", line):
            found[int(match[1].replace(",", ""))] = match[2].strip()
    return found


def start_nodes(folder, *words):
    """A launcher for each of two nodes, with one process each, which meet on one port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{one.getsockname()[1]}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    nodes = []
    for rank in range(2):
        # A static rendezvous: the first node is rank 0, whose output is read.
        meeting = ["--nnodes=2", "--nproc_per_node=1", f"--node_rank={rank}", f"--master_addr={endpoint[:9]}"]
        command = [TORCHRUN, *meeting, f"--master_port={endpoint[10:]}", "--no-python", BASICSR, *TRAIN, *words]
        with open(folder / f"node_{rank}.txt", "w") as output:
            nodes.append(
                subprocess.Popen(
                    list(map(str, command)), cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
                )
            )
    return nodes


def kill(node):
    """The launcher and all its processes at once, as where the power fails."""
    processes = [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]
    for process in processes:
        process.send_signal(signal.SIGKILL)
    node.wait()


def wait_for(path, seconds=200):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} is not there after {seconds} s"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_node_is_killed_and_both_continue_with_the_same_losses(folder):
    code, output = call(folder, *torchrun(2), *TRAIN, "--force_yml", "name=undisturbed")
    assert code == 0, output
    expected = losses(output)
    assert sorted(expected) == list(range(1, ITERATIONS + 1))

    nodes = start_nodes(folder)
    wait_for(folder / f"experiments/nodes/training_states/{KEPT}.state")
    kill(nodes[1])
    assert nodes[0].wait(timeout=200) != 0
    before = losses((folder / "node_0.txt").read_text())
    assert KEPT <= max(before) < ITERATIONS

    nodes = start_nodes(folder, "--auto_resume")
    assert [node.wait(timeout=200) for node in nodes] == [0, 0], (folder / "node_0.txt").read_text()
    after = losses((folder / "node_0.txt").read_text())
    assert min(after) > KEPT and max(after) == ITERATIONS
    assert before | after == expected
