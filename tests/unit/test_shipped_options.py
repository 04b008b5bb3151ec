"""Every yml in options/ passes the check of the options, data and weights aside, and fits the classes that it names."""

import argparse
from pathlib import Path

import pytest
import yaml
from basicsr.losses import build_loss

import iter_model  # noqa: F401
from basicsr_compat.pipeline.options import examine
from basicsr_compat.pipeline.sections import build_on_meta
from iter_data import SecondOrderDegradation, read_degradation

OPTIONS = sorted((Path(__file__).parents[2] / "options").glob("*.yml"))
ymls = pytest.mark.parametrize("path", OPTIONS, ids=lambda path: path.stem)


def read(path):
    return yaml.safe_load(path.read_text())


@ymls
def test_the_options_are_valid_and_the_networks_can_be_built(path, tmp_path, capsys):
    args = argparse.Namespace(opt=path, force_yml=None, auto_resume=False, debug=False, launcher="none")
    opt, problems, missing = examine(args, str(tmp_path), is_train=None)
    assert problems == []
    # What a fresh clone does not have.
    assert all("experiments/" in line or "datasets/" in line for line in missing)
    assert opt["is_train"] == path.stem.startswith("train")
    assert set(build_on_meta(opt)[0]) == {key for key in opt if key.startswith("network_")}
    assert capsys.readouterr().err == ""  # no key is taken for a misspelt one


@ymls
def test_losses_can_be_built(path):
    for key, loss in (read(path).get("train") or {}).items():
        # LPIPS and VGG16 need weights from the network.
        if key.endswith("_opt") and loss["type"] not in ("PyIQALoss", "VGGLoss"):
            build_loss(loss)


@ymls
def test_the_name_is_the_files_and_the_command_in_it_names_the_file(path):
    assert read(path)["name"] == path.stem
    assert f"options/{path.name}" in path.read_text().split("\nname:")[0]


def test_stage_two_uses_the_vqgan_that_stage_one_trains():
    for suffix in ("", "_tiny"):
        first, second = (read(OPTIONS[0].parent / f"{name}{suffix}.yml") for name in ("train_swin_vqgan", "train_iter"))
        built, _ = build_on_meta(
            {"network_g": first["network_g"], "network_v": {"type": "SwinVQGAN", **second["network_g"]["vqgan"]}}
        )
        assert [p.shape for p in built["network_v"].parameters()] == [p.shape for p in built["network_g"].parameters()]
        assert first["name"] in second["path"]["pretrain_network_vqgan"]


def test_paper_size_degradation_is_real_esrgans_default():
    degradation = read(OPTIONS[0].parent / "train_iter.yml")["datasets"]["train"]["degradation"]
    assert read_degradation(degradation) == SecondOrderDegradation()
    assert set(degradation) == set(SecondOrderDegradation.__dataclass_fields__)
