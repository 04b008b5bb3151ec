"""The discriminator of stages I and IV: the paper's hinge GAN, or any other of BasicSR's GANLoss."""

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from torch import Tensor, nn

from basicsr_compat.schema import OptionProblems
from iter_model.option_rules import gan_problems
from iter_model.options import AdversarialTrainOptions
from iter_model.training import TrainingMixin


class AdversarialMixin(TrainingMixin):
    """A model with a discriminator. net_d: None without train.gan_opt; cri_gan, optimizer_d: with it only."""

    train: AdversarialTrainOptions
    further_networks = ("network_d",)
    net_d: nn.Module | None = None

    def init_discriminator(self) -> None:
        """Build the discriminator with its loss and its optimizer, after the optimizer of net_g.

        Raises:
            OptionProblems: train.gan_opt is there, but network_d or train.optim_d is not.
        """
        if not self.train.gan_opt:
            return
        network, optimizer = self.options.network_d, self.train.optim_d
        if network is None or optimizer is None:
            raise OptionProblems([*gan_problems(self.opt)])
        self.cri_gan = build_loss(self.train.gan_opt).to(self.device)
        net_d = build_network(network)
        if self.options.paths.pretrain_network_d:
            self.load_into(net_d, self.options.paths.pretrain_network_d, "params")
        # Without GroupNorm, whose backward is slow in this format, a discriminator gains from it everywhere.
        self.net_d = self.model_to_device(net_d.to(memory_format=torch.channels_last)).train()
        self.optimizer_d = self.add_optimizer(optimizer, self.net_d.parameters())

    def frozen_discriminator(self, current_iter: int) -> nn.Module | None:
        """net_d, frozen for the step of net_g; None in an iteration that does not use it."""
        if self.net_d is None or current_iter < self.train.net_d_start_iter:
            return None
        return self.net_d.requires_grad_(False)

    def optimize_discriminator(self, net_d: nn.Module, fake: Tensor, current_iter: int) -> dict[str, Tensor]:
        """One step of net_d on self.gt and fake, (b, 3, H, W) each; returns its two losses ()."""
        net_d.requires_grad_(True)
        with self.autocast(), self.synchronized(net_d, current_iter):
            # One forward for both halves: DistributedDataParallel allows one before each backward.
            real_scores, fake_scores = net_d(torch.cat([self.gt, fake.to(self.gt.dtype)])).float().chunk(2)
        real_loss = self.cri_gan(real_scores, True, is_disc=True)
        fake_loss = self.cri_gan(fake_scores, False, is_disc=True)
        self.backward(real_loss, fake_loss)
        self.step(self.optimizer_d, current_iter)
        return {"l_d_real": real_loss, "l_d_fake": fake_loss}
