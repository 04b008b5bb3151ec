"""Small models of both stages with the options that a test gives them, in this process's rank of its process group."""

import torch
from basicsr.models import build_model
from basicsr.utils.dist_util import get_dist_info
from small_networks import VQGAN, config, small_iter

import iter_model  # noqa: F401
from iter_arch import save_pretrained


def options(tmp_path, **train) -> dict:
    """Options of a training run whose folders are in tmp_path, as BasicSR would complete them."""
    rank, world_size = get_dist_info()
    models, states = tmp_path / "models", tmp_path / "training_states"
    models.mkdir(parents=True, exist_ok=True)
    states.mkdir(parents=True, exist_ok=True)
    return {
        "name": "run",
        "scale": 4,
        "num_gpu": 0,
        "dist": world_size > 1,
        "rank": rank,
        "world_size": world_size,
        "is_train": True,
        "manual_seed": 0,
        "datasets": {"train": {"name": "train", "gt_size": 64}},
        "path": {"models": str(models), "training_states": str(states), "visualization": str(tmp_path / "images")},
        "logger": {"print_freq": 1},
        "train": {
            "total_iter": 1000,
            "optim_g": {"type": "Adam", "lr": 1e-3, "betas": [0.9, 0.99]},
            "scheduler": {"type": "MultiStepLR", "milestones": [100], "gamma": 0.5},
            **train,
        },
    }


def vqgan_model(tmp_path, seed=0, pretrained=None, **train):
    """SwinVQGANModel with L1 and SSIM, with a discriminator where gan_opt is given; seed: of the initial weights."""
    opt = options(
        tmp_path, **({"pixel_opt": {"type": "L1Loss"}, "ssim_opt": {"type": "SSIMLoss"}, "ema_decay": 0.9} | train)
    )
    opt |= {"model_type": "SwinVQGANModel", "network_g": {"type": "SwinVQGAN", **VQGAN}}
    opt["path"]["pretrain_network_g"] = pretrained and str(pretrained)
    if "gan_opt" in train:
        opt["network_d"] = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4}
        opt["train"]["optim_d"] = {"type": "Adam", "lr": 1e-3}
    torch.manual_seed(seed)
    return build_model(opt)


def iter_model_of(tmp_path, vqgan=None, seed=0, **train):
    """ITERModel with `iter_options`; seed: of the initial weights."""
    opt = iter_options(tmp_path, vqgan, **train)
    torch.manual_seed(seed)
    return build_model(opt)


def iter_options(tmp_path, vqgan=None, **train) -> dict:
    """Options of an ITERModel on a checkpoint of stage I, made where none is named."""
    losses = {name: {"type": "TokenCrossEntropy"} for name in ("dist_opt", "refiner_opt")}
    opt = options(tmp_path, **(losses | {"evaluator_opt": {"type": "EvaluatorLoss"}, "ema_decay": 0.9} | train))
    opt |= {"model_type": "ITERModel", "network_g": {"type": "ITER", **config()}, "val": {}}
    if vqgan is None:
        vqgan = tmp_path / "vqgan.pth"
        torch.save({"params_ema": small_iter(seed=7).vqgan.state_dict()}, vqgan)
    opt["path"]["pretrain_network_vqgan"] = str(vqgan)
    return opt


def decoder_model(tmp_path, net, *, color_correction="wavelet", path=None, **train):
    """DecoderModel on a whole ITER that is written to a file; with a discriminator where gan_opt is given.

    path: further entries of the section `path`.
    """
    opt = options(tmp_path, **({"pixel_opt": {"type": "L1Loss"}, "ema_decay": 0.9} | train))
    opt |= {"model_type": "DecoderModel", "network_g": {"type": "ITER", **config()}}
    opt["val"] = {"color_correction": color_correction}
    whole = tmp_path / "iter.safetensors"
    save_pretrained(net, whole)
    opt["path"] |= {"pretrain_network_iter": str(whole)} | (path or {})
    if "gan_opt" in train:
        opt["network_d"] = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4}
        opt["train"]["optim_d"] = {"type": "Adam", "lr": 1e-3}
    torch.manual_seed(0)
    return build_model(opt)


def sr_options(folder, **changes) -> dict:
    """Options of a small SRModel of BasicSR's, as parse_options completes them."""
    return {
        "name": "small",
        "model_type": "SRModel",
        "num_gpu": 0,
        "dist": False,
        "rank": 0,
        "world_size": 1,
        "is_train": True,
        "auto_resume": False,
        "root_path": str(folder),
        "manual_seed": 0,
        "network_g": {"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": 2},
        "path": {"models": str(folder), "training_states": str(folder), "visualization": str(folder / "visual")},
        "train": {
            "total_iter": 4,
            "optim_g": {"type": "Adam", "lr": 0.01},
            "scheduler": {"type": "MultiStepLR", "milestones": [2]},
            "pixel_opt": {"type": "L1Loss"},
        },
        "val": {"suffix": None, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0}}},
        **changes,
    }
