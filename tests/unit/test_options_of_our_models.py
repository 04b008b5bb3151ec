"""Options of this project's models: every problem is listed, before anything is made."""

import contextlib
import copy
import re

import pytest
import yaml
from option_files import change
from small_networks import VQGAN, config

from basicsr_compat.schema import OptionProblems

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


def problems(parse_options, run, *changes, is_train=True):
    for where, value in changes:
        change(where, value)(run)
    with pytest.raises(OptionProblems) as caught:
        parse_options(yaml.safe_dump(run), is_train=is_train)
    assert str(caught.value).splitlines() == list(caught.value.problems)
    return list(caught.value.problems)


@pytest.mark.parametrize(("run", "is_train"), [(stage_one, True), (stage_two, True), (a_test, False)])
def test_options_without_a_problem_are_accepted(parse_options, run, is_train):
    parse_options(yaml.safe_dump(run()), is_train=is_train)


def test_whole_numbers_may_have_an_exponent(parse_options):
    opt = parse_options(yaml.safe_dump(stage_two()).replace("total_iter: 10", "total_iter: 1e5"))
    assert opt["train"]["total_iter"] == 100_000 and isinstance(opt["train"]["total_iter"], int)


def test_every_problem_is_listed(parse_options):
    found = problems(
        parse_options,
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
def test_a_wrong_option_of_this_project_is_refused(parse_options, run, where, value, message):
    found = problems(parse_options, run(), (where, value))
    assert any(re.search(message, line) for line in found), found


def test_a_test_does_not_read_the_training_of_its_yml(parse_options):
    run = a_test()
    run["train"] = {"anything": 1}
    parse_options(yaml.safe_dump(run), is_train=False)


def test_keys_that_others_read_stay_allowed_in_other_models(parse_options):
    def add(content):
        content["train"]["my_own_option"] = 3
        content["datasets"]["train"]["my_own_option"] = 3

    assert parse_options(add)["train"]["my_own_option"] == 3


def test_a_pool_of_basicsrs_must_hold_whole_batches(parse_options):
    with pytest.raises(ValueError, match=r"queue_size=5 must be a multiple of datasets\.train\.batch_size_per_gpu=2"):
        parse_options(change("queue_size", 5))


@pytest.mark.long
@pytest.mark.parametrize("value", [None, [[1]], {1: 2}, 10**400])
def test_nothing_in_place_of_a_section_or_value_is_a_fault(parse_options, value):
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
            parse_options(yaml.safe_dump(run))
