"""What the models of both stages share: precision and compilation, steps of the optimisers, loading of networks."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor, nn

from iter_arch.checkpoint import load_strictly, read_checkpoint


class TrainingMixin(BaseModel):
    """Switches of the yml's `train` section, all of them optional.

    autocast: none (default) or bf16; losses, softmax and quantiser distances stay float32.
    compile: torch.compile the trained networks; default false.
    channels_last: memory format of the networks; default false.
    accumulate: iterations whose gradients are averaged before the optimisers step; default 1.
    clip_grad_norm: largest norm of an optimiser's gradient; default none.
    ema_decay: decay of the averaged weights that are validated and shipped; default 0, no average.
    """

    def setup_switches(self) -> None:
        options = self.opt.get("train") or {}
        autocast = options.get("autocast") or "none"
        if autocast not in ("none", "bf16"):
            raise ValueError(f"train.autocast={autocast!r} must be none or bf16")
        enabled = autocast == "bf16"
        self.autocast = partial(torch.autocast, self.device.type, torch.bfloat16) if enabled else contextlib.nullcontext
        self.use_compile = bool(options.get("compile", False))
        self.memory_format = torch.channels_last if options.get("channels_last") else torch.contiguous_format
        self.accumulate = options.get("accumulate", 1)
        if not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise ValueError(f"train.accumulate={self.accumulate!r} must be an integer >= 1")
        self.clip_grad_norm = options.get("clip_grad_norm")
        self.ema_decay = options.get("ema_decay", 0)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay={self.ema_decay} must be in [0, 1)")
        self.losses: dict[str, Tensor] = {}

    def add_optimizer(self, name: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Optimiser of torch.optim from the section train.<name>, known to BasicSR for schedulers and resuming."""
        options = dict(self.opt["train"][name])
        kind = getattr(torch.optim, str(options.pop("type", None)), None)
        if kind is None:
            given = self.opt["train"][name].get("type")
            raise ValueError(f"train.{name}.type={given!r} must be a class of torch.optim")
        optimizer = kind([p for p in parameters if p.requires_grad], **options)
        self.optimizers.append(optimizer)
        return optimizer

    def synchronised(self, network: nn.Module, current_iter: int) -> contextlib.AbstractContextManager:
        """Around the network's forward: its gradients are averaged over the ranks only where a step follows."""
        if current_iter % self.accumulate == 0 or not hasattr(network, "no_sync"):
            return contextlib.nullcontext()
        return network.no_sync()

    def backward(self, loss: Tensor) -> None:
        """Gradients of loss, averaged over accumulated iterations."""
        (loss / self.accumulate).backward()

    def step(self, optimizer: torch.optim.Optimizer, current_iter: int) -> None:
        """Clip, step and reset where accumulation is complete."""
        if current_iter % self.accumulate:
            return
        if self.clip_grad_norm:
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], self.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def update_ema(self, average: nn.Module, trained: nn.Module, current_iter: int) -> None:
        """average <- decay * average + (1 - decay) * trained, with a decay that grows to the one of the yml."""
        decay = min(self.ema_decay, (1 + current_iter) / (10 + current_iter))
        torch._foreach_lerp_(list(average.parameters()), list(trained.parameters()), 1 - decay)

    def load_into(self, net: nn.Module, path: str, param_key: str | None = None) -> None:
        """Load a checkpoint strictly; without param_key its averaged weights, where it has them. Executes nothing."""
        load_strictly(net, read_checkpoint(path, param_key).state, path)
        get_root_logger().info(f"Loaded {type(net).__name__} from {path} [{param_key or 'params_ema, else params'}]")

    def get_current_log(self) -> Mapping[str, float]:
        # Only here, where BasicSR prints, are losses averaged over the ranks and fetched from the device.
        return self.reduce_loss_dict({name: value.detach().float() for name, value in self.losses.items()})


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
