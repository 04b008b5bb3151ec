"""`basicsr train` and `basicsr test` as a user types them: BasicSR's own model, network and dataset on small images."""

import copy
import shutil

import cv2
import pytest
import torch
import yaml
from commands import BASICSR, call, torchrun
from option_files import EDSR, PAIRS, l1_training
from photos import save_pairs

OPTIONS = {
    "name": "small",
    "model_type": "SRModel",
    "scale": 4,
    "num_gpu": 0,
    "manual_seed": 1,
    "datasets": {
        "train": {**PAIRS, "gt_size": 32, "use_hflip": True, "use_rot": True, "prefetch_mode": "cpu"},
        "val": {**PAIRS, "name": "pairs"},
    },
    "network_g": EDSR,
    "path": {"pretrain_network_g": None},
    "train": {"ema_decay": 0.9, **l1_training(2)},
    "val": {"val_freq": 2, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 4}}},
    "logger": {"print_freq": 1, "save_checkpoint_freq": 2},
}
OPTIONS["datasets"]["train"] |= {"batch_size_per_gpu": 2, "num_worker_per_gpu": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with four image pairs and the option files of a training run and of its test."""
    folder = tmp_path_factory.mktemp("pipeline")
    save_pairs(folder / "gt", folder / "lq", 4, (48, 48))
    (folder / "train.yml").write_text(yaml.safe_dump(OPTIONS))
    test = copy.deepcopy(OPTIONS)
    test["datasets"] = {"test_1": test["datasets"]["val"]}
    test["path"] = {"pretrain_network_g": "experiments/small/models/net_g_4.pth", "param_key_g": "params_ema"}
    del test["train"], test["logger"], test["val"]["val_freq"]
    (folder / "test.yml").write_text(yaml.safe_dump(test))
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """The folder after a training run of 2 iterations and its resumption up to 4."""
    code, output = call(folder, BASICSR, "train", "-opt", "train.yml", "--force_yml", "logger:use_tb_logger=true")
    assert code == 0, output
    assert list((folder / "tb_logger/small").glob("events.*"))
    assert "iter:       2" in output and "Validation pairs" in output
    assert sorted(path.name for path in folder.glob("experiments/small/**/*") if path.suffix in (".pth", ".state")) == [
        "2.state",
        "net_g_2.pth",
        "net_g_latest.pth",
    ]
    code, output = call(
        folder, BASICSR, "train", "-opt", "train.yml", "--auto_resume", "--force_yml", "train:total_iter=4"
    )
    assert code == 0, output
    assert "Resuming training from epoch: 0, iter: 2" in output
    assert "iter:       3" in output and "iter:       2," not in output
    # At 2 again, for nobody knows whether a validation after the state was written has ended, and at 4 once.
    assert output.count("Validation pairs") == 2
    return folder


def test_training_continues_where_it_stopped(trained):
    models = trained / "experiments/small/models"
    first, second = (torch.load(models / f"net_g_{step}.pth", weights_only=True) for step in (2, 4))
    assert not torch.equal(first["params"]["conv_first.weight"], second["params"]["conv_first.weight"])
    assert torch.load(trained / "experiments/small/training_states/4.state", weights_only=True)["iter"] == 4
    assert not list(trained.glob("experiments/small_archived*"))


def test_testing_restores_and_measures(trained):
    code, output = call(trained, BASICSR, "test", "-opt", "test.yml")
    assert code == 0, output
    assert "# psnr:" in output
    images = sorted((trained / "results/small/visualization/pairs").glob("*.png"))
    assert [image.name for image in images] == [f"{index}_small.png" for index in range(4)]
    assert cv2.imread(str(images[0])).shape == (48, 48, 3)


SETS = {
    "train": {"type": "SecondOrderDegradationDataset", "dataroot_gt": "deep"},
    "test": {"type": "SingleImageDataset", "dataroot_lq": "deep", "meta_info_file": "meta.txt"},
}
RESULTS = {
    "train": ["deep/s1/0001/0001_2.png", "deep/s2/0001/0001_2.png"],
    "test": ["deep/s1/0001_named.png", "deep/s2/0001_named.png"],
}


@pytest.mark.long
@pytest.mark.parametrize("kind", SETS)
def test_results_of_photos_of_one_name_do_not_overwrite_each_other(trained, kind):
    for index in (1, 2):
        (trained / f"deep/s{index}").mkdir(parents=True, exist_ok=True)
        shutil.copy(trained / f"gt/{index}.png", trained / f"deep/s{index}/0001.png")
    (trained / "meta.txt").write_text("s1/0001.png (48,48,3)\ns2/0001.png (48,48,3)\n")
    opt = yaml.safe_load((trained / f"{kind}.yml").read_text()) | {"name": "named"}
    (phase,) = opt["datasets"].keys() - {"train"}
    opt["datasets"][phase] = SETS[kind] | {"name": "deep"}
    opt["val"] = {"save_img": True} | ({"val_freq": 2} if kind == "train" else {})
    (trained / "named.yml").write_text(yaml.safe_dump(opt))
    code, output = call(trained, BASICSR, kind, "-opt", "named.yml")
    assert code == 0, output
    root = trained / ("experiments" if kind == "train" else "results") / "named/visualization"
    written = sorted(str(path.relative_to(root)) for path in root.rglob("*.png"))
    assert written == RESULTS[kind]
    assert (root / written[0]).read_bytes() != (root / written[1]).read_bytes()


def test_two_processes_train_and_resume_under_torchrun(folder):
    command = [*torchrun(2), "train", "-opt", "train.yml", "--launcher", "pytorch", "--force_yml", "name=two"]
    code, output = call(folder, *command)
    assert code == 0, output
    assert "Validation pairs" in output
    code, output = call(folder, *command, "train:total_iter=3", "--auto_resume")
    assert code == 0, output
    assert "Resuming training from epoch: 1, iter: 2" in output
    assert "world_size: 2" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "-opt", "train.yml", "--force_yml", "datasets:train:dataroot_gt=nowhere"], "datasets/README.md"),
        (["test", "-opt", "test.yml", "--force_yml", "path:param_key_g=params_em"], "no 'params_em', it has 'params'"),
    ],
)
def test_a_problem_is_one_line_and_exit_code_2_and_touches_nothing(trained, words, message):
    def content():
        return sorted(str(path) for path in trained.rglob("*"))

    before = content()
    code, output = call(trained, BASICSR, *words)
    assert code == 2, output
    assert message in output and "Traceback" not in output
    assert content() == before
