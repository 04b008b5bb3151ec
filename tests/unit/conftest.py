"""Fixtures that several files of unit tests need."""

import copy
import os

import numpy as np
import pytest
import torch
import yaml
from option_files import OPTIONS, read
from second_order import write_image
from small_networks import RELEASED_FORM, small_iter
from upscale_stand_ins import BicubicNet

import iter_arch
from iter_arch.pretrained.released import to_released


@pytest.fixture
def rng():
    """NumPy's generator, of one seed."""
    return np.random.default_rng(0)


@pytest.fixture
def bicubic_net(monkeypatch):
    """The network that `basicsr upscale` loads, whatever --model says."""
    net = BicubicNet()
    monkeypatch.setattr(iter_arch, "load_pretrained", lambda name: net)
    return net


@pytest.fixture
def parse_options(tmp_path, monkeypatch):
    """parse_options(change, *words, is_train=True): the options of OPTIONS after change(OPTIONS), or of a yml text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (tmp_path / "images").mkdir()
    (tmp_path / "weights.pth").touch()

    def run(change=None, *words, is_train=True):
        text = change
        if not isinstance(change, str):
            content = copy.deepcopy(OPTIONS)
            if not is_train:
                content["datasets"] = {"test_1": content["datasets"]["val_1"]}
                content["path"]["pretrain_network_g"] = "weights.pth"
                del content["train"], content["val"]
            if change is not None:
                change(content)
            text = yaml.safe_dump(content)
        (tmp_path / "x.yml").write_text(text)
        before = sorted(os.listdir(tmp_path))
        try:
            return read(["-opt", "x.yml", *words], str(tmp_path), is_train)
        finally:
            assert sorted(os.listdir(tmp_path)) == before  # nothing is made, whatever happens

    return run


@pytest.fixture
def photo_tree(tmp_path):
    """Four photos in a folder and its subfolders, beside files that are none."""
    for seed, name in enumerate(["set1/b.png", "set1/a.png", "set2/deep/c.png", "d.PNG"]):
        write_image(tmp_path / "photos" / name, seed=seed)
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    (tmp_path / "photos" / ".hidden.png").write_text("not an image")
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def released_net():
    """A small ITER of the released form."""
    return small_iter(**RELEASED_FORM)


@pytest.fixture(scope="module")
def released_state(released_net):
    """What a released checkpoint of `released_net` holds."""
    return to_released(released_net.state_dict())


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory):
    """The file of a small ITER."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    iter_arch.save_pretrained(small_iter(), path)
    return path


@pytest.fixture
def web_engine(small_weights):
    """What the page of `basicsr web` computes with: a small ITER, the only one that it offers."""
    from iter_model.web.engine import Engine

    return Engine([str(small_weights)], torch.device("cpu"))
