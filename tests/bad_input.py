"""Options of small runs that a test spoils, and what a folder holds."""

import copy

import yaml
from option_files import EDSR, change, l1_training
from small_networks import config

SAMPLING = {"steps": 2}
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
    "train": l1_training(4, milestone=9),
    "logger": {"print_freq": 1, "save_checkpoint_freq": 100},
}


def content(folder):
    """Paths of all that lies below a folder, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def options_of_test(lq, gt, **changes):
    """Options of a test of small.safetensors on the folders lq and gt."""
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
    change(where, value)(opt)
    (folder / "changed.yml").write_text(yaml.safe_dump(opt))
    return ["train", "-opt", "changed.yml"]
