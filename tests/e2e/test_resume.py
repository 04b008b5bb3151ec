"""A training run that is killed, stopped or out of disk continues with exactly the losses of one that never was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from commands import BASICSR, call, torchrun
from option_files import EDSR
from photos import save_pairs
from small_networks import TOKENS, VQGAN, small_iter

SERVER = Path(__file__).parents[1] / "run_server.py"
LAST = 14  # iterations of a training run, 5 in an epoch
PHOTOS = {"type": "SecondOrderDegradationDataset", "dataroot_gt": "../photos"}
TRAIN = {
    "accumulate": 3,
    "ema_decay": 0.9,
    "optim_g": {"type": "Adam", "lr": 1e-3},
    "scheduler": {"type": "CosineAnnealingRestartLR", "periods": [5000], "restart_weights": [1]},
    "total_iter": LAST,
    "warmup_iter": 6,
}
COMMON = {
    "scale": 4,
    "num_gpu": 0,
    "manual_seed": 3,
    "val": {"val_freq": 4, "save_img": False, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 4}}},
    "logger": {"print_freq": 1, "save_checkpoint_freq": 4, "use_tb_logger": False},
}
COMMON["val"]["key_metric"] = "psnr"
LOADER = {"batch_size_per_gpu": 2, "num_worker_per_gpu": 0, "dataset_enlarge_ratio": 5}

MODELS = {
    # The warm-up of the codebook ends, the GAN loss begins and codes are revived between the checkpoints.
    "vqgan": {
        "model_type": "SwinVQGANModel",
        "datasets": {"train": {**PHOTOS, **LOADER, "gt_size": 64}, "val": PHOTOS},
        "network_g": {"type": "SwinVQGAN", **VQGAN},
        "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4},
        "train": {
            **TRAIN,
            "optim_d": {"type": "Adam", "lr": 1e-3},
            "pixel_opt": {"type": "L1Loss"},
            "gan_opt": {"type": "GANLoss", "gan_type": "hinge", "loss_weight": 0.1},
            "quantize_start_iter": 7,
            "net_d_start_iter": 6,
            "revive_freq": 5,
        },
    },
    "iter": {
        "model_type": "ITERModel",
        "datasets": {"train": {**PHOTOS, **LOADER, "gt_size": 64}, "val": PHOTOS},
        "network_g": {
            "type": "ITER",
            "scale": 4,
            "vqgan": VQGAN,
            "lq_encoder": {"stem_channels": 8} | TOKENS,
            "refiner": TOKENS,
            "evaluator": TOKENS,
        },
        "path": {"pretrain_network_vqgan": "../vqgan.pth"},
        "train": {
            **TRAIN,
            "queue_size": 6,
            "dist_opt": {"type": "TokenCrossEntropy"},
            "refiner_opt": {"type": "TokenCrossEntropy"},
            "evaluator_opt": {"type": "EvaluatorLoss"},
        },
    },
    # BasicSR's own model, network and data set, whose items draw from the global generators.
    "sr": {
        "model_type": "SRModel",
        "datasets": {
            "train": {"type": "PairedImageDataset", "dataroot_gt": "../photos", "dataroot_lq": "../small"}
            | {"gt_size": 64, "use_hflip": True, "use_rot": True, "prefetch_mode": "cpu"}
            | LOADER,
            "val": {"type": "PairedImageDataset", "dataroot_gt": "../photos", "dataroot_lq": "../small"},
        },
        "network_g": EDSR,
        "train": {key: value for key, value in TRAIN.items() if key != "accumulate"}
        | {"pixel_opt": {"type": "L1Loss"}},
    },
}


class Runs:
    """Training runs in folders of their own, each a fork of one process, and how they came out."""

    def __init__(self, folder):
        self.folder = folder
        save_pairs(folder / "photos", folder / "small", 2, (80, 96))
        torch.save({"params_ema": small_iter(seed=7).vqgan.state_dict()}, folder / "vqgan.pth")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen([sys.executable, SERVER], env=environment, **pipes)

    def make(self, name, model, **changes):
        """A folder with the option file of a training run. changes: of its logger section, or workers."""
        opt = yaml.safe_load(yaml.safe_dump({"name": "run", **COMMON, "path": {}, **MODELS[model]}))
        opt["datasets"]["train"]["num_worker_per_gpu"] = changes.pop("workers", 0)
        opt["logger"] |= changes
        (self.folder / name).mkdir()
        (self.folder / name / "train.yml").write_text(yaml.safe_dump(opt))
        return self.folder / name

    def train(self, folder, *words, **plan):
        """The exit code and what was printed; see run_server.py for the plan."""
        words = ["train", "-opt", "train.yml", *words]
        print(json.dumps({"folder": str(folder), "words": words, **plan}), file=self.server.stdin, flush=True)
        answer = json.loads(self.server.stdout.readline())
        return answer["code"], answer["output"]

    def reference(self, model, workers=0):
        """Folder of a training run that was never stopped."""
        folder = self.folder / f"never_stopped_{model}_{workers}"
        if not folder.exists():
            code, output = self.train(self.make(folder.name, model, workers=workers))
            assert code == 0, output
        return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("resume"))
    yield runs
    runs.server.stdin.close()
    runs.server.wait(timeout=60)


def losses(folder):
    """Losses of each iteration, in hexadecimal; those computed last, where a resumed run computed some again."""
    return dict(json.loads(line) for line in (folder / "losses.txt").read_text().splitlines())


def repeated_equal(folder):
    """Whether the iterations that a resumed run computed again had the same losses."""
    lines = [json.loads(line) for line in (folder / "losses.txt").read_text().splitlines()]
    return all(values == losses(folder)[iteration] for iteration, values in lines)


def outcome(folder):
    """Final and best weights, and what the best were."""
    experiment = folder / "experiments/run"
    found = {
        name: torch.load(experiment / f"models/net_g_{name}.pth", weights_only=True) for name in ("latest", "best")
    }
    state = torch.load(max(experiment.glob("training_states/*.state"), key=lambda path: int(path.stem)))
    return found, state["best_metric_results"], state["best"]


def assert_same_outcome(folder, reference):
    assert losses(folder) == losses(reference) and len(losses(folder)) == LAST
    assert repeated_equal(folder)
    (weights, *records), (expected, *expected_records) = outcome(folder), outcome(reference)
    assert records == expected_records
    for name in expected:
        for key in expected[name]:
            if not isinstance(expected[name][key], dict):  # what a file records besides its networks
                assert weights[name][key] == expected[name][key]
                continue
            for part, value in expected[name][key].items():
                assert torch.equal(weights[name][key][part], value), (name, key, part)


def param(*values, always):
    """A parameter set that runs with --slow only, unless it is one of those that always run."""
    return pytest.param(*values, marks=() if always else pytest.mark.slow)


@pytest.mark.parametrize(
    ("model", "workers"),
    [
        param(model, workers, always=(model, workers) in (("vqgan", 0), ("iter", 2), ("sr", 2)))
        for model in MODELS
        for workers in (0, 2)
    ],
)
def test_a_killed_training_continues_with_the_same_losses(runs, model, workers):
    reference = runs.reference(model)
    folder = runs.make(f"killed_{model}_{workers}", model, workers=workers)
    # At the 6th iteration: after the checkpoint of the 4th, in the 2nd epoch and within accumulated gradients.
    code, output = runs.train(folder, kill=["iteration", 6])
    assert code == -signal.SIGKILL, output
    code, output = runs.train(folder, "--auto_resume", kill=["iteration", 7])
    assert code == -signal.SIGKILL and "Resuming training from epoch: 0, iter: 4" in output, output
    code, output = runs.train(folder, "--auto_resume")
    assert code == 0 and "Resuming training from epoch: 1, iter: 8" in output, output
    assert_same_outcome(folder, reference)


# Points of run_server.py, the k-th time each, in a training run that saves net_g, net_d and a state at 4, 8 and 12;
# what is saved whole before each; and the iteration that --auto_resume continues from.
KILL_POINTS = [
    ("iteration", 3, None),
    ("iteration", 9, 8),
    ("write", 1, None),  # net_g_4
    ("rename", 2, None),  # net_d_4
    ("renamed", 2, None),  # net_d_4 is there, its state is not
    ("write", 3, None),  # 4.state
    ("renamed", 3, 4),  # 4.state
    ("validation", 1, 4),
    ("validation", 2, 4),
    ("write", 4, 4),  # net_g_best of the validation at 4
    ("write", 5, 4),  # net_g_8
    ("renamed", 5, 4),
    ("write", 6, 4),  # net_d_8
    ("rename", 7, 4),  # 8.state
    ("prune", 1, 8),  # 4.state is to go
    ("prune", 2, 8),  # 4.state is gone, its networks are not
    ("prune", 3, 8),
    ("iteration", 14, 12),
]
ALWAYS = [("write", 1), ("rename", 7), ("prune", 2)]


@pytest.mark.parametrize(
    ("point", "time", "resumed"), [param(*each, always=each[:2] in ALWAYS) for each in KILL_POINTS]
)
def test_whenever_a_training_is_killed_it_continues_with_the_same_losses(runs, point, time, resumed):
    reference = runs.reference("vqgan")
    folder = runs.make(f"{point}_{time}", "vqgan", keep_last=1)
    code, output = runs.train(folder, kill=[point, time])
    assert code == -signal.SIGKILL, output
    code, output = runs.train(folder, "--auto_resume")
    assert code == 0, output
    found = [
        int(line.rpartition("iter: ")[2].strip(" .")) for line in output.splitlines() if "Resuming training" in line
    ]
    assert found == ([] if resumed is None else [resumed])
    assert_same_outcome(folder, reference)
    files = sorted(path.name for path in folder.glob("experiments/run/*/*") if path.suffix != ".log")
    kept = ["12.state", "net_d_12.pth", "net_d_latest.pth", "net_g_12.pth", "net_g_best.pth", "net_g_latest.pth"]
    assert files == kept


@pytest.mark.parametrize("model", [param("vqgan", always=True), param("iter", always=False)])
def test_a_full_disk_costs_checkpoints_and_not_the_training(runs, model):
    reference = runs.reference(model)
    folder = runs.make(f"full_disk_{model}", model)
    code, output = runs.train(folder, kill=["iteration", 7])
    assert code == -signal.SIGKILL, output
    before = sorted(folder.glob("experiments/run/*/*.[ps]*t*"))
    # No network of a checkpoint can be written, so that there is no state either, whatever its size.
    size = (folder / "experiments/run/models/net_g_4.pth").stat().st_size
    code, output = runs.train(folder, "--auto_resume", limit=size - 1000)
    assert "ERROR: cannot write" in output, output
    assert set(before) <= set(folder.glob("experiments/run/*/*")) and not list(folder.glob("experiments/run/*/*.tmp*"))
    assert losses(folder) == losses(reference)
    # Not even the last networks: exit code 1.
    code, output = runs.train(folder, "--auto_resume", limit=min(path.stat().st_size for path in before) // 2)
    assert code == 1 and "error: cannot write" in output and "net_g_latest.pth" in output, output
    assert "Traceback" not in output
    code, output = runs.train(folder, "--auto_resume")
    assert code == 0, output
    assert_same_outcome(folder, reference)


@pytest.mark.parametrize(
    ("number", "point", "time", "last"),
    [
        param(signal.SIGTERM, "iteration", 1, 1, always=False),
        param(signal.SIGINT, "iteration", 6, 6, always=True),
        param(signal.SIGTERM, "iteration", 10, 10, always=False),  # the last of an epoch
        param(signal.SIGTERM, "validation", 3, 8, always=True),  # the first of two images
        param(signal.SIGTERM, "write", 1, 4, always=False),
    ],
)
def test_a_signal_ends_a_training_after_its_iteration(runs, number, point, time, last):
    reference = runs.reference("iter")
    folder = runs.make(f"signal_{point}_{time}", "iter", workers=2)
    code, output = runs.train(folder, signal=[number, point, time])
    assert code == 128 + number, output
    assert f"stopped after iteration {last}, which is saved" in output and "Traceback" not in output
    assert len(losses(folder)) == last
    assert ("was cut short by a signal" in output) == (last % 4 == 0)
    code, output = runs.train(folder, "--auto_resume")
    assert code == 0 and f"iter: {last}." in output, output
    assert_same_outcome(folder, reference)


def test_a_longer_training_continues_where_the_shorter_one_ended(runs):
    def make(name, *periods):
        folder = runs.make(name, "sr")
        opt = yaml.safe_load((folder / "train.yml").read_text())
        opt["train"] |= {"total_iter": sum(periods), "warmup_iter": -1}
        opt["train"]["scheduler"] |= {"periods": list(periods), "restart_weights": [1] * len(periods), "eta_min": 1e-5}
        (folder / "train.yml").write_text(yaml.safe_dump(opt))
        return folder

    reference, folder = make("longer", 5, 6), make("shorter", 5)
    for one in (reference, folder):
        code, output = runs.train(one)
        assert code == 0, output
    assert len(losses(folder)) == 5
    (folder / "train.yml").write_text((reference / "train.yml").read_text())
    code, output = runs.train(folder, "--auto_resume")
    assert code == 0 and "iter: 4." in output, output
    assert losses(folder) == losses(reference) and len(losses(folder)) == 11


@pytest.mark.slow
def test_a_signal_in_the_last_validation_cuts_it_short(runs):
    folder = runs.make("signal_at_the_end", "sr")
    # Three validations of two images each came before it.
    code, output = runs.train(folder, signal=[signal.SIGTERM, "validation", 7])
    assert code == 143 and "End of training" in output and "was cut short" in output, output
    assert (folder / "experiments/run/models/net_g_latest.pth").exists()


def test_a_training_without_randomness_of_its_own_draws_nothing_global(runs):
    """Else the losses would hang on whatever else draws between two iterations."""
    for model in ("vqgan", "iter"):
        folder = runs.reference(model)
        states = [
            torch.load(folder / f"experiments/run/training_states/{iteration}.state", weights_only=True)
            for iteration in (4, 12)
        ]
        first, last = (state["ranks"][0]["random"] for state in states)
        assert torch.equal(first.pop("torch"), last.pop("torch")) and first == last


@pytest.mark.slow
def test_two_processes_stop_after_the_same_iteration(runs, tmp_path):
    folder = runs.make("two", "vqgan")
    words = ["train", "-opt", "train.yml", "--launcher", "pytorch", "--force_yml", "train:total_iter=2000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(word) for word in [*torchrun(2), *words]]
    log = folder / "output.txt"
    with log.open("w") as output:
        torch_run = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 240
        while "iter:       5" not in log.read_text() and torch_run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        torch_run.send_signal(signal.SIGTERM)
        torch_run.wait(timeout=120)
    finally:
        torch_run.kill()
    output = log.read_text()
    assert "SIGTERM: stopped after iteration " in output, output
    last = int(output.partition("stopped after iteration ")[2].partition(",")[0])
    assert last % 3 == 0  # no gradients are accumulated: they are each rank's own
    state = torch.load(folder / f"experiments/run/training_states/{last}.state", weights_only=True)
    assert state["iter"] == last and len(state["ranks"]) == 2
    # With another number of processes it continues from the same place.
    code, output = call(
        folder, BASICSR, "train", "-opt", "train.yml", "--auto_resume", "--force_yml", f"train:total_iter={last + 1}"
    )
    assert code == 0 and f"iter: {last}." in output and "The state is of 2 processes" in output, output
