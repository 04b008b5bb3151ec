"""What another project does with BasicSR after `import iter_arch, iter_data, iter_model`: JSON of what failed, by name.

Every function is one habit that is right with BasicSR alone. argv: the names of the functions to call.
"""

import iter_arch  # noqa: F401  isort: skip  (before BasicSR, for older versions of ours too)
import copy
import json
import logging
import sys
import tempfile
import traceback
from pathlib import Path

import basicsr.train
import cv2
import numpy as np
import pytest
import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils.img_util import imfrombytes
from basicsr.utils.registry import DATASET_REGISTRY
from small_models import sr_options
from torch.optim import lr_scheduler

import iter_data  # noqa: F401
import iter_model  # noqa: F401

LOGGER = logging.getLogger("basicsr")


class HostModel(SRModel):
    """SRModel with the scheduler that its options build."""

    def setup_schedulers(self):
        self.schedulers = [self.opt["build_scheduler"](optimizer) for optimizer in self.optimizers]


def resumed(folder, build_scheduler, train):
    """Two models, one that went through `train` and one that resumes its state, by BasicSR's functions alone."""
    opt = sr_options(folder, build_scheduler=build_scheduler)
    one = HostModel(copy.deepcopy(opt))
    train(one)
    one.save_training_state(0, 4)
    opt["path"]["resume_state"] = str(folder / "4.state")
    state = basicsr.train.load_resume_state(copy.deepcopy(opt))
    other = HostModel(copy.deepcopy(opt))
    other.resume_training(state)
    return one, other


def sequential_scheduler_resumes(folder):
    def build(optimizer):
        parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2), lr_scheduler.ExponentialLR(optimizer, 0.5)]
        return lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])

    def train(model):
        for _ in range(4):
            model.optimizers[0].step()
            model.schedulers[0].step()

    one, other = resumed(folder, build, train)
    for model in one, other:
        model.optimizers[0].step()
        model.schedulers[0].step()
    assert one.get_current_learning_rate() == other.get_current_learning_rate()


def plateau_scheduler_resumes(folder):
    def train(model, losses=(1.0, 2.0)):
        for loss in losses:
            model.optimizers[0].step()
            model.schedulers[0].step(loss)

    one, other = resumed(folder, lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1), train)
    for model in one, other:
        train(model, losses=[2.0])
    assert one.get_current_learning_rate() == other.get_current_learning_rate() == [pytest.approx(0.001)]


def model_is_saved_without_a_seed_in_its_options(folder):
    opt = sr_options(folder)
    del opt["manual_seed"], opt["root_path"], opt["auto_resume"]
    SRModel(opt).save(0, 4)
    assert {path.name for path in folder.iterdir()} >= {"net_g_4.pth", "4.state"}


def rank_zero_alone_saves_its_state(folder):
    basicsr.utils.dist_util.init_dist("pytorch")
    model = SRModel(sr_options(folder, rank=torch.distributed.get_rank(), world_size=2))
    if torch.distributed.get_rank() == 0:
        model.save_training_state(0, 4)
        assert (folder / "4.state").exists()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def large_image_is_read(folder):
    _, data = cv2.imencode(".png", np.zeros((14143, 14143), np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert imfrombytes(data.tobytes(), flag="grayscale").size > 200_000_000


@DATASET_REGISTRY.register()
class Clips(torch.utils.data.Dataset):
    """Clips of frames: a path for each frame, and no options kept."""

    def __init__(self, opt):
        self.length = opt["length"]

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        frames = torch.rand(3, 3, 8, 8)
        return {"lq": frames, "gt": frames, "lq_path": [f"{index}/{frame}.png" for frame in range(3)]}


def dataset_without_options_and_with_lists_of_paths_is_validated(folder):
    data = {"name": "clips", "type": "Clips", "length": 2}
    train = {**data, "phase": "train", "batch_size_per_gpu": 1, "num_worker_per_gpu": 0}
    opt = sr_options(folder, datasets={"train": train, "val": {**data, "phase": "val"}})
    _, _, (loader,), _, _ = basicsr.train.create_train_val_dataloader(opt, LOGGER)
    paths = [batch["lq_path"] for batch in loader]
    assert paths[1] == [("1/0.png",), ("1/1.png",), ("1/2.png",)], paths
    loader = basicsr.test.build_dataloader(basicsr.test.build_dataset(opt["datasets"]["val"]), {"phase": "test"})
    assert len(list(loader)) == 2


def upsampled_input_is_validated(folder):
    for name in ("lq", "gt"):
        (folder / name).mkdir()
        cv2.imwrite(str(folder / name / "a.png"), np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    data = {"type": "PairedImageDataset", "name": "pairs", "phase": "val", "io_backend": {"type": "disk"}, "scale": 4}
    data |= {"dataroot_lq": str(folder / "lq"), "dataroot_gt": str(folder / "gt")}
    train = {**data, "phase": "train", "batch_size_per_gpu": 1, "num_worker_per_gpu": 0, "gt_size": 16}
    opt = sr_options(folder, scale=4, datasets={"train": train, "val": data})
    opt["network_g"] |= {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "scale": 1}
    del opt["network_g"]["upscale"]
    _, _, (loader,), _, _ = basicsr.train.create_train_val_dataloader(opt, LOGGER)
    model = SRModel(opt)
    model.validation(loader, 1, None)
    assert model.metric_results["psnr"] > 0


def run(name):
    """The traceback of what failed, or None."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            globals()[name](Path(folder))
        except Exception:
            return traceback.format_exc()


if __name__ == "__main__":
    print(json.dumps({name: run(name) for name in sys.argv[1:]}))
