"""Stage IV, beyond the paper: tunes D_H on the tokens of E_l and phi_r, which do not change (ITER, arXiv:2312.05616).

Stage I trains the decoder on tokens of sharp photos. At test time it gets the tokens that E_l predicts and phi_r draws,
which it has never seen. In this stage it learns to decode those, at every fidelity.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from basicsr.losses import build_loss
from basicsr.utils import get_root_logger
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr_compat import register
from iter_arch.color import low_frequencies
from iter_arch.iter_arch import ITER
from iter_arch.pretrained.checkpoint import load_strictly, read_weights
from iter_arch.quantizer import expected_codes
from iter_arch.sampling import LogitTiles, make_generators, sample
from iter_arch.swin_vqgan_arch import SwinVQGAN, decode_codes
from iter_arch.tokenizer import Tokenizer
from iter_model.adversarial import AdversarialMixin
from iter_model.option_rules import gan_problems
from iter_model.options import DecoderTrainOptions
from iter_model.whole_iter import WholeITERMixin


def _without_decoder(tokenizer: Tokenizer) -> str:
    kind = type(tokenizer).__name__
    return f"network_g.vqgan.type={kind} must be SwinVQGAN, whose decoder DecoderModel trains"


class TrainedDecoder(nn.Module):
    """D_H alone, as the network that is trained."""

    def __init__(self, net: ITER) -> None:
        super().__init__()
        if not isinstance(net.vqgan, SwinVQGAN):
            raise ValueError(_without_decoder(net.vqgan))
        self.decoder = net.vqgan.decoder

    def forward(self, codes: Tensor) -> Tensor:
        """codes (b, d, h, w) -> image (b, 3, H, W) float32, nominally in [0, 1], not clamped."""
        return decode_codes(self.decoder, codes)


class DrawnCodes(NamedTuple):
    """codes: (b, d, h, w), for D_H to decode; lq: (b, 3, H/s, W/s), whose low frequencies the image gets."""

    codes: Tensor
    lq: Tensor


@register("model")
class DecoderModel(AdversarialMixin, WholeITERMixin):
    """Trains D_H of a whole ITER on f * expected codes + (1 - f) * codes of tokens, at a random fidelity f.

    Where val.color_correction is `wavelet`, images get the low frequencies of the LQ before the losses too, because the
    correction will replace those of the decoder anyway.

    Besides the declared sections it needs network_g of type ITER, network_d for the GAN loss, and reads from the
    section path:

    pretrain_network_iter: a whole ITER, which a training run always needs: a shipped name, iter_latest.safetensors of
        stages II and III, or the authors' release.
    pretrain_network_g: a checkpoint of this model.
    """

    train: DecoderTrainOptions
    train_options = DecoderTrainOptions
    trained_part = TrainedDecoder
    path_keys = ("pretrain_network_iter",)

    @classmethod
    def option_problems(
        cls, opt: Mapping[str, Any], is_train: bool, networks: Mapping[str, nn.Module]
    ) -> Iterator[str]:
        """See `TrainingMixin`."""
        yield from super().option_problems(opt, is_train, networks)
        if is_train:
            yield from gan_problems(opt)

    @staticmethod
    def tokenizer_problems(opt: Mapping[str, Any], tokenizer: Tokenizer) -> Iterator[str]:
        """See `WholeITERMixin`."""
        if not isinstance(tokenizer, SwinVQGAN):
            yield _without_decoder(tokenizer)

    @staticmethod
    def missing_weights(path: Mapping[str, Any]) -> Iterator[str]:
        """See `WholeITERMixin`."""
        if not path.get("pretrain_network_iter"):
            yield (
                "path.pretrain_network_iter is missing: stage IV needs a whole ITER; name iter_latest.safetensors of "
                "stages II and III here"
            )

    def load_networks(self) -> None:
        """See `WholeITERMixin`."""
        paths = self.options.paths
        source = paths.pretrain_network_iter or paths.pretrain_network_g
        if source:
            checkpoint = read_weights(source)
            self.take_sampling(checkpoint, source)
            load_strictly(self.iter, checkpoint.state, source)
            get_root_logger().info(f"Loaded ITER from {source}")
        if self.is_train and paths.pretrain_network_g:
            self.load_into(self.trained_part(self.iter), paths.pretrain_network_g, self.trained_key)

    @property
    def frozen_source(self) -> str | None:
        """See `WholeITERMixin`."""
        return self.options.paths.pretrain_network_iter

    def init_training_settings(self) -> None:
        """Set up the average, the losses, the pool, the optimizers, and the schedulers; BasicSR's name for it."""
        paths = self.options.paths
        self.iter.requires_grad_(False)
        self.net_g.requires_grad_(True).train()
        self.net_g = self.model_to_device(self.net_g)
        if self.train.ema_decay:
            vqgan = self.iter.vqgan
            frozen = (self.iter.lq_encoder, self.iter.refiner, self.iter.evaluator, vqgan.encoder, vqgan.quantizer)
            self.iter_ema = copy.deepcopy(self.iter, {id(part): part for part in frozen}).requires_grad_(False)
            self.net_g_ema = self.trained_part(self.iter_ema)
            if paths.pretrain_network_g:
                self.load_into(self.net_g_ema, paths.pretrain_network_g)
        sections = {"l_pix": self.train.pixel_opt, "l_percep": self.train.perceptual_opt}
        self.criteria = {name: build_loss(section).to(self.device) for name, section in sections.items() if section}
        self.prepare_data()
        self.optimizer_g = self.add_optimizer(self.train.optim_g, self.net_g.parameters())
        self.init_discriminator()
        self.setup_schedulers()
        if self.train.compile:
            self.net_g.compile()

    def optimize_parameters(self, current_iter: int) -> None:
        """One iteration on self.lq (b, 3, H/s, W/s), self.gt (b, 3, H, W): a step of D_H, and of net_d where used.

        Updates the average.
        """
        net_d = self.frozen_discriminator(current_iter)
        with self.autocast(), self.synchronized(self.net_g, current_iter), self.synchronized(net_d, current_iter):
            drawn = self.draw_codes()
            image = self.corrected(self.net_g(drawn.codes), drawn.lq)
            losses = {name: criterion(image, self.gt) for name, criterion in self.criteria.items()}
            if net_d is not None:
                losses["l_gan"] = self.cri_gan(net_d(image).float(), True, is_disc=False)
        self.backward(*losses.values())
        self.step(self.optimizer_g, current_iter)
        if net_d is not None:
            losses |= self.optimize_discriminator(net_d, image.detach(), current_iter)
        if self.train.ema_decay:
            self.update_ema(self.net_g_ema, self.get_bare_model(self.net_g), current_iter)
        self.losses = losses

    @torch.no_grad()
    def draw_codes(self) -> DrawnCodes:
        """Codes that D_H may get at test time for the images of the batch; for some, those of their ground truth."""
        net, options, b = self.iter, self.train, len(self.gt)
        chances = torch.rand(5, b, generator=self.generator).to(self.device)
        clean = F.interpolate(self.gt, self.lq.shape[2:], mode="bicubic", antialias=True).clamp(0, 1)
        of_gt = chances[0] < options.gt_ratio
        # A mild degradation is a mean of LQ and shrunk ground truth; in half of them, nothing of the LQ is left.
        share = torch.where(chances[1] < options.mild_ratio / 2, 1.0, chances[2])
        share = torch.where((chances[1] < options.mild_ratio) | of_gt, share, 0.0).masked_fill(of_gt, 1.0)
        lq = self.lq.lerp(clean, share[:, None, None, None])

        logits = net.lq_encoder(lq).float()
        S_l = logits.argmax(1)
        tokens = torch.where(of_gt[:, None, None], net.vqgan.encode(self.gt).tokens, S_l)
        refined = ((chances[3] < options.refined_ratio) & ~of_gt).nonzero().flatten()
        if len(refined):
            tokens[refined] = self._refine(S_l[refined])
        fidelity = chances[4] / (1 - options.expected_ratio) if options.expected_ratio < 1 else chances[4] + 1
        fidelity = fidelity.clamp_max(1).masked_fill(of_gt, 0)[:, None, None, None]
        codes = net.vqgan.quantizer.codes(tokens).lerp(expected_codes(net.vqgan.quantizer, logits), fidelity)
        return DrawnCodes(codes, lq)

    def _refine(self, S_l: Tensor) -> Tensor:
        """Tokens (b, h, w) int64 that Algorithm 2 makes of S_l (b, h, w) at a random alpha."""
        net = self.iter
        good = net.evaluator(S_l, S_l).float().softmax(1)[:, 1]
        alpha, *seeds = torch.rand(1 + len(S_l), generator=self.generator).tolist()
        everywhere = (slice(None),)

        def refine(tokens: Tensor, mask: Tensor, rows: Tensor) -> LogitTiles:
            return [(everywhere, net.refiner(tokens, mask, S_l[rows], good[rows] >= alpha))]

        def evaluate(tokens: Tensor, rows: Tensor) -> LogitTiles:
            return [(everywhere, net.evaluator(tokens, S_l[rows]))]

        config = replace(self.sampling, alpha=alpha)
        generators = make_generators([int(2**31 * seed) for seed in seeds], len(S_l), self.device)
        return sample(refine, evaluate, S_l, good >= alpha, config=config, generators=generators).tokens

    def corrected(self, image: Tensor, lq: Tensor) -> Tensor:
        """image (b, 3, H, W), with the low frequencies of lq (b, 3, H/s, W/s) where val.color_correction is wavelet."""
        if self.val.color_correction != "wavelet":
            return image
        upsampled = F.interpolate(lq, image.shape[2:], mode="bicubic").clamp(0, 1)
        return image + low_frequencies(upsampled - image, self.val.color_levels)

    def save(self, epoch: int, current_iter: int | str) -> None:
        """See `WholeITERMixin`; saves the discriminator too."""
        if self.net_d is not None:
            self.save_network(self.net_d, "net_d", current_iter)
        super().save(epoch, current_iter)
