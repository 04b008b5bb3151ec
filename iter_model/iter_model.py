"""Stages II and III: distortion removal, token refinement and evaluation (ITER, arXiv:2312.05616, Algorithm 1)."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from basicsr_compat import register
from basicsr_compat.schema import format_value
from iter_arch.color import match_color
from iter_arch.iter_arch import ITER
from iter_arch.pretrained.checkpoint import Checkpoint, load_strictly, read_weights, sampling_of, save_pretrained
from iter_arch.sampling import SamplingConfig
from iter_arch.schedule import mask_ratio
from iter_data import PairPool, batch_to_pair
from iter_model.frozen import frozen_checksum, refuse_others, warn_of_other_ground_truth
from iter_model.option_rules import crop_problems, ground_truth_problems, pool_problems
from iter_model.options import ITERTrainOptions, ITERValOptions
from iter_model.process import picture_of_process
from iter_model.token_networks import Predictions, TrainedNetworks, init_from_codebook
from iter_model.training import TrainingMixin
from iter_model.validation import ValidationMixin


@register("model")
class ITERModel(ValidationMixin, TrainingMixin):
    """Trains E_l, phi_r and phi_e in the token space of a frozen Swin-VQGAN; validates the whole of ITER.

    Besides the declared sections: network_g of type ITER; path.pretrain_network_vqgan (a stage-I checkpoint, whose
    params_ema are taken where there are some, or a whole ITER; needed in training unless pretrain_network_g has a
    VQGAN, and even then to resume); path.pretrain_network_g (a whole ITER, of the authors' release too, or a checkpoint
    of this model).
    """

    train_options = ITERTrainOptions
    val_options = ITERValOptions
    trained_part: type[nn.Module] = TrainedNetworks

    # Known to the check of the options besides those of network_g.
    path_keys = ("pretrain_network_vqgan",)

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
    def tokenizer_problems(opt: Mapping[str, Any], tokenizer: nn.Module) -> Iterator[str]:
        """Say what the training needs of a tokenizer beyond `iter_arch.tokenizer.Tokenizer`, and does not find."""
        if opt["train"].get("codebook_init") and not hasattr(tokenizer, "quantizer"):
            kind = type(tokenizer).__name__
            yield f"train.codebook_init=True needs codes, and a {kind} has no quantizer; leave it out"

    @staticmethod
    def missing_weights(path: Mapping[str, Any]) -> Iterator[str]:
        """Say which weights that the training needs are not named in the yml's section `path`."""
        if not path.get("pretrain_network_vqgan") and not path.get("pretrain_network_g"):
            yield (
                "path.pretrain_network_vqgan is missing: stages II and III need a Swin-VQGAN; train one with "
                "`basicsr train -opt options/train_swin_vqgan.yml` and name its checkpoint here"
            )

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
        paths = self.options.paths
        if paths.pretrain_network_g:
            self._load_trained(paths.pretrain_network_g)
        if paths.pretrain_network_vqgan:
            self._load_vqgan(paths.pretrain_network_vqgan)
        if self.is_train and self.train.codebook_init and not paths.pretrain_network_g:
            init_from_codebook(self.iter)

    def _load_trained(self, source: str) -> None:
        checkpoint = read_weights(source, self.trained_key)
        self.take_sampling(checkpoint, source)
        state = checkpoint.state
        whole = any(name.startswith("vqgan.") for name in state)
        if not whole and not self.options.paths.pretrain_network_vqgan:
            raise ValueError(
                f"path.pretrain_network_g={source!r} holds no VQGAN: name one in path.pretrain_network_vqgan, or take "
                "the whole, iter_latest.safetensors or iter_best.safetensors of the same folder"
            )
        load_strictly(self.iter if whole else TrainedNetworks(self.iter), state, source)
        get_root_logger().info(f"Loaded {'ITER' if whole else 'its trained networks'} from {source}")

    def take_sampling(self, checkpoint: Checkpoint, source: str) -> None:
        """Sample as the weights that are loaded are tuned for, unless network_g says how."""
        sampling = sampling_of(checkpoint, source)
        if sampling is not None and not self.options.network_g.get("sampling"):
            self.iter.sampling = sampling

    def _load_vqgan(self, source: str) -> None:
        state = read_weights(source).state
        part = {key.removeprefix("vqgan."): value for key, value in state.items() if key.startswith("vqgan.")}
        load_strictly(self.iter.vqgan, part or state, source)
        get_root_logger().info(f"Loaded SwinVQGAN from {source}")
        if self.is_train:
            warn_of_other_ground_truth(source, self.options.training_set.gt_usm)

    @property
    def frozen_source(self) -> str:
        """The file of the weights that this training does not change."""
        paths = self.options.paths
        return paths.pretrain_network_vqgan or paths.pretrain_network_g

    def init_training_settings(self) -> None:
        """Average, losses, pool, optimizer and scheduler; BasicSR's name for it."""
        # The format of the fastest convs; the trained networks' GroupNorm has a slow backward in it.
        self.iter.vqgan.to(memory_format=torch.channels_last)
        self.net_g = self.model_to_device(self.net_g)
        if self.train.ema_decay:
            # After DDP gave every rank the weights of rank 0; the frozen VQGAN is shared.
            self.iter_ema = copy.deepcopy(self.iter, {id(self.iter.vqgan): self.iter.vqgan}).requires_grad_(False)
            self.net_g_ema = TrainedNetworks(self.iter_ema)
            if self.options.paths.pretrain_network_g:
                self._load_average(self.options.paths.pretrain_network_g)
        self.net_g.train()
        named = {"dist": self.train.dist_opt, "refiner": self.train.refiner_opt, "evaluator": self.train.evaluator_opt}
        self.criteria = {name: build_loss(section).to(self.device) for name, section in named.items()}
        self.prepare_data()
        self.optimizer_g = self.add_optimizer(self.train.optim_g, self.net_g.parameters())
        self.setup_schedulers()
        if self.train.compile:
            self.net_g.compile()
            getattr(self.iter.vqgan, "encoder", self.iter.vqgan).compile()

    def _load_average(self, source: str) -> None:
        state = read_weights(source).state
        trained = {key: value for key, value in state.items() if not key.startswith("vqgan.")}
        load_strictly(self.net_g_ema, trained, source)

    def prepare_data(self) -> None:
        """What `feed_data` makes pairs with, and what must be there again where the training resumes."""
        self.pool = PairPool(self.train.queue_size) if self.train.queue_size else None
        self.frozen = {
            "path": str(self.frozen_source),
            "checksum": frozen_checksum(self.iter, self.get_bare_model(self.net_g)),
        }

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """data: 'lq' (b, 3, H/s, W/s) and maybe 'gt' (b, 3, H, W), or 'gt' and what the degradation drew for it."""
        if "lq" in data:
            self.lq = data["lq"].to(self.device, non_blocking=True)
            self.gt = data["gt"].to(self.device, non_blocking=True) if "gt" in data else None
            return
        pair = batch_to_pair(
            data,
            device=self.device,
            scale=self.iter.scale,
            degradation=self.options.training_set.degradation,
            generator=self.generator,
            crop_size=self.options.training_set.crop_size,
        )
        self.lq, self.gt = pair if self.pool is None else self.pool.exchange(pair, self.generator)

    def draw_training_masks(self, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """Algorithm 1: r ~ U(0, 1] an image, ceil(gamma(r) n) of its n positions masked at random.

        Args:
            shape: (b, h, w).

        Returns:
            m_t (b, h, w) bool, False = masked; alpha (b,) ~ U[0, 1); uniform (b, h, w) ~ U[0, 1).
        """
        b, h, w = shape
        r = 1 - torch.rand(b, generator=self.generator)
        masked = torch.ceil(mask_ratio(self.train.mask_schedule, r.double()) * h * w - 1e-6)
        rank = torch.rand(b, h * w, generator=self.generator).argsort(1).argsort(1)
        m_t = (rank >= masked[:, None]).view(b, h, w)
        alpha = torch.rand(b, generator=self.generator)
        uniform = torch.rand(b, h, w, generator=self.generator)
        return tuple(x.to(self.device, non_blocking=True) for x in (m_t, alpha, uniform))

    def optimize_parameters(self, current_iter: int) -> None:
        """One iteration of Algorithm 1 on self.lq (b, 3, H/s, W/s) and self.gt (b, 3, H, W), and of the average."""
        with self.autocast(), self.synchronized(self.net_g, current_iter):
            with torch.no_grad():
                S_h = self.iter.vqgan.encode(self.gt).tokens
            m_t, alpha, uniform = self.draw_training_masks(S_h.shape)
            predicted = self.net_g(self.lq, S_h, m_t, alpha, uniform)
        losses = self._losses(predicted, S_h)
        self.backward(sum(losses.values()))
        self.step(self.optimizer_g, current_iter)
        if self.train.ema_decay:
            self.update_ema(self.net_g_ema, self.get_bare_model(self.net_g), current_iter)
        self.losses = losses | self._accuracies(predicted, S_h)

    def _losses(self, predicted: Predictions, S_h: Tensor) -> dict[str, Tensor]:
        """Eq. 2, 4 and 9, () each; S_h (b, h, w). L_e's label is equality with S_h: docs/decisions.md."""
        good_l, good_r = predicted.S_l == S_h, predicted.S_r == S_h
        return {
            "l_dist": self.criteria["dist"](predicted.lq_logits, S_h),
            "l_r": self.criteria["refiner"](predicted.refiner_logits, S_h),
            "l_e": self.criteria["evaluator"](predicted.drawn_logits, good_r, predicted.evaluator_logits, good_l),
        }

    def _accuracies(self, predicted: Predictions, S_h: Tensor) -> dict[str, Tensor]:
        """Shares () of tokens that E_l and phi_r get right, and of those of S_l that phi_e evaluates rightly."""
        good_l = predicted.S_l == S_h
        evaluated = predicted.evaluator_logits.detach().argmax(1) == 1
        return {
            "acc_l": good_l.float().mean(),
            "acc_r": (predicted.refiner_logits.detach().argmax(1) == S_h).float().mean(),
            "acc_e": (evaluated == good_l).float().mean(),
        }

    @torch.no_grad()
    def test(self) -> None:
        """self.lq (b, 3, h, w), any size -> self.output (b, 3, s h, s w) in [0, 1], by the averaged weights."""
        net = getattr(self, "iter_ema", self.iter)
        trained = self.get_bare_model(self.net_g)
        was_training = trained.training
        net.eval()
        self.steps: list[tuple[int, Tensor, Tensor]] = []
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

    def save(self, epoch: int, current_iter: int | str) -> None:
        """Networks and state of an iteration; -1: the outcome; 'best': net_g. The last two as one whole ITER too."""
        self.save_net_g(current_iter)
        self.save_training_state(epoch, current_iter)
        if current_iter in (-1, "best") and self.options.rank == 0:
            # One file with all four networks, for `upscale` and `load_pretrained`.
            net = getattr(self, "iter_ema", self.iter)
            label = "latest" if current_iter == -1 else "best"
            save_pretrained(net, f"{self.options.paths.models}/iter_{label}.safetensors")

    def training_state(self, current_iter: int) -> dict[str, Any]:
        """See `TrainingMixin`."""
        state = super().training_state(current_iter) | {"frozen": self.frozen}
        return state if self.pool is None else state | {"pool": self.pool.state_dict()}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """See `TrainingMixin`. Raises ValueError where the frozen weights are others than the state's."""
        refuse_others(self.frozen, state.get("frozen"))
        super().load_training_state(state)
        # A pool of another size, in the yml since then, fills anew.
        if self.pool is not None and state.get("pool", {}).get("size") == self.pool.size:
            self.pool.load_state_dict(state["pool"], self.device)
