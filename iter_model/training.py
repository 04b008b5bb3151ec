"""What all models share: options, precision, steps of the optimizers, averaged weights, saving, and resuming.

It works in BasicSR's own train.py and in `basicsr train` alike.
"""

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from basicsr_compat.pipeline import checkpoints
from basicsr_compat.pipeline.options import how_to_use_all_gpus
from basicsr_compat.pipeline.randomness import derive_seed
from basicsr_compat.pipeline.sections import Network
from basicsr_compat.schema import section_problems
from iter_arch.pretrained.checkpoint import load_strictly, read_weights
from iter_model.option_rules import impossible_optimizers
from iter_model.options import (
    ModelOptions,
    RunOptions,
    Section,
    TrainingSet,
    TrainOptions,
    ValOptions,
    read_model_options,
)

_IMPLEMENTATIONS = {"fused", "foreach", "differentiable", "capturable"}


class TrainingMixin(BaseModel):
    """A model that declares the options of its yml in its class; nothing else is read, and nothing else is accepted.

    train_options, val_options: the dataclasses of the sections `train` and `val`.
    further_networks: sections of networks besides network_g.

    Objects have these attributes, besides BasicSR's:

    options: everything that the model reads from the yml.
    train, val: the sections, of the dataclasses above; in a test `train` has only what `TrainerOptions` has.
    training_set: the section datasets.train; not set in a test.
    losses: by name, the losses () of the last iteration, for the log.
    generator: for all random draws of the training run. It is seeded anew in every iteration, so it has no state to
        save.
    """

    train_options: type[TrainOptions]
    val_options: type[ValOptions]
    further_networks: tuple[str, ...] = ()

    options: ModelOptions[Any, Any]
    train: TrainOptions
    val: ValOptions
    training_set: TrainingSet
    # BasicSR's own
    opt: dict[str, Any]
    is_train: bool
    device: torch.device
    optimizers: list[torch.optim.Optimizer]

    @classmethod
    def option_problems(
        cls, opt: Mapping[str, Any], is_train: bool, networks: Mapping[str, nn.Module]
    ) -> Iterator[str]:
        """Say what is wrong with the options of a run, one line per problem.

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
        """Set `options` and the attributes that depend on it; completes what only BasicSR's commands set in `opt`."""
        self.options = read_model_options(self.opt, self.train_options, self.val_options)
        self.train, self.val = self.options.train, self.options.val
        if self.options.training_set is not None:
            self.training_set = self.options.training_set
        self.opt |= {
            "manual_seed": self.options.manual_seed,
            "rank": self.options.rank,
            "world_size": self.options.world_size,
        }
        self.memory_format = torch.channels_last if self.train.channels_last else torch.contiguous_format
        self.losses: dict[str, Tensor] = {}
        self.generator = torch.Generator()
        # An average that starts from random weights should forget them soon.
        self.ema_warms_up = self.options.paths.pretrain_network_g is None

    # ------------------------------------------------------------------------------------------- networks

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Move a network, and wrap it where several processes train it.

        Where one process has several GPUs, BasicSR uses DataParallel, which gathers losses () into a vector. This uses
        one of the GPUs instead, and logs how to use all.
        """
        net = net.to(self.device)
        if self.opt["dist"]:
            ids = [torch.cuda.current_device()] if self.device.type == "cuda" else None
            unused = self.opt.get("find_unused_parameters", False)
            return nn.parallel.DistributedDataParallel(net, device_ids=ids, find_unused_parameters=unused)
        if self.opt["num_gpu"] > 1:
            get_root_logger().warning(how_to_use_all_gpus(self.opt["num_gpu"], self.is_train))
        return net

    def load_into(self, net: nn.Module, path: str, param_key: str | None = None) -> None:
        """Load a checkpoint strictly; nothing in the file is executed.

        Args:
            param_key: the state dict to load; None: params_ema, else params.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is no checkpoint, or its weights do not fit.
        """
        load_strictly(net, read_weights(path, param_key).state, path)
        get_root_logger().info(f"Loaded {type(net).__name__} from {path} [{param_key or 'params_ema, else params'}]")

    @property
    def trained_key(self) -> str | None:
        """The state dict of path.pretrain_network_g to load into net_g; None: params_ema, else params.

        A training run continues from the trained weights; a test measures their average, as validations do.
        """
        return self.options.paths.param_key_g or ("params" if self.is_train else None)

    # ------------------------------------------------------------------------------------------- steps

    def autocast(self) -> contextlib.AbstractContextManager:
        """A context for what runs in bf16 where the yml says so."""
        if self.train.autocast == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def add_optimizer(self, section: Section, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Build the optimizer of a section of the yml, and add it to `optimizers`, for schedulers and resuming."""
        options = {key: value for key, value in section.items() if key != "type"}
        kind = getattr(torch.optim, section["type"])
        # One kernel for a whole step where there is one, unless the yml chooses another implementation.
        if "fused" in inspect.signature(kind).parameters and not options.keys() & _IMPLEMENTATIONS:
            options["fused"] = True
        optimizer = kind([p for p in parameters if p.requires_grad], **options)
        self.optimizers.append(optimizer)
        return optimizer

    def synchronized(self, network: nn.Module | None, current_iter: int) -> contextlib.AbstractContextManager:
        """A context for the network's forward: its gradients are averaged over the ranks only where a step follows."""
        if current_iter % self.train.accumulate and isinstance(network, nn.parallel.DistributedDataParallel):
            return network.no_sync()
        return contextlib.nullcontext()

    def backward(self, loss: Tensor, *others: Tensor) -> None:
        """Add the gradients of the sum of losses () to the parameters, averaged over accumulated iterations."""
        (sum(others, loss) / self.train.accumulate).backward()

    def step(self, optimizer: torch.optim.Optimizer, current_iter: int) -> None:
        """Clip and apply the gradients, then reset them, in iterations that complete an accumulation."""
        if current_iter % self.train.accumulate:
            return
        if self.train.clip_grad_norm:
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], self.train.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def update_ema(self, average: nn.Module, trained: nn.Module, current_iter: int) -> None:
        """After a step of the optimizer, set average to decay * average + (1 - decay) * trained, for trained weights.

        The decay grows to that of the yml where both start from random weights.
        """
        steps, rest = divmod(current_iter, self.train.accumulate)
        if rest:
            return
        decay = self.train.ema_decay
        if self.ema_warms_up:
            decay = min(decay, (1 + steps) / (10 + steps))
        pairs = zip(average.parameters(), trained.parameters(), strict=True)
        moving = [(mean, value) for mean, value in pairs if value.requires_grad]
        torch._foreach_lerp_([mean for mean, _ in moving], [value for _, value in moving], 1 - decay)

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Set the learning rate, and seed `generator`: BasicSR calls this first in every iteration."""
        super().update_learning_rate(current_iter, warmup_iter)
        self.generator.manual_seed(derive_seed("step", self.options.manual_seed, self.options.rank, current_iter))

    def get_current_log(self) -> Mapping[str, float]:
        """The losses of the last iteration for the log, averaged over the ranks."""
        return self.reduce_loss_dict({name: value.detach().float() for name, value in self.losses.items()})

    # ------------------------------------------------------------------------------------------- saving and resuming
    # As `install_pipeline` has it for every model: ours keep these promises under BasicSR's own train.py too.

    def save_network(
        self,
        net: nn.Module | list[nn.Module],
        net_label: str,
        current_iter: int | str,
        param_key: str | list[str] = "params",
        **record: Any,
    ) -> None:
        """Save networks to one file atomically. record: further entries of the file."""
        checkpoints.save_network(self, net, net_label, current_iter, param_key, **record)

    def save_net_g(self, current_iter: int | str, **record: Any) -> None:
        """Save the trained network (`params`) and its average, where there is one (`params_ema`), to one file."""
        networks = {"params": self.net_g}
        if self.train.ema_decay:
            networks["params_ema"] = self.net_g_ema
        self.save_network([*networks.values()], "net_g", current_iter, param_key=[*networks], **record)

    def save_training_state(self, epoch: int, current_iter: int | str) -> None:
        """Save what the training run needs besides its networks to continue exactly."""
        checkpoints.save_training_state(self, epoch, current_iter)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Continue from a state."""
        checkpoints.resume_training(self, resume_state)

    def training_state(self, current_iter: int) -> dict[str, Any]:
        """What this rank needs besides networks, optimizers and schedulers to continue exactly after `current_iter`.

        Returns:
            Tensors and plain containers, for `load_training_state`. 'gradients' holds those of every parameter of
            every optimizer, where gradients are being accumulated.
        """
        state: dict[str, Any] = {"ema_warms_up": self.ema_warms_up}
        gradients = [[parameter.grad for parameter in _parameters(optimizer)] for optimizer in self.optimizers]
        if any(gradient is not None for part in gradients for gradient in part):
            state["gradients"] = gradients
        return state

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `training_state` returned."""
        self.ema_warms_up = state.get("ema_warms_up", True)
        for optimizer, gradients in zip(self.optimizers, state.get("gradients", ()), strict=False):
            for parameter, gradient in zip(_parameters(optimizer), gradients, strict=True):
                parameter.grad = gradient if gradient is None else gradient.to(parameter)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
