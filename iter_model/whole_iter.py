"""What stages II to IV share: pairs of LQ and GT for a whole ITER, its validation, and its checkpoints."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from basicsr.archs import build_network
from torch import Tensor, nn

from basicsr_compat.schema import format_value
from iter_arch.color import match_color
from iter_arch.iter_arch import ITER
from iter_arch.pretrained.checkpoint import Checkpoint, sampling_of, save_pretrained
from iter_arch.sampling import SamplingConfig
from iter_arch.tokenizer import Tokenizer
from iter_data import PairPool, batch_to_pair
from iter_model.frozen import frozen_checksum, refuse_others
from iter_model.option_rules import crop_problems, ground_truth_problems, pool_problems
from iter_model.options import ITERValOptions, PairTrainOptions
from iter_model.process import Step, picture_of_process
from iter_model.training import TrainingMixin
from iter_model.validation import ValidationMixin


class WholeITERMixin(ValidationMixin, TrainingMixin):
    """A model that trains a part of an ITER and validates all of it.

    The model provides `tokenizer_problems`, `missing_weights`, `load_networks`, `frozen_source`,
    `init_training_settings`, and `optimize_parameters`.

    iter: the ITER.
    net_g: the trained part of it, as one module.
    pool: earlier pairs, in a training run with train.queue_size; else None.
    """

    train: PairTrainOptions
    val: ITERValOptions
    val_options = ITERValOptions
    trained_part: type[nn.Module]
    pool: PairPool | None = None
    frozen: dict[str, str]

    @classmethod
    def option_problems(
        cls, opt: Mapping[str, Any], is_train: bool, networks: Mapping[str, nn.Module]
    ) -> Iterator[str]:
        """See `TrainingMixin`."""
        problems = list(super().option_problems(opt, is_train, networks))
        yield from problems
        if not any(problem.startswith("val.") for problem in problems):
            yield from ground_truth_problems(opt)
        net = networks.get("network_g")
        if net is not None and not isinstance(net, ITER):
            yield f"network_g.type={opt['network_g']['type']} must be ITER for model_type {cls.__name__}"
        elif net is not None:
            if opt.get("scale") != net.scale:
                scale = format_value(opt.get("scale"))
                yield f"network_g.scale={net.scale} must be the scale of the data, scale={scale}"
            tile = (opt.get("val") or {}).get("tile")
            if isinstance(tile, int) and tile < net.multiple:
                yield f"val.tile={tile} must be at least {net.multiple}, the LQ pixels of a window of tokens"
        if is_train:
            if isinstance(net, ITER):
                yield from crop_problems(opt, net.multiple * net.scale)
                yield from cls.tokenizer_problems(opt, net.vqgan)
            yield from pool_problems(opt)
            yield from cls.missing_weights(opt["path"])

    @staticmethod
    def tokenizer_problems(opt: Mapping[str, Any], tokenizer: Tokenizer) -> Iterator[str]:
        """Say what the training needs of a tokenizer beyond `iter_arch.tokenizer.Tokenizer`, and does not find."""
        raise NotImplementedError

    @staticmethod
    def missing_weights(path: Mapping[str, Any]) -> Iterator[str]:
        """Say which weights that the training needs are not named in the yml's section `path`."""
        raise NotImplementedError

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__(opt)
        self.read_options()
        self.build_metrics()
        self.iter = build_network(self.options.network_g)
        for problem in (*self.missing_weights(opt["path"]), *pool_problems(opt)) if self.is_train else ():
            raise ValueError(problem)
        self.load_networks()
        section = self.val.sampling
        self.sampling = self.iter.sampling if section is None else SamplingConfig(**section)
        self.iter.to(self.device, memory_format=self.memory_format)
        self.iter.vqgan.requires_grad_(False)
        self.iter.eval()
        self.net_g = self.trained_part(self.iter)
        if self.is_train:
            self.init_training_settings()
        self.print_network(self.net_g)

    def load_networks(self) -> None:
        """Fill `iter` from the files of the section `path`."""
        raise NotImplementedError

    def take_sampling(self, checkpoint: Checkpoint, source: str) -> None:
        """Sample as the loaded weights are tuned for, unless network_g says how."""
        sampling = sampling_of(checkpoint, source)
        if sampling is not None and not self.options.network_g.get("sampling"):
            self.iter.sampling = sampling

    # ------------------------------------------------------------------------------------------- pairs

    @property
    def frozen_source(self) -> str | None:
        """The file of the weights that this training does not change."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Make what `feed_data` needs, and describe the frozen weights, which must be the same after a resume."""
        self.pool = PairPool(self.train.queue_size) if self.train.queue_size else None
        self.frozen = {
            "path": str(self.frozen_source),
            "checksum": frozen_checksum(self.iter, self.get_bare_model(self.net_g)),
        }

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """data: 'lq' (b, 3, H/s, W/s) and maybe 'gt' (b, 3, H, W), or 'gt' and what the degradation drew for it.

        All images are float32 RGB in [0, 1].
        """
        if "lq" in data:
            self.lq = data["lq"].to(self.device, non_blocking=True)
            self.gt = data["gt"].to(self.device, non_blocking=True) if "gt" in data else None
            return
        pair = batch_to_pair(
            data,
            device=self.device,
            scale=self.iter.scale,
            degradation=self.training_set.degradation,
            generator=self.generator,
            crop_size=self.training_set.crop_size,
        )
        self.lq, self.gt = pair if self.pool is None else self.pool.exchange(pair, self.generator)

    # ------------------------------------------------------------------------------------------- validation

    @torch.no_grad()
    def test(self) -> None:
        """self.lq (b, 3, h, w), any size -> self.output (b, 3, s h, s w) in [0, 1], by the averaged weights."""
        net = getattr(self, "iter_ema", self.iter)
        trained = self.get_bare_model(self.net_g)
        was_training = trained.training
        net.eval()
        self.steps: list[Step] = []
        with self.autocast():
            restored = net.restore(
                self.lq,
                config=self.sampling,
                seed=self.val.seed,
                on_step=lambda t, tokens, mask: self.steps.append((t, tokens, mask)),
                tile=self.val.tile,
            )
        self.output = match_color(restored.image.float(), self.lq, self.val.color_correction, self.val.color_levels)
        trained.train(was_training)

    def draw(self) -> Tensor:
        """The process of the last `test`, (3, H, n W); see `picture_of_process`."""
        return picture_of_process(self.iter.vqgan, self.lq, self.steps, self.output, self.gt)

    # ------------------------------------------------------------------------------------------- saving and resuming

    def save(self, epoch: int, current_iter: int | str) -> None:
        """Save networks and state. Where `current_iter` is -1 (the end) or 'best', save a whole ITER too."""
        self.save_net_g(current_iter)
        self.save_training_state(epoch, current_iter)
        if current_iter in (-1, "best") and self.options.rank == 0:
            # One file with all four networks, for `upscale` and `load_pretrained`.
            net = getattr(self, "iter_ema", self.iter)
            label = "latest" if current_iter == -1 else "best"
            save_pretrained(net, f"{self.options.paths.models}/iter_{label}.safetensors")

    def training_state(self, current_iter: int) -> dict[str, Any]:
        """See `TrainingMixin`."""
        state = super().training_state(current_iter) | {"frozen": self.frozen, "sampling": asdict(self.iter.sampling)}
        return state if self.pool is None else state | {"pool": self.pool.state_dict()}

    def _resume_sampling(self, section: Mapping[str, Any] | None) -> None:
        """Sample as before, unless the yml says how: the checkpoint of a resumed run does not know."""
        if section is None or self.options.network_g.get("sampling"):
            return
        sampling = SamplingConfig(**section)
        for net in (self.iter, getattr(self, "iter_ema", self.iter)):
            net.sampling = sampling
        if self.val.sampling is None:
            self.sampling = sampling

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """See `TrainingMixin`. Raises ValueError where the frozen weights differ from those of the state."""
        refuse_others(self.frozen, state.get("frozen"))
        super().load_training_state(state)
        self._resume_sampling(state.get("sampling"))
        # A pool whose size was changed in the yml starts empty.
        if self.pool is not None and state.get("pool", {}).get("size") == self.pool.size:
            self.pool.load_state_dict(state["pool"], self.device)
