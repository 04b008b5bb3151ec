"""A small option file of BasicSR's own model, changes of it, and how a command reads it."""

import argparse

import iter_model  # noqa: F401
from basicsr_compat.pipeline.options import add_arguments, read_options

PAIRS = {"type": "PairedImageDataset", "dataroot_gt": "gt", "dataroot_lq": "lq"}
EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1}


def l1_training(total_iter, milestone=3):
    """A section `train` of SRModel."""
    return {
        "total_iter": total_iter,
        "optim_g": {"type": "Adam", "lr": 1e-3},
        "scheduler": {"type": "MultiStepLR", "milestones": [milestone]},
        "pixel_opt": {"type": "L1Loss"},
    }


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
    "network_g": EDSR,
    "path": {"pretrain_network_g": None},
    "train": l1_training(10, milestone=5),
    "val": {"val_freq": 5, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}},
}


def read(words, root, is_train=True):
    """The options of a command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    return read_options(parser.parse_args(words), root, is_train)


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
