"""Each replacement of `install_pipeline`: a test that fails without it; those of states are in test_checkpoints.py."""

import importlib
import math
import os
import pickle
from types import SimpleNamespace

import basicsr.data.data_util
import basicsr.metrics
import numpy as np
import pytest
import torch
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import FileClient, imfrombytes, misc
from basicsr.utils.registry import Registry
from pickles import Code
from small_models import sr_options

import basicsr_compat
from basicsr_compat.files import read_checkpoint
from basicsr_compat.images import UnreadableImage
from basicsr_compat.pipeline.replacements import REPLACEMENTS
from basicsr_compat.schema import OptionProblems


@pytest.fixture
def model(tmp_path):
    return SRModel(sr_options(tmp_path))


def weights(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def test_every_replacement_is_in_place_and_installing_twice_changes_nothing():
    def installed():
        return [one._find(importlib.import_module(one.module))[2] for one in REPLACEMENTS]

    before = installed()
    assert [function.repaired_by for function in before] == [one.target for one in REPLACEMENTS]
    basicsr_compat.install_pipeline()
    assert all(one is other for one, other in zip(before, installed(), strict=True))
    assert SRModel.save_network is BaseModel.save_network


def test_what_cannot_be_decoded_is_named(tmp_path):
    (tmp_path / "a\nb.png").write_bytes(b"no image")
    content = FileClient("disk").get(tmp_path / "a\nb.png")
    with pytest.raises(UnreadableImage, match=r"a\\nb\.png cannot be read: "):
        imfrombytes(content)
    with pytest.raises(UnreadableImage, match="the image cannot be read: "):
        imfrombytes(b"no image")


def test_a_suffixed_registration_is_found_in_silence(capsys):
    registry = Registry("thing")
    registry.register(SimpleNamespace, suffix="basicsr")
    assert registry.get("SimpleNamespace") is SimpleNamespace
    assert capsys.readouterr().out == ""
    with pytest.raises(KeyError, match="SimpleNamespac.*did you mean 'SimpleNamespace_basicsr'"):
        registry.get("SimpleNamespac")


def test_files_are_listed_in_order_by_every_module(tmp_path, monkeypatch):
    for name in "bca":
        (tmp_path / name).touch()
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: sorted(scan(path), key=lambda entry: entry.name, reverse=True))
    assert list(misc.scandir(str(tmp_path))) == ["a", "b", "c"]
    assert list(basicsr.data.data_util.scandir(str(tmp_path))) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["truncated", "code", "text", "empty", "missing"])
def test_an_unreadable_checkpoint_is_named_and_never_executed(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pth"
    if kind == "truncated":
        torch.save({"params": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "code":
        path.write_bytes(pickle.dumps(Code("made-by-code")))
    elif kind != "missing":
        path.write_text("not a checkpoint" if kind == "text" else "")
    with pytest.raises(FileNotFoundError if kind == "missing" else ValueError, match=r"bad\.pth"):
        read_checkpoint(path)
    assert not (tmp_path / "made-by-code").exists()


@pytest.mark.parametrize("kind", ["asked key is missing", "other architecture", "code"])
def test_a_checkpoint_that_does_not_fit_is_refused(model, tmp_path, kind):
    path = str(tmp_path / "other.pth")
    state = weights(model.net_g)
    if kind == "asked key is missing":
        model.opt["path"]["param_key_g"] = "params_ema"
        torch.save({"params": state}, path)
        message = "no 'params_ema', it has 'params'"
    elif kind == "other architecture":
        state["conv_first.weight"] = torch.zeros(8, 3, 3, 3)
        torch.save({"params_ema": state}, path)
        message = r"conv_first\.weight has shape \(8, 3, 3, 3\), the network's has \(4, 3, 3, 3\)"
    else:
        torch.save({"params_ema": Code(str(tmp_path / "made-by-code"))}, path)
        message = "holds more than tensors"
    with pytest.raises(ValueError, match=message):
        model.load_network(model.net_g, path, param_key="params_ema")
    assert not (tmp_path / "made-by-code").exists()


def test_the_ema_copy_starts_from_params_where_no_ema_was_saved(model, tmp_path):
    torch.save({"params": {key: value + 1 for key, value in weights(model.net_g).items()}}, tmp_path / "plain.pth")
    expected = {key: value + 1 for key, value in weights(model.net_g).items()}
    model.load_network(model.net_g, str(tmp_path / "plain.pth"), param_key="params_ema")
    assert all(torch.equal(value, model.net_g.state_dict()[key]) for key, value in expected.items())


def test_a_metric_that_needs_no_ground_truth_is_left_alone():
    image = np.random.default_rng(0).integers(0, 256, (96, 192, 3), dtype=np.uint8)
    assert basicsr.metrics.calculate_metric({"img": image}, {"type": "calculate_niqe", "crop_border": 0}) > 0


@pytest.mark.parametrize("size", [(1, 1, 3), (64, 300, 3), (128, 128, 3), (192, 192, 3)])
def test_niqe_of_what_has_none_is_nan(size):
    assert math.isnan(basicsr.metrics.calculate_niqe(np.full(size, 100, dtype=np.uint8), crop_border=0))


def test_a_metric_that_needs_ground_truth_says_so():
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    with pytest.raises(OptionProblems, match="calculate_psnr compares with the ground truth"):
        basicsr.metrics.calculate_metric({"img": image}, {"type": "calculate_psnr", "crop_border": 0})


def test_a_metric_that_looks_at_the_lq_image_says_so():
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    with pytest.raises(OptionProblems, match="calculate_color_error looks at the LQ image, which this model"):
        basicsr.metrics.calculate_metric({"img": image, "img2": image}, {"type": "calculate_color_error"})
