"""Another project on BasicSR that imports our packages: nothing changes for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from commands import call, torchrun
from option_files import EDSR
from photos import save_pairs

from basicsr_compat.repairs import REPAIRS

OURS = "import iter_arch, iter_data, iter_model"
TARGETS = {repair.target for repair in REPAIRS}
TESTS = Path(__file__).parents[1]


def python(*words, folder):
    """The standard output of a Python that finds our packages and this folder's helpers, with tier 1 alone."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    environment.pop("OPENCV_IO_MAX_IMAGE_PIXELS", None)  # of this process, which reads images as our commands do
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------------- what it sees


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """Without our packages; with them, imported before and after BasicSR."""
    imports = {"without": "import basicsr", "before": f"{OURS}, basicsr", "after": f"import basicsr; {OURS}"}
    folder = tmp_path_factory.mktemp("host")
    return {key: json.loads(python(TESTS / "host_snapshot.py", text, folder=folder)) for key, text in imports.items()}


@pytest.mark.parametrize("order", ["before", "after"])
def test_no_function_of_basicsr_differs_but_those_of_the_table(snapshots, order):
    without, with_ours = snapshots["without"]["names"], snapshots[order]["names"]
    assert len(without) > 1500
    assert without.keys() == with_ours.keys()
    for name in without:
        if without[name] != with_ours[name]:
            module, qualname, *_, wrapped = with_ours[name]
            assert f"{module}:{qualname}" in TARGETS and wrapped == without[name], name


@pytest.mark.parametrize("order", ["before", "after"])
def test_nothing_of_its_process_differs(snapshots, order):
    without, with_ours = dict(snapshots["without"]["process"]), dict(snapshots[order]["process"])
    if order == "before":  # libraries add their filters in the order in which they are imported
        for process in without, with_ours:
            process["warnings"] = sorted(process["warnings"])
    for key in without:
        assert without[key] == with_ours[key], key


# ------------------------------------------------------------------------------------------- what it does

HABITS = (
    "sequential_scheduler_resumes",
    "plateau_scheduler_resumes",
    "model_is_saved_without_a_seed_in_its_options",
    "large_image_is_read",
    "dataset_without_options_and_with_lists_of_paths_is_validated",
    "upsampled_input_is_validated",
)


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """Of each habit, the traceback of its failure or None."""
    output = python(TESTS / "host_driver.py", *HABITS, folder=tmp_path_factory.mktemp("habits"))
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("habit", HABITS)
def test_what_it_does_with_basicsr_alone_works_with_ours(failures, habit):
    assert failures[habit] is None, failures[habit]


def test_rank_zero_alone_saves_its_state(tmp_path):
    words = [*torchrun(2, sys.executable), TESTS / "host_driver.py", "rank_zero_alone_saves_its_state"]
    code, output = call(tmp_path, *words)
    assert code == 0, output
    assert output.count('{"rank_zero_alone_saves_its_state": null}') == 2, output


# ------------------------------------------------------------------------------------------- its training runs

HOST = """
import sys
import iter_arch, iter_data, iter_model
import basicsr.test, basicsr.train

if __name__ == "__main__":
    getattr(basicsr, sys.argv[1]).__dict__[f"{sys.argv.pop(1)}_pipeline"](".")
"""
PAIRS = {"dataroot_gt": "gt", "dataroot_lq": "lq", "io_backend": {"type": "disk"}, "type": "PairedImageDataset"}
VALIDATION = {**PAIRS, "name": "pairs"}
ADAM = {"type": "Adam", "lr": 0.001}
KERNELS = ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]


def blur(suffix, sinc_prob):
    """Section of RealESRGANDataset for one of the two degradations."""
    options = {"blur_kernel_size": 21, "kernel_list": KERNELS, "kernel_prob": [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]}
    options |= {"sinc_prob": sinc_prob, "blur_sigma": [0.2, 3], "betag_range": [0.5, 4], "betap_range": [1, 2]}
    return {f"{key}{suffix}": value for key, value in options.items()}


def noise(suffix):
    options = {"resize_prob": [0.2, 0.7, 0.1], "resize_range": [0.5, 1.5], "noise_range": [1, 30]}
    options |= {"poisson_scale_range": [0.05, 3], "gray_noise_prob": 0.4, "jpeg_range": [30, 95]}
    return {f"{key}{suffix}": value for key, value in options.items()} | {f"gaussian_noise_prob{suffix}": 0.5}


def host_options(model, workers):
    """An option file of a training run of 2 iterations, complete as BasicSR's own readers need it."""
    train = {"ema_decay": 0.9, "total_iter": 2, "optim_g": dict(ADAM), "pixel_opt": {"type": "L1Loss"}}
    train |= {"scheduler": {"type": "MultiStepLR", "milestones": [3]}}
    data = {**PAIRS, "gt_size": 32, "use_hflip": True, "use_rot": True} | {"name": "train", "batch_size_per_gpu": 2}
    data |= {"num_worker_per_gpu": workers, "dataset_enlarge_ratio": 2}
    options = {"name": "run", "model_type": model, "scale": 4, "num_gpu": 0, "manual_seed": 1, "network_g": EDSR}
    options |= {"path": {"pretrain_network_g": None, "resume_state": None}, "train": train}
    options |= {"logger": {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False}}
    options |= {"datasets": {"train": data, "val": VALIDATION}}
    options |= {"val": {"val_freq": 2, "save_img": True, "suffix": None}}
    options["val"]["metrics"] = {"psnr": {"type": "calculate_psnr", "crop_border": 4}}
    if model.startswith("RealESR"):
        data |= {"type": "RealESRGANDataset", "meta_info": "meta.txt", "final_sinc_prob": 0.8}
        data |= {**blur("", 0.1), **blur("2", 0.1)}
        options |= {**noise(""), **noise("2"), "second_blur_prob": 0.8, "queue_size": 4, "gt_size": 64}
        options |= {"l1_gt_usm": True, "percep_gt_usm": True, "gan_gt_usm": False, "gt_usm": True}
    if model == "RealESRGANModel":
        options["network_d"] = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 2}
        gan = {"type": "GANLoss", "gan_type": "vanilla", "real_label_val": 1.0, "fake_label_val": 0.0}
        train |= {"gan_opt": gan, "optim_d": dict(ADAM), "net_d_iters": 1, "net_d_init_iters": 0}
    return options


@pytest.fixture
def project(tmp_path):
    """A folder of a project with a program of its own and some images."""
    save_pairs(tmp_path / "gt", tmp_path / "lq", 4, (96, 96))
    (tmp_path / "meta.txt").write_text("".join(f"{index}.png (96,96,3)\n" for index in range(4)))
    (tmp_path / "host.py").write_text(HOST)
    return tmp_path


def train(project, options, total, start=(sys.executable,), words=()):
    """Train to iteration `total` by BasicSR's own pipeline, which resumes where there is a state."""
    options["train"]["total_iter"] = total
    (project / "train.yml").write_text(yaml.safe_dump(options))
    code, output = call(project, *start, "host.py", "train", "-opt", "train.yml", "--auto_resume", *words)
    assert code == 0 and "# psnr" in output, output
    assert (project / f"experiments/run/training_states/{total}.state").exists()
    return output


def check_result(project, options):
    """Test the weights of iteration 2 by BasicSR's own pipeline."""
    options["datasets"] = {"test": VALIDATION}
    options["path"] = {"pretrain_network_g": "experiments/run/models/net_g_2.pth", "param_key_g": "params_ema"}
    (project / "test.yml").write_text(yaml.safe_dump(options))
    code, output = call(project, sys.executable, "host.py", "test", "-opt", "test.yml")
    assert code == 0 and "# psnr" in output, output
    assert len(list((project / "results/run/visualization/pairs").iterdir())) == 4


def test_srmodel_trains_resumes_and_is_tested(project):
    options = host_options("SRModel", workers=2)
    train(project, options, total=2)
    assert "iter: 2." in train(project, options, total=4)
    state = torch.load(project / "experiments/run/training_states/4.state", weights_only=True)
    assert set(state) == {"epoch", "iter", "optimizers", "schedulers"}
    check_result(project, options)


def test_realesrgan_trains_with_spawned_workers(project):
    script = (project / "host.py").read_text()
    spawn = "import torch.multiprocessing as mp\n    mp.set_start_method('spawn')\n    "
    (project / "host.py").write_text(script.replace("getattr(basicsr", f"{spawn}getattr(basicsr"))
    train(project, host_options("RealESRGANModel", workers=1), total=2)


def test_realesrnet_trains_in_two_processes(project):
    start = torchrun(2, sys.executable)
    train(project, host_options("RealESRNetModel", workers=0), 2, start, ["--launcher", "pytorch"])
