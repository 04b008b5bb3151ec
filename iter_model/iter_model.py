"""Stages II and III: distortion removal, token refinement and evaluation (ITER, arXiv:2312.05616, Algorithm 1)."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from basicsr.losses import build_loss
from basicsr.utils import get_root_logger
from torch import Tensor

from basicsr_compat import register
from iter_arch.pretrained.checkpoint import load_strictly, read_weights
from iter_arch.schedule import mask_ratio
from iter_arch.tokenizer import Tokenizer
from iter_model.frozen import warn_of_other_ground_truth
from iter_model.options import ITERTrainOptions
from iter_model.token_networks import Predictions, TrainedNetworks, init_from_codebook
from iter_model.whole_iter import WholeITERMixin


@register("model")
class ITERModel(WholeITERMixin):
    """Trains E_l, phi_r, and phi_e in the token space of a frozen Swin-VQGAN, and validates the whole ITER.

    Besides the declared sections it needs network_g of type ITER, and reads from the section path:

    pretrain_network_vqgan: a checkpoint of stage I, whose params_ema are taken where it has some, or a whole ITER. A
        training run needs it unless the yml's pretrain_network_g has a VQGAN. To resume under BasicSR's own train.py,
        it is always needed.
    pretrain_network_g: a whole ITER, which may be of the authors' release, or a checkpoint of this model.
    """

    train: ITERTrainOptions
    train_options = ITERTrainOptions
    trained_part = TrainedNetworks

    # Known to the check of the options besides those of network_g.
    path_keys = ("pretrain_network_vqgan",)

    @staticmethod
    def tokenizer_problems(opt: Mapping[str, Any], tokenizer: Tokenizer) -> Iterator[str]:
        """See `WholeITERMixin`."""
        if opt["train"].get("codebook_init") and not hasattr(tokenizer, "quantizer"):
            kind = type(tokenizer).__name__
            yield f"train.codebook_init=True needs codes, and a {kind} has no quantizer; leave it out"

    @staticmethod
    def missing_weights(path: Mapping[str, Any]) -> Iterator[str]:
        """See `WholeITERMixin`."""
        if not path.get("pretrain_network_vqgan") and not path.get("pretrain_network_g"):
            yield (
                "path.pretrain_network_vqgan is missing: stages II and III need a Swin-VQGAN; train one with "
                "`basicsr train -opt options/train_swin_vqgan.yml` and name its checkpoint here"
            )

    def load_networks(self) -> None:
        """See `WholeITERMixin`."""
        paths = self.options.paths
        if paths.pretrain_network_g:
            self._load_trained(paths.pretrain_network_g)
        if self._vqgan_source:
            self._load_vqgan(self._vqgan_source)
        if self.is_train and self.train.codebook_init and not paths.pretrain_network_g:
            init_from_codebook(self.iter, self.iter.vqgan.quantizer)

    def _load_trained(self, source: str) -> None:
        checkpoint = read_weights(source, self.trained_key)
        self.take_sampling(checkpoint, source)
        state = checkpoint.state
        whole = any(name.startswith("vqgan.") for name in state)
        if not whole and not self._vqgan_source:
            raise ValueError(self._without_vqgan(source))
        load_strictly(self.iter if whole else TrainedNetworks(self.iter), state, source)
        get_root_logger().info(f"Loaded {'ITER' if whole else 'its trained networks'} from {source}")

    @staticmethod
    def _without_vqgan(source: str) -> str:
        return (
            f"path.pretrain_network_g={source!r} holds no VQGAN: name one in path.pretrain_network_vqgan, or take "
            "the whole, iter_latest.safetensors or iter_best.safetensors of the same folder"
        )

    def _load_vqgan(self, source: str) -> None:
        state = read_weights(source).state
        part = {key.removeprefix("vqgan."): value for key, value in state.items() if key.startswith("vqgan.")}
        if not part and source == self.options.paths.started_from:
            raise ValueError(self._without_vqgan(source))
        load_strictly(self.iter.vqgan, part or state, source)
        get_root_logger().info(f"Loaded SwinVQGAN from {source}")
        if self.is_train:
            warn_of_other_ground_truth(source, self.training_set.gt_usm)

    @property
    def frozen_source(self) -> str | None:
        """See `WholeITERMixin`."""
        return self._vqgan_source or self.options.paths.pretrain_network_g

    @property
    def _vqgan_source(self) -> str | None:
        """The checkpoint of the VQGAN; None where pretrain_network_g has it."""
        return self.options.paths.pretrain_network_vqgan or self.options.paths.started_from

    def init_training_settings(self) -> None:
        """Set up the average, the losses, the pool, the optimizer, and the scheduler; BasicSR's name for it."""
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

    def draw_training_masks(self, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """Algorithm 1: for each image r ~ U(0, 1], and ceil(gamma(r) n) of its n positions are masked at random.

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
        m_t, alpha, uniform = (x.to(self.device, non_blocking=True) for x in (m_t, alpha, uniform))
        return m_t, alpha, uniform

    def optimize_parameters(self, current_iter: int) -> None:
        """One iteration of Algorithm 1 on self.lq (b, 3, H/s, W/s) and self.gt (b, 3, H, W); updates the average."""
        with self.autocast(), self.synchronized(self.net_g, current_iter):
            with torch.no_grad():
                S_h = self.iter.vqgan.encode(self.gt).tokens
            m_t, alpha, uniform = self.draw_training_masks(S_h.shape)
            predicted = self.net_g(self.lq, S_h, m_t, alpha, uniform)
        losses = self._losses(predicted, S_h)
        self.backward(*losses.values())
        self.step(self.optimizer_g, current_iter)
        if self.train.ema_decay:
            self.update_ema(self.net_g_ema, self.get_bare_model(self.net_g), current_iter)
        self.losses = losses | self._accuracies(predicted, S_h)

    def _losses(self, predicted: Predictions, S_h: Tensor) -> dict[str, Tensor]:
        """Eq. 2, 4, and 9, () each; S_h (b, h, w) int64. L_e's label is equality with S_h: docs/decisions.md."""
        good_l, good_r = predicted.S_l == S_h, predicted.S_r == S_h
        return {
            "l_dist": self.criteria["dist"](predicted.lq_logits, S_h),
            "l_r": self.criteria["refiner"](predicted.refiner_logits, S_h),
            "l_e": self.criteria["evaluator"](predicted.drawn_logits, good_r, predicted.evaluator_logits, good_l),
        }

    def _accuracies(self, predicted: Predictions, S_h: Tensor) -> dict[str, Tensor]:
        """Shares () of tokens that E_l and phi_r predict correctly, and of those of S_l that phi_e judges correctly."""
        good_l = predicted.S_l == S_h
        evaluated = predicted.evaluator_logits.detach().argmax(1) == 1
        return {
            "acc_l": good_l.float().mean(),
            "acc_r": (predicted.refiner_logits.detach().argmax(1) == S_h).float().mean(),
            "acc_e": (evaluated == good_l).float().mean(),
        }
