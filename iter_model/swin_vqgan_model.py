"""Stage I: training of the Swin-VQGAN (ITER, arXiv:2312.05616, Sec. 3.1, Eq. 1)."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from torch import Tensor, nn

from basicsr_compat import register
from iter_arch.quantizer import Quantizer
from iter_arch.swin_vqgan_arch import SwinVQGAN
from iter_arch.tiling import pad_to_multiple
from iter_model.adversarial import AdversarialMixin
from iter_model.codebook import CodebookTraining
from iter_model.option_rules import crop_problems, gan_problems
from iter_model.options import SwinVQGANTrainOptions, ValOptions
from iter_model.validation import ValidationMixin


@register("model")
class SwinVQGANModel(ValidationMixin, AdversarialMixin):
    """Trains a SwinVQGAN with L1 + SSIM + LPIPS + VQ + hinge GAN; losses other than VQ only where the yml names them.

    Besides the declared sections: network_g of type SwinVQGAN; network_d, which the GAN loss needs. Checkpoints record
    whether the ground truth was sharpened ('gt_usm'), because stages II and III must see the same.
    """

    train: SwinVQGANTrainOptions
    train_options = SwinVQGANTrainOptions
    val_options = ValOptions

    @classmethod
    def option_problems(
        cls, opt: Mapping[str, Any], is_train: bool, networks: Mapping[str, nn.Module]
    ) -> Iterator[str]:
        """See `TrainingMixin`."""
        yield from super().option_problems(opt, is_train, networks)
        net = networks.get("network_g")
        if net is not None and not isinstance(net, SwinVQGAN):
            yield f"network_g.type={opt['network_g']['type']} must be SwinVQGAN for model_type SwinVQGANModel"
        elif is_train and net is not None:
            yield from crop_problems(opt, net.factor * net.window)
        if is_train and opt["train"].get("decoder_only"):
            if not opt["path"].get("pretrain_network_g"):
                yield "path.pretrain_network_g is missing: train.decoder_only trains the decoder of a finished stage I"
            if opt["train"].get("quantize_start_iter", 1) != 1:
                yield "train.quantize_start_iter needs a new codebook, train.decoder_only keeps the old one; drop one"
        if is_train:
            yield from gan_problems(opt)

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__(opt)
        self.read_options()
        self.build_metrics()
        net = build_network(self.options.network_g).to(memory_format=self.memory_format)
        if self.options.paths.pretrain_network_g:
            self.load_into(net, self.options.paths.pretrain_network_g, self.trained_key)
        if self.is_train and self.train.decoder_only:
            # Before it is wrapped: DistributedDataParallel waits for gradients of all that is not frozen by then.
            net.requires_grad_(False)
            net.decoder.requires_grad_(True)
        self.net_g = self.model_to_device(net)
        self.print_network(self.net_g)
        if self.is_train:
            self.init_training_settings()

    @property
    def trained_key(self) -> str | None:
        """See `TrainingMixin`. With train.decoder_only, a run starts from the weights that the tokens come from."""
        paths = self.options.paths
        if self.is_train and self.train.decoder_only and not paths.resume_state:
            return paths.param_key_g
        return super().trained_key

    def init_training_settings(self) -> None:
        """Set up the average, the losses, the codebook, the optimizers, and the schedulers; BasicSR's name for it."""
        paths = self.options.paths
        self.net_g.train()
        if self.train.ema_decay:
            self.net_g_ema = build_network(self.options.network_g).to(self.device).eval().requires_grad_(False)
            self.net_g_ema.load_state_dict(self.get_bare_model(self.net_g).state_dict())
            if paths.pretrain_network_g and (paths.resume_state or not self.train.decoder_only):
                self.load_into(self.net_g_ema, paths.pretrain_network_g)
        named = {"l_pix": self.train.pixel_opt, "l_ssim": self.train.ssim_opt, "l_percep": self.train.perceptual_opt}
        self.criteria = {name: build_loss(section).to(self.device) for name, section in named.items() if section}
        averages = [self.net_g_ema.quantizer] if self.train.ema_decay else []
        self.codebook = CodebookTraining(
            [self.quantizer, *averages],
            start_iter=None if paths.pretrain_network_g else self.train.quantize_start_iter,
            revive_freq=0 if self.train.decoder_only else self.train.revive_freq,
            generator=self.generator,
            device=self.device,
        )
        self.optimizer_g = self.add_optimizer(self.train.optim_g, self.net_g.parameters())
        self.init_discriminator()
        self.setup_schedulers()
        if self.train.compile:
            self.net_g.compile()
            if self.net_d is not None:
                self.net_d.compile()

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer of the trained network."""
        return self.get_bare_model(self.net_g).quantizer

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """data: 'gt' (b, 3, H, W) RGB in [0, 1], which is reconstructed; a set of single images has 'lq' instead."""
        image = data["gt"] if "gt" in data else data["lq"]
        self.gt = image.to(self.device, memory_format=self.memory_format, non_blocking=True)

    def optimize_parameters(self, current_iter: int) -> None:
        """One iteration on self.gt (b, 3, H, W): a step of net_g, and of net_d where used; updates the average."""
        if current_iter == self.codebook.start_iter:
            self._start_codebook()
        quantize = current_iter >= self.train.quantize_start_iter
        net_d = self.frozen_discriminator(current_iter)
        # net_d too: a forward here that announces an exchange would make the one below exchange its gradients.
        with self.autocast(), self.synchronized(self.net_g, current_iter), self.synchronized(net_d, current_iter):
            output = self.net_g(self.gt, quantize=quantize)
            scores = None if net_d is None else net_d(output.image)
        image = output.image.float()
        losses = {name: criterion(image, self.gt) for name, criterion in self.criteria.items()}
        losses["l_vq"] = self.train.vq_weight * output.loss
        if scores is not None:
            losses["l_gan"] = self.cri_gan(scores.float(), True, is_disc=False)
        self.backward(*losses.values())
        self.step(self.optimizer_g, current_iter)
        if net_d is not None:
            losses |= self.optimize_discriminator(net_d, output.image.detach(), current_iter)
        if self.train.ema_decay:
            self.update_ema(self.net_g_ema, self.get_bare_model(self.net_g), current_iter)
        self.codebook.remember(output.latent)
        if quantize:
            self.codebook.count(output.tokens, current_iter)
        self.losses = losses

    @torch.no_grad()
    def _start_codebook(self) -> None:
        if not self.codebook.recent_latents:
            with self.autocast():
                self.codebook.remember(self.get_bare_model(self.net_g).latent(self.gt))
        self.codebook.start()

    def get_current_log(self) -> Mapping[str, float]:
        """See `TrainingMixin`; adds how much of the codebook is used."""
        self.losses |= self.codebook.use()
        return super().get_current_log()

    @torch.no_grad()
    def test(self) -> None:
        """self.gt (b, 3, H, W), any size -> self.output of this shape in [0, 1], by the averaged weights."""
        net = self.net_g_ema if hasattr(self, "net_g_ema") else self.get_bare_model(self.net_g)
        was_training = net.training
        net.eval()
        height, width = self.gt.shape[-2:]
        padded = pad_to_multiple(self.gt, net.factor * net.window)
        self.output = net(padded).image[..., :height, :width]
        net.train(was_training)

    def draw(self) -> Tensor:
        """gt and output side by side, (3, H, 2 W) in [0, 1]."""
        return torch.cat([self.gt, self.output], dim=3)[0]

    def save(self, epoch: int, current_iter: int | str) -> None:
        """Save networks and state. current_iter: -1 at the end of the run, or 'best'."""
        self.save_net_g(current_iter, gt_usm=self.training_set.gt_usm)
        if self.net_d is not None:
            self.save_network(self.net_d, "net_d", current_iter)
        self.save_training_state(epoch, current_iter)

    def training_state(self, current_iter: int) -> dict[str, Any]:
        """See `TrainingMixin`."""
        return super().training_state(current_iter) | self.codebook.state_dict(current_iter)

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """See `TrainingMixin`."""
        super().load_training_state(state)
        self.codebook.load_state_dict(state)
