"""The shipped option files with small networks and crops."""

from pathlib import Path

import yaml
from small_networks import TOKENS, VQGAN

OPTIONS = Path(__file__).parents[1] / "options"


def small(name, folder):
    """A shipped yml with small networks and crops, written to the folder."""
    opt = yaml.safe_load((OPTIONS / f"{name}.yml").read_text())
    network = opt["network_g"]
    if network["type"] == "ITER":
        network |= {"vqgan": VQGAN, "lq_encoder": {"stem_channels": 8} | TOKENS, "refiner": TOKENS, "evaluator": TOKENS}
    else:
        opt["network_g"] = {"type": "SwinVQGAN", **VQGAN}
        opt["network_d"]["num_feat"] = 4
    for dataset in opt["datasets"].values():
        dataset |= {key: "photos" for key in ("dataroot_gt", "dataroot_lq") if key in dataset}
    if "train" in opt["datasets"]:
        opt["datasets"]["train"] |= {"gt_size": 64, "batch_size_per_gpu": 2, "dataset_enlarge_ratio": 10}
        opt["logger"] |= {"print_freq": 1, "save_checkpoint_freq": 100}
    (folder / f"{name}.yml").write_text(yaml.safe_dump(opt))
