"""Options of a run: read, completed, and refused with a message before anything is made."""

import pytest
import torch
import yaml
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import METRIC_REGISTRY
from option_files import OPTIONS, change, read

from basicsr_compat.schema import OptionProblems


def test_what_basicsr_looks_up_is_filled_in(parse_options, tmp_path):
    opt = parse_options()
    assert opt["num_gpu"] == 0
    expected = {"use_tb_logger": False, "print_freq": 100, "save_checkpoint_freq": 5000, "keep_last": None}
    assert opt["logger"] == expected
    assert opt["val"]["save_img"] is False and opt["val"]["suffix"] is None
    assert opt["path"]["models"] == str(tmp_path / "experiments/small/models")
    assert opt["datasets"]["val_1"]["phase"] == "val"
    assert opt["datasets"]["train"]["io_backend"] == {"type": "disk"}


def test_a_test_needs_only_its_data_and_weights(parse_options, tmp_path):
    opt = parse_options(is_train=False)
    assert opt["val"] == {"save_img": True, "suffix": None}
    assert opt["path"]["results_root"] == str(tmp_path / "results/small")


def test_numbers_are_numbers_as_people_write_them(parse_options):
    text = yaml.safe_dump(OPTIONS).replace("lr: 0.001", "lr: 1e-3")
    assert "1e-3" in text
    opt = parse_options(
        text, "--force_yml", "train:scheduler:milestones=[2, 3]", "scale=-1", "train:pixel_opt:type=MSELoss"
    )
    assert opt["train"]["optim_g"]["lr"] == 1e-3
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
def test_a_forced_value_has_the_type_it_would_have_in_the_file(parse_options, text, value):
    forced = parse_options(None, "--force_yml", f"network_g:num_feat={text}")["network_g"]["num_feat"]
    assert forced == value and type(forced) is type(value)


def test_a_forced_checkpoint_need_not_stand_in_the_file(parse_options):
    opt = parse_options(None, "--force_yml", "path:strict_load_g=false")
    assert opt["path"]["strict_load_g"] is False


def test_the_dash_that_launchers_pass_is_understood(parse_options):
    parse_options(None, "--local-rank=0")
    parse_options(None, "--local_rank=0")


def test_options_never_run_code(parse_options, tmp_path):
    tag = "!!python/object/apply:os.mkdir ['made-by-code']"
    with pytest.raises(ValueError, match="not valid YAML"):
        parse_options(f"name: {tag}")
    for value in (tag, "[__import__('os').mkdir('made-by-code')]"):
        try:
            parse_options(None, "--force_yml", f"name={value}")
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
def test_a_wrong_forced_option_is_refused(parse_options, words, message):
    with pytest.raises(ValueError, match=message):
        parse_options(None, "--force_yml", *words)


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
def test_a_wrong_option_is_refused(parse_options, where, value, message):
    with pytest.raises(ValueError, match=message):
        parse_options(change(where, value))


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
def test_a_missing_file_is_named(parse_options, where, value, message):
    with pytest.raises(ValueError, match=message):
        parse_options(change(where, value))


def test_missing_data_and_missing_weights_are_both_named(parse_options):
    def clone_without_anything(content):
        change("datasets.train.dataroot_gt", "nowhere")(content)
        change("path.pretrain_network_g", "nowhere.pth")(content)

    with pytest.raises(ValueError, match=r"dataroot_gt='nowhere'.*\n.*pretrain_network_g='nowhere\.pth'"):
        parse_options(clone_without_anything)


def test_a_missing_option_file_is_named():
    with pytest.raises(OptionProblems, match=r"-opt nowhere\.yml: there is no such file"):
        read(["-opt", "nowhere.yml"], ".")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a\n- b",
        "a: [",
        "just words",
        "a: 2020-13-45",
        "a: !!timestamp x",
        "a: !!bool maybe",
        "a: \0",
        "a: &x [*x]",
        "a: " + "[" * 60 + "]" * 60,
    ],
)
def test_a_file_that_holds_no_options_is_refused(parse_options, text):
    with pytest.raises(ValueError, match=r"-opt x\.yml"):
        parse_options(text)


def test_a_test_without_weights_is_refused(parse_options):
    with pytest.raises(ValueError, match=r"path\.pretrain_network_g is not set"):
        parse_options(change("path.pretrain_network_g", None), is_train=False)


def test_a_model_may_name_path_keys_of_its_own(parse_options, monkeypatch):
    monkeypatch.setattr(SRModel, "path_keys", ("pretrain_network_hq",), raising=False)
    opt = parse_options(change("path.pretrain_network_hq", "a shipped name"))
    assert opt["path"]["pretrain_network_hq"] == "a shipped name"
    with pytest.raises(ValueError, match="did you mean 'pretrain_network_hq'"):
        parse_options(change("path.pretrain_network_hp", "a shipped name"))


def test_a_model_of_another_package_may_have_networks_without_a_section(parse_options, monkeypatch):
    monkeypatch.setattr(SRModel, "__module__", "other_package.model")
    assert parse_options(change("path.pretrain_network_hq", "a name"))["path"]["pretrain_network_hq"] == "a name"
    with pytest.raises(ValueError, match=r"path\.pretrained_network_g is not an option"):
        parse_options(change("path.pretrained_network_g", "a name"))


def test_a_gpu_that_is_not_there_is_reported_and_done_without(parse_options, capsys):
    def ask(content):
        content["num_gpu"] = 2
        content["datasets"]["train"].update(prefetch_mode="cuda", pin_memory=True)

    opt = parse_options(ask)
    assert opt["num_gpu"] == 0
    assert opt["datasets"]["train"]["prefetch_mode"] is None
    assert opt["datasets"]["train"]["pin_memory"] is False
    assert "num_gpu=2, but this machine has 0" in capsys.readouterr().err


def test_one_process_uses_one_gpu_and_says_how_to_use_all(parse_options, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert parse_options(change("num_gpu", "auto"))["num_gpu"] == 1
    assert "torchrun --nproc_per_node=4 --no-python basicsr train" in capsys.readouterr().err
    assert parse_options(change("num_gpu", 4), "--launcher", "pytorch")["num_gpu"] == 4


def test_a_key_that_nearly_is_basicsrs_is_reported(parse_options, capsys):
    parse_options(change("train.ema_deacy", 0.999))
    assert "train.ema_deacy is not an option of BasicSR, did you mean 'ema_decay'?" in capsys.readouterr().err


def test_debug_names_and_hastens_the_run(parse_options):
    opt = parse_options(None, "--debug")
    assert opt["name"] == "debug_small"
    assert (opt["logger"]["print_freq"], opt["val"]["val_freq"]) == (1, 8)


# The best model


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        ({"type": "calculate_psnr", "crop_border": 2}, "higher"),
        ({"type": "calculate_niqe", "crop_border": 2}, "lower"),
        ({"type": "calculate_niqe", "crop_border": 2, "better": "higher"}, "higher"),  # who says so gets it
        ({"type": "pyiqa", "metric": "niqe"}, "lower"),
        ({"type": "pyiqa", "metric": "lpips"}, "lower"),
        ({"type": "pyiqa", "metric": "musiq"}, "higher"),
    ],
)
def test_a_metric_knows_which_values_are_better(parse_options, metric, better):
    opt = parse_options(change("val", {"metrics": {"m": metric}, "key_metric": "m"}))
    assert opt["val"]["metrics"]["m"]["better"] == better


def test_a_key_metric_that_does_not_know_it_must_be_told(parse_options, monkeypatch):
    def sharpness(img, **kwargs):
        return 1.0

    monkeypatch.setitem(METRIC_REGISTRY._obj_map, "sharpness", sharpness)
    val = {"metrics": {"m": {"type": "sharpness"}}}
    parse_options(change("val", val))
    with pytest.raises(OptionProblems, match=r"val\.metrics\.m\.better is missing: val\.key_metric"):
        parse_options(change("val", val | {"key_metric": "m"}))
    parse_options(change("val", {"metrics": {"m": {"type": "sharpness", "better": "lower"}}, "key_metric": "m"}))
