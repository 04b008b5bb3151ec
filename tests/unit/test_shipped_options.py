"""Every yml in options/ fits the classes that it names."""

from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.losses import build_loss

import iter_model  # noqa: F401
from iter_arch import SamplingConfig
from iter_data import DegradationOptions

OPTIONS = sorted((Path(__file__).parents[2] / "options").glob("*.yml"))
ymls = pytest.mark.parametrize("path", OPTIONS, ids=lambda path: path.stem)


def read(path):
    return yaml.safe_load(path.read_text())


@ymls
def test_networks_can_be_built(path):
    opt = read(path)
    with torch.device("meta"):
        for key in ("network_g", "network_d"):
            if key in opt:
                build_network(opt[key])
    assert opt["network_g"].get("scale", opt["scale"]) == opt["scale"]


@ymls
def test_sampling_degradation_and_losses_are_valid(path):
    opt = read(path)
    if opt["model_type"] == "ITERModel":
        SamplingConfig(**(opt["val"].get("sampling") or opt["network_g"]["sampling"]))
    for dataset in opt["datasets"].values():
        DegradationOptions.from_dict(dataset.get("degradation"))
    for key, loss in (opt.get("train") or {}).items():
        # LPIPS needs weights from the network.
        if key.endswith("_opt") and loss["type"] != "PyIQALoss":
            build_loss(loss)


@ymls
def test_the_name_is_the_files_and_the_command_in_it_names_the_file(path):
    assert read(path)["name"] == path.stem
    assert f"options/{path.name}" in path.read_text().split("\nname:")[0]


def test_stage_two_uses_the_vqgan_that_stage_one_trains():
    for suffix in ("", "_tiny"):
        first, second = (read(OPTIONS[0].parent / f"{name}{suffix}.yml") for name in ("train_swin_vqgan", "train_iter"))
        built = [build_network({"type": "SwinVQGAN", **opt}) for opt in (second["network_g"]["vqgan"],)]
        expected = build_network(first["network_g"])
        assert [p.shape for p in built[0].parameters()] == [p.shape for p in expected.parameters()]
        assert first["name"] in second["path"]["pretrain_network_vqgan"]


def test_paper_size_degradation_is_real_esrgans_default():
    degradation = read(OPTIONS[0].parent / "train_iter.yml")["datasets"]["train"]["degradation"]
    assert DegradationOptions.from_dict(degradation) == DegradationOptions()
    assert set(degradation) == set(DegradationOptions.__dataclass_fields__)
