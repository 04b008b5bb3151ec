"""`basicsr convert`: what it writes, and what it refuses."""

import json
import os

import pytest
import torch
from released_files import same
from safetensors import safe_open
from safetensors.torch import load_file
from small_networks import RELEASED_FORM, small_iter

from iter_arch import load_pretrained, save_pretrained
from iter_arch.pretrained.released import to_released
from iter_model.commands import main


@pytest.fixture(scope="module")
def net():
    return small_iter(2, **RELEASED_FORM)


@pytest.fixture
def theirs(net, tmp_path, monkeypatch):
    """A released file in the current folder, ITER_x2.pth, and what it holds."""
    monkeypatch.chdir(tmp_path)
    theirs = to_released(net.state_dict())
    torch.save({"params": theirs}, "ITER_x2.pth")
    return theirs


def weights_of(path):
    """The tensors of one of our files, without the one that holds the constructor arguments."""
    return {key: value for key, value in load_file(path).items() if key != "iter_config"}


def refused(capsys, *words):
    """The message of a conversion that must write nothing."""
    before = {name: os.stat(name).st_mtime_ns for name in os.listdir()}
    assert main(["convert", *words]) == 2
    assert {name: os.stat(name).st_mtime_ns for name in os.listdir()} == before
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("basicsr convert: error: ") and err.count("\n") == 1
    return err


def test_there_and_back(net, theirs, capsys):
    assert main(["convert", "ITER_x2.pth", "ours.safetensors"]) == 0
    assert main(["convert", "ours.safetensors", "back.pth"]) == 0
    count = len(net.state_dict())
    assert capsys.readouterr().out.splitlines() == [
        f"converted ITER_x2.pth (released, {count} weights) to ours.safetensors",
        f"converted ours.safetensors (ours, {count} weights) to back.pth",
    ]
    assert same(weights_of("ours.safetensors"), dict(net.state_dict()))
    with safe_open("ours.safetensors", "pt") as file:
        assert json.loads(file.metadata()["iter_config"])["refiner"]["swin"]["groups"] == 2
    assert same(torch.load("back.pth", weights_only=True)["params"], theirs)
    assert sorted(os.listdir()) == ["ITER_x2.pth", "back.pth", "ours.safetensors"]
    assert same(load_pretrained("ours.safetensors").state_dict(), net.state_dict())


def test_half_precision_stays(theirs):
    halves = {key: value.half() if value.is_floating_point() else value for key, value in theirs.items()}
    torch.save({"params": halves}, "half.pth")
    assert main(["convert", "half.pth", "half.safetensors"]) == 0
    assert {value.dtype for value in weights_of("half.safetensors").values()} == {torch.float16}


def test_parts(net, theirs):
    torch.save({"params": {key: value for key, value in theirs.items() if not key.startswith("vqgan.")}}, "rest.pth")
    vqgan = {key.removeprefix("vqgan."): value for key, value in theirs.items() if key.startswith("vqgan.")}
    torch.save({"params": vqgan}, "ITER_swinvqgan.pth")
    assert main(["convert", "ITER_swinvqgan.pth", "vqgan.safetensors"]) == 0
    assert same(weights_of("vqgan.safetensors"), dict(net.vqgan.state_dict()))
    assert main(["convert", "vqgan.safetensors", "vqgan.pth"]) == 0
    assert same(torch.load("vqgan.pth", weights_only=True)["params"], vqgan)
    # Not completed by the file beside it: what is converted is what the file holds.
    assert main(["convert", "rest.pth", "rest.safetensors"]) == 0
    assert not any(key.startswith("vqgan.") for key in load_file("rest.safetensors"))
    with safe_open("rest.safetensors", "pt") as file:
        assert "iter_config" not in file.metadata()
    for part in ("ITER_swinvqgan.pth", "vqgan.safetensors", "ITER_x2.pth"):
        assert main(["convert", "rest.pth", "whole.safetensors", "--vqgan", part]) == 0
        assert same(load_pretrained("whole.safetensors").state_dict(), net.state_dict())


def test_a_vqgan_that_does_not_fit_is_refused(theirs, capsys):
    vqgan = {key.removeprefix("vqgan."): value for key, value in theirs.items() if key.startswith("vqgan.")}
    torch.save({"params": vqgan}, "ITER_swinvqgan.pth")
    message = refused(capsys, "ITER_swinvqgan.pth", "out.safetensors", "--vqgan", "ITER_x2.pth")
    assert "holds nothing but a VQGAN" in message
    torch.save({"params": vqgan | {"quantize.embedding.weight": torch.zeros(31, 8)}}, "ITER_swinvqgan.pth")
    message = refused(capsys, "ITER_x2.pth", "out.safetensors", "--vqgan", "ITER_swinvqgan.pth")
    assert "lq_encoder.head.weight has shape (32, 16, 1, 1), the network's has (31, 16, 1, 1)" in message
    torch.save({"params": {key: value for key, value in theirs.items() if not key.startswith("vqgan.")}}, "less.pth")
    message = refused(capsys, "ITER_x2.pth", "out.safetensors", "--vqgan", "less.pth")
    assert "less.pth holds no Swin-VQGAN" in message


def test_what_cannot_be_converted_is_refused(net, theirs, capsys):
    assert "must end in .safetensors" in refused(capsys, "ITER_x2.pth", "out.pth")
    assert "no folder gone" in refused(capsys, "ITER_x2.pth", "gone/out.safetensors")
    assert "gone.pth" in refused(capsys, "gone.pth", "out.safetensors")
    save_pretrained(net, "ours.safetensors")
    assert "must end in .pth" in refused(capsys, "ours.safetensors", "out.safetensors")
    torch.save({"params": net.state_dict()}, "ours.pth")
    assert "is IN itself" in refused(capsys, "ours.pth", "./ours.pth")
    save_pretrained(small_iter(), "paper.safetensors")
    assert "vqgan is not of the released form" in refused(capsys, "paper.safetensors", "out.pth")
    key = "lq_encoder.model.0.bias"
    torch.save({"params": {name: value for name, value in theirs.items() if name != key}}, "less.pth")
    message = refused(capsys, "less.pth", "out.safetensors")
    assert f"less.pth cannot be converted: {key} is missing" in message
    with open("ITER_x2.pth", "rb") as file, open("cut.pth", "wb") as cut:
        cut.write(file.read()[:10000])
    assert "it is truncated" in refused(capsys, "cut.pth", "out.safetensors")
