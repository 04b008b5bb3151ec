"""Checkpoints of another architecture, truncated, or with code, at every entrance; code in option files."""

import pickle

import pytest
import torch
import yaml
from bad_input import options_of_test, train_with
from pickles import Code
from small_networks import small_iter

import iter_arch
from iter_model.pyiqa_metric import create_metric


@pytest.fixture(scope="module")
def checkpoints(training_photos):
    """Files that are no checkpoint for the network at hand; loading `code` would create a file called proof."""
    (training_photos / "weights").mkdir()
    torch.save({"params": {"weight": Code(str(training_photos / "proof"))}}, training_photos / "weights/code.pth")
    (training_photos / "weights/protocol4.pth").write_bytes(
        pickle.dumps({"params": Code(str(training_photos / "proof"))}, 4)
    )
    torch.save({"params": {"conv.weight": torch.zeros(3, 2)}}, training_photos / "weights/other.pth")
    whole = (training_photos / "weights/other.pth").read_bytes()
    (training_photos / "weights/cut.pth").write_bytes(whole[: len(whole) // 2])
    (training_photos / "weights/cut.safetensors").write_bytes(
        (training_photos / "small.safetensors").read_bytes()[:5000]
    )
    iter_arch.save_pretrained(small_iter(scale=2), training_photos / "weights/x2.safetensors")
    return training_photos


BROKEN = ["code.pth", "protocol4.pth", "cut.pth", "cut.safetensors"]
ENTRANCES = ["upscale", "convert", "convert --vqgan", "resume_state", "SRModel"]
ENTRANCES += ["pretrain_network_g", "pretrain_network_vqgan"]


def entrance(folder, name, file):
    """The words of a command that reads a checkpoint at this entrance."""
    path = f"weights/{file}"
    if name == "upscale":
        return ["upscale", "-i", "photo", "-o", "x", "--model", path]
    if name == "convert":
        return ["convert", path, "x.safetensors"]
    if name == "convert --vqgan":
        return ["convert", "small.safetensors", "x.pth", "--vqgan", path]
    if name == "resume_state":
        return train_with(folder, "path.resume_state", path)
    if name == "SRModel":
        return train_with(folder, "path.pretrain_network_g", path)
    opt = options_of_test("photo", "photo")
    opt["path"] = {"pretrain_network_g": "small.safetensors"} | {name: path}
    (folder / "changed.yml").write_text(yaml.safe_dump(opt))
    return ["test", "-opt", "changed.yml"]


@pytest.mark.parametrize("file", BROKEN)
@pytest.mark.parametrize("name", ENTRANCES)
def test_a_broken_checkpoint_is_named_and_never_executed(checkpoints, refused, name, file):
    assert f"weights/{file}" in refused(*entrance(checkpoints, name, file))
    assert not (checkpoints / "proof").exists()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("SRModel", "other.pth"),
        ("pretrain_network_g", "other.pth"),
        ("pretrain_network_g", "x2.safetensors"),
        ("pretrain_network_vqgan", "other.pth"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_named_with_what_differs(checkpoints, refused, name, file):
    message = refused(*entrance(checkpoints, name, file))
    assert f"weights/{file}" in message
    assert " is missing" in message or " has shape " in message or "holds no" in message


def test_code_in_a_metrics_weights_is_not_run(checkpoints):
    with pytest.raises(ValueError, match="code.pth"):
        create_metric("brisque", pretrained_model_path=str(checkpoints / "weights/code.pth"))
    assert not (checkpoints / "proof").exists()


def test_auto_resume_does_not_run_code(checkpoints, run_in_folder):
    states = checkpoints / "experiments/code/training_states"
    states.mkdir(parents=True)
    torch.save({"epoch": 0, "iter": Code(str(checkpoints / "proof"))}, states / "9.state")
    # it may begin anew
    assert run_in_folder(*train_with(checkpoints, "name", "code"), "--auto_resume")[0] in (0, 2)
    assert not (checkpoints / "proof").exists()


@pytest.mark.parametrize("value", ["!!python/object/apply:os.mkdir [proof]", "__import__('os').mkdir('proof')"])
def test_code_on_the_command_line_is_not_run(checkpoints, refused, value):
    assert "num_gpu" in refused(*train_with(checkpoints, "name", "x"), "--force_yml", f"num_gpu={value}")


def test_code_in_a_yml_is_not_run(checkpoints, refused):
    (checkpoints / "code.yml").write_text("name: !!python/object/apply:os.mkdir [proof]\n")
    assert "code.yml is not valid YAML" in refused("train", "-opt", "code.yml")
