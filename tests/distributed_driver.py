"""A rank of the tests in e2e/test_distributed.py, under torchrun in a folder with options.

`compare` writes what each rank saw to rank<n>.pt; `threads` counts those that a training run leaves behind; any other
word trains by the command, with that fault in rank 1.
"""

import copy
import os
import signal
import sys
import time
from pathlib import Path

import basicsr_compat  # isort: skip  (before anything imports BasicSR)
import torch
from basicsr.utils.misc import set_random_seed
from small_models import iter_model_of, vqgan_model
from small_networks import photo, small_iter
from torch.utils.data import DataLoader

from basicsr_compat.pipeline import distributed
from iter_data import SecondOrderDegradationDataset
from iter_model import commands
from iter_model.iter_model import ITERModel
from iter_model.options import ValOptions

basicsr_compat.install_pipeline()

GAN = {"gan_opt": {"type": "GANLoss", "gan_type": "hinge", "loss_weight": 0.1}}
SGD = {"type": "SGD", "lr": 1e-3}
PAIRS = {"lq": photo(4, 3, 16, 16), "gt": photo(4, 3, 64, 64, seed=1)}
MASKS = (photo(4, 8, 8, seed=2) > 0.5, photo(4, seed=3), photo(4, 8, 8, seed=4))


# ---------------------------------------------------------------------------------------------------- models


def of_rank(batch, opt):
    """The part of a joint batch (a tensor, or a tuple or dict of tensors) that the rank of these options sees."""
    if isinstance(batch, dict):
        return {key: of_rank(value, opt) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(of_rank(value, opt) for value in batch)
    return batch.chunk(opt["world_size"])[opt["rank"]]


def named_parameters(model):
    """Names and parameters of net_g and, where there is one, net_d."""
    for net in ("net_g", "net_d"):
        if getattr(model, net, None) is not None:
            for name, parameter in model.get_bare_model(getattr(model, net)).named_parameters():
                yield f"{net}.{name}", parameter


def gradients(model, accumulate):
    """Gradients with which the optimizers step after `accumulate` joint batches, and those after the first batch."""
    stepped, first = {}, {}
    names = {parameter: name for name, parameter in named_parameters(model)}

    def record(optimizer, *_):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        stepped.update({names[parameter]: parameter.grad.clone() for parameter in parameters})

    for optimizer in model.optimizers:
        optimizer.register_step_pre_hook(record)
    if hasattr(model, "codebook"):
        model.codebook.start_iter = None
    model.draw_training_masks = lambda shape: of_rank(MASKS, model.opt)
    for current_iter in range(1, accumulate + 1):
        model.feed_data(of_rank({key: value.roll(current_iter, 0) for key, value in PAIRS.items()}, model.opt))
        model.optimize_parameters(current_iter)
        first = first or {name: copy.deepcopy(parameter.grad) for name, parameter in named_parameters(model)}
    return {"stepped": stepped, "first": first}


def gradients_of_both_models(folder, seed=0):
    """By model and number of accumulated batches; seed: of the initial weights of this process."""
    found = {}
    for accumulate in (1, 2):
        train = {"optim_g": SGD, "accumulate": accumulate}
        vqgan = vqgan_model(folder, seed=seed, revive_freq=0, **train, **GAN)
        found["vqgan", accumulate] = gradients(vqgan, accumulate)
        found["iter", accumulate] = gradients(iter_model_of(folder, seed=seed, **train), accumulate)
    return found


def history(folder, rank):
    """Every tensor of stage I after each iteration, through warm-up, k-means and revivals; what these made."""
    model = vqgan_model(folder, seed=rank, quantize_start_iter=3, revive_freq=2, accumulate=2, **GAN)
    set_random_seed(rank)
    states, made = [], []
    set_codes = model.codebook.set_codes
    model.codebook.set_codes = lambda indices, vectors: (made.append(len(indices)), set_codes(indices, vectors))
    for current_iter in range(1, 9):
        batch = {"gt": photo(4, 3, 64, 64, seed=10 + current_iter)}
        model.feed_data(of_rank(batch, model.opt))
        model.optimize_parameters(current_iter)
        nets = {name: model.get_bare_model(getattr(model, name)) for name in ("net_g", "net_g_ema", "net_d")}
        states.append({f"{net}.{key}": value.clone() for net in nets for key, value in nets[net].state_dict().items()})
    return {"states": states, "codes_made": made}


def decoder_alone(folder, rank):
    """Every tensor of stage I after each iteration of its decoder alone, from a checkpoint of rank 0."""
    if rank == 0:
        torch.save({"params": small_iter(seed=3).vqgan.state_dict()}, folder / "decoder.pth")
    torch.distributed.barrier()
    model = vqgan_model(folder, seed=rank, pretrained=folder / "decoder.pth", decoder_only=True, **GAN)
    states = []
    for current_iter in range(1, 4):
        model.feed_data(of_rank({"gt": photo(4, 3, 64, 64, seed=10 + current_iter)}, model.opt))
        model.optimize_parameters(current_iter)
        states.append({name: value.clone() for name, value in model.get_bare_model(model.net_g).state_dict().items()})
    return states


# ---------------------------------------------------------------------------------------------------- validation


class Photos(torch.utils.data.Dataset):
    """Photos of different sizes."""

    def __init__(self, name, count):
        self.opt, self.count = {"name": name}, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = photo(3, 32 + 8 * index, 40, seed=index)
        return {"lq": image, "gt": image, "lq_path": f"{index}.png", "gt_path": f"{index}.png"}


class Pictures:
    """Stands for a TensorBoard writer."""

    def __init__(self):
        self.shown = []

    def add_image(self, tag, picture, step):
        self.shown.append((tag, picture))

    def add_scalar(self, tag, value, step):
        pass


def validations(folder, count=(5, 1), test=None):
    """Validate sets of so many photos; returns metrics and pictures. test: (model, its test) -> None, instead of it."""
    model = vqgan_model(folder)
    model.opt["val"] = {"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0}}, "tb_images": 3}
    model.val = ValOptions(**model.opt["val"])
    taken, found = [], []
    plain_test = model.test

    def recorded():
        taken.append(model.gt.shape[2])
        (test or (lambda taken: None))(taken)
        plain_test()

    model.test = recorded
    for index, size in enumerate(count):
        pictures = Pictures() if model.opt["rank"] == 0 else None
        taken.clear()
        model.validation(DataLoader(Photos(f"set {index}", size)), 1, pictures, save_img=True)
        found.append(
            {"metrics": dict(model.metric_results), "pictures": pictures and pictures.shown, "taken": list(taken)}
        )
    return found


def rank_one_takes_one_image(taken):
    """Rank 1 waits with its first image until rank 0 has done four, rank 0 with its own until rank 1 has one."""
    store, rank = torch.distributed.distributed_c10d._get_default_store(), torch.distributed.get_rank()
    if len(taken) == 1:
        store.set(f"rank {rank} has one", "")
        store.wait([f"rank {1 - rank} has one"])
        if rank == 1:
            store.wait(["rank 0 has four"])
    elif len(taken) == 4 and rank == 0:
        store.set("rank 0 has four", "")


# ---------------------------------------------------------------------------------------------------- commands


def command(*words):
    """A command as this rank of it; another exit code than 0 ends the process."""
    code = commands.main([*words, "--launcher", "pytorch"])
    if code:
        sys.exit(code)


def trained(name):
    """What this rank saw in a training run by the command: images, degraded images, masks, of every iteration."""
    seen = []
    draw = ITERModel.draw_training_masks

    def record_masks(self, shape):
        masks = draw(self, shape)
        seen.append((self.gt.clone(), self.lq.clone(), *masks))
        return masks

    ITERModel.draw_training_masks = record_masks
    try:
        command("train", "-opt", "train.yml", "--force_yml", f"name={name}")
    finally:
        ITERModel.draw_training_masks = draw
    return seen


def compare(folder):
    """Train and validate in one process group, and write down what this rank saw."""
    distributed.init_process_group("pytorch", {"timeout": 120}, on_gpu=False)
    # One group for all: another under the same torchrun would find the addresses of the one before.
    leave = distributed.leave
    distributed.init_process_group = lambda *_, **__: None
    distributed.leave = lambda watch, *_: watch.stop()
    rank = torch.distributed.get_rank()
    results = {"first": trained("first"), "second": trained("second")}
    command("test", "-opt", "test.yml")
    own = folder / f"models{rank}"
    results["gradients"] = gradients_of_both_models(own, seed=rank)
    results["history"], results["again"] = history(own, rank), history(own, rank)
    results["decoder_alone"] = decoder_alone(folder, rank)
    model = iter_model_of(own)
    synchronized = [*model.net_g.module.parameters(), *model.net_g.module.buffers()]
    frozen = {id(tensor) for tensor in (*model.iter.vqgan.parameters(), *model.iter.vqgan.buffers())}
    results["frozen_in_ddp"] = [tuple(tensor.shape) for tensor in synchronized if id(tensor) in frozen]
    results["validations"] = validations(folder / "validated")
    results["uneven"] = validations(folder / "uneven", count=(5,), test=rank_one_takes_one_image)
    results["own_fault"] = distributed.failed_elsewhere(ValueError("a fault")) if rank == 1 else None
    torch.distributed.barrier()
    results["others_fault"] = distributed.failed_elsewhere(RuntimeError("[x/gloo/y.cc] closed")) if rank == 0 else None
    torch.distributed.barrier()
    torch.save(results, folder / f"rank{rank}.pt")
    leave(None)


def train_with(fault, iteration):
    """Train by the command; rank 1 has the fault at that iteration, in its first life, and leaves the file `fault`."""

    def strike(*_):
        Path("fault").touch()
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "stuck":
            time.sleep(600)
        raise torch.OutOfMemoryError("CUDA out of memory") if fault == "memory" else ZeroDivisionError("no such thing")

    optimize = ITERModel.optimize_parameters
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        if fault == "dataset":
            SecondOrderDegradationDataset._crop = strike
        elif fault == "validation":
            ITERModel.test = strike
        else:
            ITERModel.optimize_parameters = lambda self, now: strike() if now == iteration else optimize(self, now)
    elif fault == "validation":
        # As in NCCL, which does not notice that the other rank is gone.
        ITERModel.test = lambda self: time.sleep(600)
    command("train", "-opt", "train.yml", "--auto_resume", "--force_yml", "name=faulty", *sys.argv[3:])


def count_threads():
    """How many threads of gloo a training run leaves behind; Python's shutdown may abort a process that has some."""
    command("train", "-opt", "train.yml", "--force_yml", "name=threads")
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    print(f"{sum('gloo' in name for name in names)} threads of gloo")


if __name__ == "__main__":
    if sys.argv[1] == "compare":
        compare(Path.cwd())
    elif sys.argv[1] == "threads":
        count_threads()
    else:
        train_with(sys.argv[1], int(sys.argv[2]))
