"""Options of a run: read, completed, and refused with a message before anything is made."""

import argparse
import contextlib
import copy
import os
import re

import pytest
import torch
import yaml
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import METRIC_REGISTRY
from small_networks import VQGAN, config

import iter_model  # noqa: F401
from basicsr_compat.pipeline.data import build_set
from basicsr_compat.pipeline.options import add_arguments, read_options
from basicsr_compat.schema import OptionProblems

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


def read(words, root, is_train=True):
    """The options of a command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    return read_options(parser.parse_args(words), root, is_train)


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
        before = sorted(os.listdir(tmp_path))
        try:
            return read(["-opt", "x.yml", *words], str(tmp_path), is_train)
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
    expected = {"use_tb_logger": False, "print_freq": 100, "save_checkpoint_freq": 5000, "keep_last": None}
    assert opt["logger"] == expected
    assert opt["val"]["save_img"] is False and opt["val"]["suffix"] is None
    assert opt["path"]["models"] == str(tmp_path / "experiments/small/models")
    assert opt["datasets"]["val_1"]["phase"] == "val"
    assert opt["datasets"]["train"]["io_backend"] == {"type": "disk"}


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


# ---------------------------------------------------------------------------------------- models of this project

PHOTOS = {"type": "SecondOrderDegradationDataset", "dataroot_gt": "images"}
RUN = {
    "name": "small",
    "scale": 4,
    "datasets": {
        "train": {**PHOTOS, "gt_size": 64, "batch_size_per_gpu": 2, "num_worker_per_gpu": 0, "degradation": {}},
        "val": dict(PHOTOS),
    },
    "train": {
        "total_iter": 10,
        "optim_g": {"type": "Adam", "lr": 1e-4, "betas": [0.9, 0.99]},
        "scheduler": {"type": "MultiStepLR", "milestones": [5], "gamma": 0.5},
    },
    "val": {"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}},
    "logger": {"print_freq": 1},
    "path": {},
}


def stage_one():
    run = copy.deepcopy(RUN) | {"model_type": "SwinVQGANModel", "network_g": {"type": "SwinVQGAN", **VQGAN}}
    run["network_d"] = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4}
    run["train"] |= {
        "pixel_opt": {"type": "L1Loss"},
        "gan_opt": {"type": "GANLoss", "gan_type": "hinge"},
        "optim_d": {"type": "Adam", "lr": 1e-4},
    }
    return run


def stage_two():
    run = copy.deepcopy(RUN) | {"model_type": "ITERModel", "network_g": {"type": "ITER", **copy.deepcopy(config())}}
    run["path"] = {"pretrain_network_vqgan": "weights.pth"}
    run["train"] |= {"dist_opt": {"type": "TokenCrossEntropy"}, "refiner_opt": {"type": "TokenCrossEntropy"}}
    run["train"] |= {"evaluator_opt": {"type": "EvaluatorLoss"}}
    run["val"]["sampling"] = {"steps": 8}
    return run


def a_test():
    run = stage_two()
    del run["train"]
    return run | {"datasets": {"test": dict(PHOTOS)}, "path": {"pretrain_network_g": "weights.pth"}}


def problems(parse, run, *changes, is_train=True):
    for where, value in changes:
        change(where, value)(run)
    with pytest.raises(OptionProblems) as caught:
        parse(yaml.safe_dump(run), is_train=is_train)
    assert str(caught.value).splitlines() == list(caught.value.problems)
    return list(caught.value.problems)


@pytest.mark.parametrize(("run", "is_train"), [(stage_one, True), (stage_two, True), (a_test, False)])
def test_options_without_a_mistake_are_accepted(parse, run, is_train):
    parse(yaml.safe_dump(run()), is_train=is_train)


def test_whole_numbers_may_have_an_exponent(parse):
    opt = parse(yaml.safe_dump(stage_two()).replace("total_iter: 10", "total_iter: 1e5"))
    assert opt["train"]["total_iter"] == 100_000 and isinstance(opt["train"]["total_iter"], int)


def test_every_mistake_is_listed(parse):
    found = problems(
        parse,
        stage_two(),
        ("train.ema_deacy", 0.9),
        ("train.accumulate", 0),
        ("val.sampling.alpha", 2),
        ("val.sampling.step", 8),
        ("datasets.train.degradation.jpeg_range", [30, 100]),
        ("datasets.train.degradation.nose", 1),
        ("datasets.val.sed", 0),
        ("network_g.refiner.swin.heads", 0),
        ("network_g.vqgan.dept", 1),
        ("logger.print_freq", 0),
        ("num_gpu", "two"),
        ("datasets.val.dataroot_gt", "nowhere"),
        ("path.pretrain_network_g", "nowhere.pth"),
    )
    starts = [
        "num_gpu='two' must be a whole number >= 0 or auto",
        "logger.print_freq=0 must be a whole number >= 1",
        "train.accumulate=0 must be a whole number >= 1",
        "train.ema_deacy is not an option (did you mean 'ema_decay'?)",
        "val.sampling.alpha=2 must be a number in [0, 1]",
        "val.sampling.step is not an option (did you mean 'steps'?)",
        "datasets.train.degradation.jpeg_range=[30, 100] must be",
        "datasets.train.degradation.nose is not an option",
        "datasets.val.sed is not an option (did you mean 'seed'?)",
        "network_g.refiner.swin.heads=0 must be a whole number >= 1",
        "network_g.vqgan.dept is not an option",
        "datasets.val.dataroot_gt='nowhere' does not exist",
        "path.pretrain_network_g='nowhere.pth': there is no such file",
    ]
    assert len(found) == len(starts)
    for start in starts:
        assert any(line.startswith(start) for line in found), start


@pytest.mark.parametrize(
    ("run", "where", "value", "message"),
    [
        # unknown keys, each with the nearest known one
        (stage_one, "network_q", {"type": "EDSR"}, r"network_q is not an option \(did you mean 'network_g'"),
        (stage_two, "network_d", {"type": "UNetDiscriminatorSN", "num_in_ch": 3}, "network_d is not an option"),
        (stage_two, "gt_usm", True, "gt_usm is not an option"),
        (stage_one, "train.queue_size", 8, "train.queue_size is not an option"),
        (stage_two, "val.bicubc", True, r"val.bicubc is not an option \(did you mean 'bicubic'"),
        (stage_one, "logger.print_frq", 1, "did you mean 'print_freq'"),
        (stage_two, "network_g.lq_encoder.num_codes", 9, "network_g.lq_encoder.num_codes is not an option"),
        (stage_two, "network_g.evaluator.swin.mlp_ration", 4, "did you mean 'mlp_ratio'"),
        (stage_two, "network_g.sampling", {"alpa": 1}, r"network_g.sampling.alpa is not an option .*'alpha'"),
        (stage_one, "network_d.skip_conection", True, "did you mean 'skip_connection'"),
        (stage_one, "train.pixel_opt.weight", 1, r"train.pixel_opt.weight is not an option .*'loss_weight'"),
        (stage_one, "train.optim_g.learning_rate", 1, "train.optim_g.learning_rate is not an option"),
        (stage_one, "val.metrics.psnr.crop_boder", 1, "did you mean 'crop_border'"),
        # missing ones
        (stage_two, "train.evaluator_opt", ..., "train.evaluator_opt is missing"),
        (stage_one, "train.optim_g", ..., "train.optim_g is missing"),
        (stage_one, "val.metrics.psnr.crop_border", ..., "val.metrics.psnr.crop_border is missing"),
        (stage_one, "train.optim_d", ..., r"train.optim_d is missing: train.gan_opt needs it"),
        (stage_one, "network_d", ..., r"network_d is missing: train.gan_opt needs it"),
        (stage_two, "path.pretrain_network_vqgan", ..., "path.pretrain_network_vqgan is missing.*train_swin_vqgan"),
        (stage_two, "network_g", ..., "network_g is missing"),
        (stage_one, "datasets.train.gt_size", ..., "datasets.train.gt_size is missing"),
        # types and ranges
        (stage_one, "scale", 3, "scale=3 must be 1 or 2 or 4 or 8"),
        (stage_one, "manual_seed", -1, "manual_seed=-1 must be"),
        (stage_one, "name", "", "name='' must be the name of a folder"),
        (stage_one, "name", "../other", "name='../other' must be"),
        (stage_one, "name", ["a"], r"name=\['a'\] must be"),
        (stage_one, "train", [1], r"train=\[1\] must be a section"),
        (stage_one, "datasets", [1], r"datasets=\[1\] must be a section"),
        (stage_one, "logger", "all", "logger='all' must be a section"),
        (stage_one, "train.total_iter", 0, "train.total_iter=0 must be a whole number >= 1"),
        (stage_one, "val.val_freq", 0, "val.val_freq=0 must be a whole number >= 1"),
        (stage_one, "logger.keep_last", 0, "logger.keep_last=0 must be a whole number >= 1"),
        (stage_one, "val.key_metric", "pnsr", r"val.key_metric='pnsr' must be .*did you mean 'psnr'"),
        (stage_one, "train.autocast", "fp16", "train.autocast='fp16' must be none or bf16"),
        (stage_one, "train.compile", "yes", "train.compile='yes' must be true or false"),
        (stage_one, "train.ema_decay", 1, r"train.ema_decay=1 must be a number in \[0, 1\)"),
        (stage_one, "train.clip_grad_norm", -1, "train.clip_grad_norm=-1 must be a number > 0 or ~"),
        (stage_one, "train.vq_weight", float("nan"), "train.vq_weight=nan must be a number >= 0"),
        (stage_two, "train.mask_schedule", "cos", "train.mask_schedule='cos' must be text 'cosine', 'linear'"),
        (stage_two, "val.sampling", [8], r"val.sampling=\[8\] must be a section"),
        (stage_two, "val.sampling.steps", 10**12, "val.sampling.steps=1000000000000 must be"),
        (stage_two, "val.tile", 8, "val.tile=8 must be at least 16"),
        (stage_two, "network_g.vqgan.multipliers", [1, 0], r"multipliers=\[1, 0\] must be a list"),
        (stage_two, "network_g.vqgan.swin.depth", 10**9, "swin.depth=1000000000 must be a whole number from 1 to 100"),
        (stage_one, "path.pretrain_network_g", 3, "path.pretrain_network_g=3 must be text or ~"),
        (stage_one, "path.strict_load_g", "no", "path.strict_load_g='no' must be true or false"),
        (stage_one, "val.metrics.psnr.better", "lowr", "better='lowr' must be higher or lower"),
        (stage_one, "val.metrics.psnr.crop_border", -1, "crop_border=-1 must be a whole number >= 0"),
        (stage_one, "train.pixel_opt.type", "L1Los", "train.pixel_opt.type='L1Los' is not a registered loss"),
        (stage_one, "train.optim_g.type", "Adan", "train.optim_g.type='Adan' is not a class of torch.optim"),
        (stage_one, "train.scheduler.type", "Cosine", "train.scheduler.type='Cosine' is not a scheduler"),
        # what cannot go together
        (stage_one, "train.optim_g.lr", -1, "train.optim_g=.* is impossible: Invalid learning rate"),
        (stage_one, "train.scheduler.milestones", 5, "train.scheduler=.* is impossible"),
        (
            stage_one,
            "train.scheduler",
            {"type": "CosineAnnealingRestartLR", "periods": [4, 4], "restart_weights": [1, 1]},
            r"train.scheduler.periods=\[4, 4\] must add up to train.total_iter=10",
        ),
        (stage_one, "datasets.train.gt_size", 96, "gt_size=96 must be a multiple of 64"),
        (stage_two, "datasets.train.gt_size", 96, "gt_size=96 must be a multiple of 64"),
        (stage_two, "datasets.train.gt_size", 66, "gt_size=66 must be a multiple of scale=4"),
        (stage_two, "datasets.train.gt_size", 24, "gt_size=24 must be a whole number >= 32"),
        (stage_two, "datasets.train.crop_pad_size", 60, "crop_pad_size=60 must be .* >= gt_size=64"),
        (stage_two, "datasets.train.degradation.blur_kernel_size", 8, "size=8 must be a whole number that is odd"),
        (stage_two, "datasets.train.degradation.kernel_prob", [1], r"kernel_prob=\[1\] must be 6 numbers"),
        (stage_two, "train.queue_size", 1, "train.queue_size=1 must be 0, or at least .*batch_size_per_gpu=2"),
        (stage_two, "scale", 2, "network_g.scale=4 must be the scale of the data, scale=2"),
        (stage_two, "network_g.refiner.swin.heads", 3, "network_g of type ITER .*swin.dim=16 must be a multiple"),
        (stage_two, "network_g.refiner.swin.window", 4, "network_g of type ITER .*window must be the same"),
        (stage_two, "network_g", {"type": "SwinVQGAN"}, "network_g.type=SwinVQGAN must be ITER"),
        (stage_one, "network_g", {"type": "ITER"}, "network_g.type=ITER must be SwinVQGAN"),
        (
            stage_two,
            "datasets.val",
            {"type": "SingleImageDataset", "dataroot_lq": "images"},
            "val.metrics.psnr=calculate_psnr compares with the ground truth, which datasets.val of type SingleImage",
        ),
    ],
)
def test_a_wrong_option_of_this_project_is_refused(parse, run, where, value, message):
    found = problems(parse, run(), (where, value))
    assert any(re.search(message, line) for line in found), found


def test_a_test_does_not_read_the_training_of_its_yml(parse):
    run = a_test()
    run["train"] = {"anything": 1}
    parse(yaml.safe_dump(run), is_train=False)


def test_keys_that_others_read_stay_allowed_in_other_models(parse):
    def add(content):
        content["train"]["my_own_option"] = 3
        content["datasets"]["train"]["my_own_option"] = 3

    assert parse(add)["train"]["my_own_option"] == 3


def test_a_pool_of_basicsrs_must_hold_whole_batches(parse):
    with pytest.raises(ValueError, match=r"queue_size=5 must be a multiple of datasets\.train\.batch_size_per_gpu=2"):
        parse(change("queue_size", 5))


@pytest.mark.long
@pytest.mark.parametrize("value", [None, [[1]], {1: 2}, 10**400])
def test_nothing_in_place_of_a_section_or_value_is_a_fault(parse, value):
    def places(section, path=()):
        for key, item in section.items():
            yield (*path, key)
            if isinstance(item, dict):
                yield from places(item, (*path, key))

    for path in places(stage_two()):
        run = stage_two()
        section = run
        for key in path[:-1]:
            section = section[key]
        section[path[-1]] = value
        with contextlib.suppress(OptionProblems):
            parse(yaml.safe_dump(run))


# ---------------------------------------------------------------------------------------- the best model


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
def test_a_metric_knows_which_values_are_better(parse, metric, better):
    opt = parse(change("val", {"metrics": {"m": metric}, "key_metric": "m"}))
    assert opt["val"]["metrics"]["m"]["better"] == better


def test_a_key_metric_that_does_not_know_it_must_be_told(parse, monkeypatch):
    def sharpness(img, **kwargs):
        return 1.0

    monkeypatch.setitem(METRIC_REGISTRY._obj_map, "sharpness", sharpness)
    val = {"metrics": {"m": {"type": "sharpness"}}}
    parse(change("val", val))
    with pytest.raises(OptionProblems, match=r"val\.metrics\.m\.better is missing: val\.key_metric"):
        parse(change("val", val | {"key_metric": "m"}))
    parse(change("val", {"metrics": {"m": {"type": "sharpness", "better": "lower"}}, "key_metric": "m"}))


# ---------------------------------------------------------------------------------------- files that read otherwise


def test_a_key_given_twice_is_a_problem(parse):
    text = yaml.safe_dump(OPTIONS).replace("  total_iter: 10", "  total_iter: 10\n  total_iter: 20")
    with pytest.raises(OptionProblems, match=r"^train\.total_iter is given twice, in lines \d+ and \d+"):
        parse(text)
    with pytest.raises(OptionProblems, match=r"^scale is given twice"):
        parse(yaml.safe_dump(OPTIONS) + "scale: 4\n")


def test_a_key_in_two_sections_and_a_merged_section_are_none(parse):
    text = yaml.safe_dump(OPTIONS, sort_keys=False).replace("val_1:", "val_1: &one")
    opt = parse(text.replace("network_g:", "  val_2:\n    <<: *one\n    name: two\nnetwork_g:", 1))
    assert opt["datasets"]["val_2"] == opt["datasets"]["val_1"] | {"name": "two"}


@pytest.mark.parametrize("name", ["on", "yes", "Off", "007", "1e3", "2026-01-02", "1_000"])
def test_a_name_that_yaml_reads_otherwise_is_a_problem(parse, name):
    with pytest.raises(OptionProblems, match=rf"^name={name} is read as .* by YAML; put it in quotes: '{name}'$"):
        parse(yaml.safe_dump(OPTIONS).replace("name: small", f"name: {name}"))
    assert parse(yaml.safe_dump(OPTIONS).replace("name: small", f"name: '{name}'"))["name"] == name


def test_a_number_may_be_a_name(parse):
    assert parse(change("name", 12))["name"] == "12"
    assert parse(change("datasets.val_1.name", 12))["datasets"]["val_1"]["name"] in (12, "12")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_a_file_in_another_encoding_is_told_to_be_utf8(tmp_path, encoding):
    text = "# größer\n" + yaml.safe_dump(OPTIONS)
    (tmp_path / "x.yml").write_bytes((b"\xff\xfe" if encoding == "utf-16-le" else b"") + text.encode(encoding))
    with pytest.raises(OptionProblems, match="save it in UTF-8"):
        read(["-opt", str(tmp_path / "x.yml")], str(tmp_path))


def test_a_byte_order_mark_of_utf8_is_no_harm(tmp_path, parse):
    (tmp_path / "bom.yml").write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(OPTIONS).encode())
    assert read(["-opt", "bom.yml"], str(tmp_path))["name"] == "small"


def test_paths_may_have_home_and_variables_and_a_slash_at_the_end(parse, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", str(tmp_path))

    def place(content):
        content["datasets"]["train"]["dataroot_gt"] = "$HOME/images/"
        content["datasets"]["val_1"]["dataroot_gt"] = ["~/images", "${DATA}/images/"]
        content["path"]["pretrain_network_g"] = "$DATA/weights.pth"

    opt = parse(place)
    images = str(tmp_path / "images")
    assert opt["datasets"]["train"]["dataroot_gt"] == images
    assert opt["datasets"]["val_1"]["dataroot_gt"] == [images, images]
    assert opt["path"]["pretrain_network_g"] == str(tmp_path / "weights.pth")


def test_an_lmdb_may_be_named_with_a_slash_at_the_end(tmp_path):
    for name in ("lq.lmdb", "gt.lmdb"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta_info.txt").write_text("a.png (8,8,3) 1\n")
    change("datasets.val_1.dataroot_gt", "x")(content := copy.deepcopy(OPTIONS))
    content["datasets"]["val_1"] |= {"io_backend": {"type": "lmdb"}}
    content["datasets"]["val_1"] |= {f"dataroot_{kind}": str(tmp_path / f"{kind}.lmdb/") + "/" for kind in ("lq", "gt")}
    content["datasets"]["train"] |= {f"dataroot_{kind}": str(tmp_path) for kind in ("lq", "gt")}
    (tmp_path / "x.yml").write_text(yaml.safe_dump(content))
    opt = read(["-opt", str(tmp_path / "x.yml")], str(tmp_path))
    assert len(build_set("val_1", opt["datasets"]["val_1"])) == 1


def test_one_process_uses_one_gpu_and_says_how_to_use_all(parse, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert parse(change("num_gpu", "auto"))["num_gpu"] == 1
    assert "torchrun --nproc_per_node=4 --no-python basicsr train" in capsys.readouterr().err
    assert parse(change("num_gpu", 4), "--launcher", "pytorch")["num_gpu"] == 4
