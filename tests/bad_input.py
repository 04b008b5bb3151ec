"""Options of small runs that a test spoils, and what a folder holds."""

import copy

import yaml
from small_networks import config

SAMPLING = {"steps": 2}
EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1}
TRAINING = {
    "name": "run",
    "model_type": "SRModel",
    "scale": 4,
    "num_gpu": 0,
    "manual_seed": 0,
    "datasets": {
        "train": {
            "type": "SecondOrderDegradationDataset",
            "dataroot_gt": "train",
            "gt_size": 48,
            "degrade_in_worker": True,
            "batch_size_per_gpu": 1,
            "num_worker_per_gpu": 0,
        }
    },
    "network_g": EDSR,
    "path": {"pretrain_network_g": None},
    "train": {
        "total_iter": 4,
        "optim_g": {"type": "Adam", "lr": 1e-3},
        "scheduler": {"type": "MultiStepLR", "milestones": [9]},
        "pixel_opt": {"type": "L1Loss"},
    },
    "logger": {"print_freq": 1, "save_checkpoint_freq": 100},
}


def content(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def options_of_test(lq, gt, **changes):
    return {
        "name": "bad",
        "model_type": "ITERModel",
        "scale": 4,
        "num_gpu": 0,
        "datasets": {"test": {"name": "set", "type": "PairedImageDataset", "dataroot_gt": gt, "dataroot_lq": lq}},
        "network_g": {"type": "ITER", **config()},
        "path": {"pretrain_network_g": "small.safetensors"},
        "val": {"sampling": SAMPLING, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0}}},
    } | changes


def train_with(folder, where, value):
    """The words of a training run with one option changed, or taken out where the value is `...`."""
    opt = copy.deepcopy(TRAINING)
    *path, key = where.split(".")
    section = opt
    for name in path:
        section = section[name]
    section[key] = value
    (folder / "changed.yml").write_text(yaml.safe_dump(opt))
    return ["train", "-opt", "changed.yml"]
