"""Options of a run: read, completed, and refused with a message before anything is made."""

import copy
import os
import sys

import pytest
import torch
import yaml
from basicsr.models.sr_model import SRModel
from basicsr.utils import options

OPTIONS = {
    "name": "small",
    "model_type": "SRModel",
    "scale": 2,
    "datasets": {
        "train": {
            "type": "PairedImageDataset",
            "dataroot_gt": "images",
            "dataroot_lq": "images",
            "batch_size_per_gpu": 2,
            "num_worker_per_gpu": 0,
        },
        "val_1": {"type": "PairedImageDataset", "dataroot_gt": "images", "dataroot_lq": "images"},
    },
    "network_g": {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4},
    "path": {"pretrain_network_g": None},
    "train": {
        "total_iter": 10,
        "optim_g": {"type": "Adam", "lr": 1e-4},
        "scheduler": {"type": "MultiStepLR", "milestones": [5]},
        "pixel_opt": {"type": "L1Loss"},
    },
    "val": {"val_freq": 5, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}},
}


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """parse(change, *words, is_train=True): the options of OPTIONS after change(OPTIONS), or of a yml text."""
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
        monkeypatch.setattr(sys, "argv", ["basicsr", "-opt", "x.yml", *words])
        before = sorted(os.listdir(tmp_path))
        try:
            return options.parse_options(str(tmp_path), is_train=is_train)[0]
        finally:
            assert sorted(os.listdir(tmp_path)) == before  # nothing is made, whatever happens

    return run


def change(where, value):
    """A change of OPTIONS: `where` is set to `value`, or taken out where that is `...`."""

    def apply(content):
        *path, key = where.split(".")
        for name in path:
            content = content[name]
        if value is ...:
            del content[key]
        else:
            content[key] = value

    return apply


def test_what_basicsr_looks_up_is_filled_in(parse, tmp_path):
    opt = parse()
    assert opt["num_gpu"] == 0
    assert opt["logger"] == {"use_tb_logger": False, "print_freq": 100, "save_checkpoint_freq": 5000}
    assert opt["val"]["save_img"] is False and opt["val"]["suffix"] is None
    assert opt["path"]["models"] == str(tmp_path / "experiments/small/models")
    assert opt["datasets"]["val_1"]["phase"] == "val"
    assert opt["datasets"]["train"]["io_backend"] == {"type": "disk"}
    assert isinstance(opt["manual_seed"], int)


def test_a_test_needs_only_its_data_and_weights(parse, tmp_path):
    opt = parse(is_train=False)
    assert opt["val"] == {"save_img": True, "suffix": None}
    assert opt["path"]["results_root"] == str(tmp_path / "results/small")


def test_numbers_are_numbers_as_people_write_them(parse):
    text = yaml.safe_dump(OPTIONS).replace("lr: 0.0001", "lr: 1e-4")
    assert "1e-4" in text
    opt = parse(text, "--force_yml", "train:scheduler:milestones=[2, 3]", "scale=-1", "train:pixel_opt:type=MSELoss")
    assert opt["train"]["optim_g"]["lr"] == 1e-4
    assert opt["train"]["scheduler"]["milestones"] == [2, 3]
    assert opt["scale"] == -1
    assert opt["train"]["pixel_opt"]["type"] == "MSELoss"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2E5", 200000),
        ("-.5e1", -5.0),
        ("true", True),
        ("None", None),
        ("~", None),
        ("a=b", "a=b"),
        ("3x", "3x"),
    ],
)
def test_a_forced_value_has_the_type_it_would_have_in_the_file(parse, text, value):
    forced = parse(None, "--force_yml", f"network_g:num_feat={text}")["network_g"]["num_feat"]
    assert forced == value and type(forced) is type(value)


def test_a_forced_seed_is_the_seed(parse):
    parse(None, "--force_yml", "manual_seed=7")
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))


def test_a_forced_checkpoint_need_not_stand_in_the_file(parse):
    opt = parse(None, "--force_yml", "path:strict_load_g=false")
    assert opt["path"]["strict_load_g"] is False


def test_the_dash_that_launchers_pass_is_understood(parse):
    parse(None, "--local-rank=0")
    parse(None, "--local_rank=0")


def test_options_never_run_code(parse, tmp_path):
    tag = "!!python/object/apply:os.mkdir ['made-by-code']"
    with pytest.raises(ValueError, match="not valid YAML"):
        parse(f"name: {tag}")
    for value in (tag, "[__import__('os').mkdir('made-by-code')]"):
        try:
            parse(None, "--force_yml", f"name={value}")
        except ValueError:
            continue
    assert not (tmp_path / "made-by-code").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train:totl_iter=3"], r"no train:totl_iter \(did you mean 'total_iter'\?\)"),
        (["trian:total_iter=3"], r"no trian \(did you mean 'train'\?\)"),
        (["name:x:y=3"], "no name:x"),
        (["total_iter"], "section:key=value"),
        (["scale=[1"], "not valid YAML"),
        (["path:pretrain_netwrok_g=x.pth"], "did you mean 'pretrain_network_g'"),
    ],
)
def test_a_wrong_forced_option_is_refused(parse, words, message):
    with pytest.raises(ValueError, match=message):
        parse(None, "--force_yml", *words)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("name", ..., "lack name"),
        ("model_type", ..., "lack model_type"),
        ("datasets", ..., "lack datasets"),
        ("datasets.train", ..., r"lack datasets\.train"),
        ("train", ..., "lack train"),
        ("train.total_iter", ..., r"lack train\.total_iter"),
        ("datasets.train.batch_size_per_gpu", ..., "lack datasets.train.batch_size_per_gpu"),
        ("datasets.valid", {}, r"datasets\.valid must be a section whose name starts with train or val"),
        ("name", "nodebug", "contains 'debug'"),
        ("model_type", "SRModle", "not a registered model.*did you mean 'SRModel'"),
        ("network_g.type", "EDSRR", "not a registered arch.*did you mean 'EDSR'"),
        ("network_g.type", ..., r"network_g must be a section with a `type`"),
        ("datasets.val_1.type", "PairedImagesDataset", r"datasets\.val_1\.type.*did you mean 'PairedImageDataset'"),
        ("train.pixel_opt.type", "L1Los", "not a registered loss"),
        ("val.metrics.psnr.type", "calculate_pnsr", "did you mean 'calculate_psnr'"),
        ("val.val_freq", 0, r"val\.val_freq=0 must be a whole number >= 1"),
        ("train.total_iter", 2.5, r"train\.total_iter=2\.5 must be"),
        ("train.total_iter", "many", r"train\.total_iter='many' must be"),
        ("logger", {"print_freq": 0}, r"logger\.print_freq=0 must be"),
        ("logger", {"save_checkpoint_freq": True}, r"logger\.save_checkpoint_freq=True must be"),
        ("datasets.train.num_worker_per_gpu", -1, "must be a whole number >= 0"),
        ("num_gpu", "two", "num_gpu='two' must be"),
        (
            "path.pretrain_network_q",
            "x",
            r"pretrain_network_q is not an option \(did you mean 'pretrain_network_g'",
        ),
        ("path.pretrained_network_g", "weights.pth", "did you mean 'pretrain_network_g'"),
        (
            "train.scheduler",
            {"type": "CosineAnnealingRestartLR", "periods": [3, 4], "restart_weights": [1, 1]},
            r"periods=\[3, 4\] must add up to train\.total_iter=10",
        ),
    ],
)
def test_a_wrong_option_is_refused(parse, where, value, message):
    with pytest.raises(ValueError, match=message):
        parse(change(where, value))


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("datasets.train.dataroot_gt", "nowhere", r"datasets\.train\.dataroot_gt='nowhere' does not exist.*README"),
        ("datasets.val_1.dataroot_lq", ["images", "nowhere"], "'nowhere' does not exist"),
        ("datasets.train.meta_info", "nowhere.txt", "'nowhere.txt' does not exist"),
        ("path.pretrain_network_g", "nowhere.pth", r"path\.pretrain_network_g='nowhere\.pth'.*no such file"),
        ("path.resume_state", "nowhere", r"path\.resume_state='nowhere'"),
    ],
)
def test_a_missing_file_is_named(parse, where, value, message):
    with pytest.raises(ValueError, match=message):
        parse(change(where, value))


def test_missing_data_and_missing_weights_are_both_named(parse):
    def clone_without_anything(content):
        change("datasets.train.dataroot_gt", "nowhere")(content)
        change("path.pretrain_network_g", "nowhere.pth")(content)

    with pytest.raises(ValueError, match=r"dataroot_gt='nowhere'.*\n.*pretrain_network_g='nowhere\.pth'"):
        parse(clone_without_anything)


def test_a_missing_option_file_is_named(parse, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["basicsr", "-opt", "nowhere.yml"])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yml"):
        options.parse_options(".")


@pytest.mark.parametrize("text", ["", "- a\n- b", "a: [", "just words"])
def test_a_file_that_holds_no_options_is_refused(parse, text):
    with pytest.raises(ValueError, match=r"-opt x\.yml"):
        parse(text)


def test_a_test_without_weights_is_refused(parse):
    with pytest.raises(ValueError, match=r"path\.pretrain_network_g is not set"):
        parse(change("path.pretrain_network_g", None), is_train=False)


def test_a_model_may_name_path_keys_of_its_own(parse, monkeypatch):
    monkeypatch.setattr(SRModel, "path_keys", ("pretrain_network_hq",), raising=False)
    opt = parse(change("path.pretrain_network_hq", "a shipped name"))
    assert opt["path"]["pretrain_network_hq"] == "a shipped name"
    with pytest.raises(ValueError, match="did you mean 'pretrain_network_hq'"):
        parse(change("path.pretrain_network_hp", "a shipped name"))


def test_a_model_of_another_package_may_have_networks_without_a_section(parse, monkeypatch):
    monkeypatch.setattr(SRModel, "__module__", "other_package.model")
    assert parse(change("path.pretrain_network_hq", "a name"))["path"]["pretrain_network_hq"] == "a name"
    with pytest.raises(ValueError, match=r"path\.pretrained_network_g is not an option"):
        parse(change("path.pretrained_network_g", "a name"))


def test_a_gpu_that_is_not_there_is_reported_and_done_without(parse, capsys):
    def ask(content):
        content["num_gpu"] = 2
        content["datasets"]["train"].update(prefetch_mode="cuda", pin_memory=True)

    opt = parse(ask)
    assert opt["num_gpu"] == 0
    assert opt["datasets"]["train"]["prefetch_mode"] is None
    assert opt["datasets"]["train"]["pin_memory"] is False
    assert "num_gpu=2, but this machine has 0" in capsys.readouterr().err


def test_a_key_that_nearly_is_basicsrs_is_reported(parse, capsys):
    parse(change("train.ema_deacy", 0.999))
    assert "train.ema_deacy is not an option of BasicSR, did you mean 'ema_decay'?" in capsys.readouterr().err


def test_debug_names_and_hastens_the_run(parse):
    opt = parse(None, "--debug")
    assert opt["name"] == "debug_small"
    assert (opt["logger"]["print_freq"], opt["val"]["val_freq"]) == (1, 8)
