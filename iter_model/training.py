"""What the models of both stages share: precision and compilation, steps of the optimisers, loading of networks."""

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor, nn

from basicsr_compat.pipeline import checkpoints
from basicsr_compat.pipeline.check import Network
from basicsr_compat.pipeline.randomness import derive_seed
from basicsr_compat.schema import read_section, section_problems
from iter_arch.checkpoint import load_strictly, read_checkpoint
from iter_model.options import RunOptions, TrainerOptions, TrainOptions, ValOptions, impossible_optimizers

_IMPLEMENTATIONS = {"fused", "foreach", "differentiable", "capturable"}


class TrainingMixin(BaseModel):
    """What a model's yml may hold is declared in its class; nothing else is read, and nothing else is accepted."""

    train_options: type[TrainOptions]
    val_options: type[ValOptions]
    # Sections of networks besides network_g.
    further_networks: tuple[str, ...] = ()

    @classmethod
    def option_problems(
        cls, opt: Mapping[str, Any], is_train: bool, networks: Mapping[str, nn.Module]
    ) -> Iterator[str]:
        """Say what is wrong with the options of a run, a line each.

        Args:
            opt: the yml, each of its sections a mapping.
            networks: those of the yml that can be built, on the meta device.
        """
        further = {name: Network | None for name in cls.further_networks}
        problems = list(section_problems(opt, RunOptions, "", also=further))
        if is_train:
            problems += section_problems(opt["train"], cls.train_options, "train")
        if opt.get("val") is not None:
            problems += section_problems(opt["val"], cls.val_options, "val")
        yield from problems
        if is_train and not any(problem.startswith("train.") for problem in problems):
            yield from impossible_optimizers(opt["train"])

    def read_options(self) -> None:
        """Make dataclasses of the sections `train` and `val`."""
        self.val = read_section(self.val_options, self.opt.get("val") or {}, "val")
        # Of the section of a training nothing is read in a test.
        self.train = read_section(self.train_options, self.opt["train"], "train") if self.is_train else TrainerOptions()
        self.memory_format = torch.channels_last if self.train.channels_last else torch.contiguous_format
        self.losses: dict[str, Tensor] = {}
        # Of all random draws of the training; seeded anew in every iteration, so that it has no state to be saved.
        self.generator = torch.Generator()

    def autocast(self) -> contextlib.AbstractContextManager:
        """Around what runs in bf16, where the yml says so."""
        if self.train.autocast == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def add_optimizer(self, name: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Optimiser of torch.optim from the section train.<name>, known to BasicSR for schedulers and resuming."""
        options = {key: value for key, value in self.opt["train"][name].items() if key != "type"}
        kind = getattr(torch.optim, self.opt["train"][name]["type"])
        # One kernel for a whole step where there is one, unless the yml chooses another implementation.
        if "fused" in inspect.signature(kind).parameters and not options.keys() & _IMPLEMENTATIONS:
            options["fused"] = True
        optimizer = kind([p for p in parameters if p.requires_grad], **options)
        self.optimizers.append(optimizer)
        return optimizer

    def synchronized(self, network: nn.Module, current_iter: int) -> contextlib.AbstractContextManager:
        """Around the network's forward: its gradients are averaged over the ranks only where a step follows."""
        if current_iter % self.train.accumulate == 0 or not hasattr(network, "no_sync"):
            return contextlib.nullcontext()
        return network.no_sync()

    def backward(self, loss: Tensor) -> None:
        """Gradients of loss, averaged over accumulated iterations."""
        (loss / self.train.accumulate).backward()

    def step(self, optimizer: torch.optim.Optimizer, current_iter: int) -> None:
        """Clip, step and reset where accumulation is complete."""
        if current_iter % self.train.accumulate:
            return
        if self.train.clip_grad_norm:
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], self.train.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def update_ema(self, average: nn.Module, trained: nn.Module, current_iter: int) -> None:
        """average <- decay * average + (1 - decay) * trained, with a decay that grows to the one of the yml."""
        decay = min(self.train.ema_decay, (1 + current_iter) / (10 + current_iter))
        torch._foreach_lerp_(list(average.parameters()), list(trained.parameters()), 1 - decay)

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """BasicSR's first call in an iteration."""
        super().update_learning_rate(current_iter, warmup_iter)
        self.generator.manual_seed(derive_seed("step", self.opt["manual_seed"], self.opt["rank"], current_iter))

    # As `install_pipeline` has it for every model: ours keep these promises under BasicSR's own train.py too.

    def save_network(
        self, net: nn.Module | list[nn.Module], net_label: str, current_iter: int, param_key: str | list[str] = "params"
    ) -> None:
        """Save networks as one file, whole or not at all."""
        checkpoints.save_network(self, net, net_label, current_iter, param_key)

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Save what this training needs besides its networks to continue exactly."""
        checkpoints.save_training_state(self, epoch, current_iter)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Continue from a state."""
        checkpoints.resume_training(self, resume_state)

    def training_state(self, current_iter: int) -> dict[str, Any]:
        """What this rank needs besides networks, optimisers and schedulers to go on exactly after `current_iter`.

        Returns:
            Tensors and plain containers, for `load_training_state`. 'gradients': of every parameter of every
            optimiser, where some are accumulated for a step to come.
        """
        gradients = [[parameter.grad for parameter in _parameters(optimizer)] for optimizer in self.optimizers]
        if all(gradient is None for part in gradients for gradient in part):
            return {}
        return {"gradients": gradients}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `training_state` returned."""
        for optimizer, gradients in zip(self.optimizers, state.get("gradients", ()), strict=False):
            for parameter, gradient in zip(_parameters(optimizer), gradients, strict=True):
                parameter.grad = gradient if gradient is None else gradient.to(parameter)

    def load_into(self, net: nn.Module, path: str, param_key: str | None = None) -> None:
        """Load a checkpoint strictly; without param_key its averaged weights, where it has them. Executes nothing."""
        load_strictly(net, read_checkpoint(path, param_key).state, path)
        get_root_logger().info(f"Loaded {type(net).__name__} from {path} [{param_key or 'params_ema, else params'}]")

    def get_current_log(self) -> Mapping[str, float]:
        # Only here, where BasicSR prints, are losses averaged over the ranks and fetched from the device.
        return self.reduce_loss_dict({name: value.detach().float() for name, value in self.losses.items()})


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def world_size() -> int:
    """Number of processes that train together."""
    return get_dist_info()[1]


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over all ranks, in place."""
    if world_size() > 1:
        torch.distributed.all_reduce(x)
    return x


def broadcast_from_main(tensors: Sequence[Tensor]) -> None:
    """Give every rank the values of rank 0, in place."""
    if world_size() > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)
