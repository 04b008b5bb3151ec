"""The discriminator of stages I and IV: hinge GAN as in the paper, or any of BasicSR's GANLoss."""

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from torch import Tensor, nn

from iter_model.training import TrainingMixin


class AdversarialMixin(TrainingMixin):
    """A model whose `train` has gan_opt, optim_d and net_d_start_iter; `net_d` is None without gan_opt."""

    further_networks = ("network_d",)
    net_d: nn.Module | None = None

    def init_discriminator(self) -> None:
        """Build it with its loss and its optimizer, after that of net_g."""
        if not self.train.gan_opt:
            return
        self.cri_gan = build_loss(self.train.gan_opt).to(self.device)
        net_d = build_network(self.options.network_d)
        if self.options.paths.pretrain_network_d:
            self.load_into(net_d, self.options.paths.pretrain_network_d, "params")
        # Without GroupNorm, whose backward is slow in this format, a discriminator gains from it everywhere.
        self.net_d = self.model_to_device(net_d.to(memory_format=torch.channels_last)).train()
        self.optimizer_d = self.add_optimizer(self.train.optim_d, self.net_d.parameters())

    def uses_gan(self, current_iter: int) -> bool:
        """Whether the discriminator takes part in an iteration; it is frozen for the step of net_g then."""
        takes_part = self.net_d is not None and current_iter >= self.train.net_d_start_iter
        if takes_part:
            self.net_d.requires_grad_(False)
        return takes_part

    def optimize_discriminator(self, fake: Tensor, current_iter: int) -> dict[str, Tensor]:
        """One step on self.gt and fake, (b, 3, H, W) each; its two losses ()."""
        self.net_d.requires_grad_(True)
        with self.autocast(), self.synchronized(self.net_d, current_iter):
            # One forward for both halves: DistributedDataParallel allows one before each backward.
            real_scores, fake_scores = self.net_d(torch.cat([self.gt, fake.to(self.gt.dtype)])).float().chunk(2)
        real_loss = self.cri_gan(real_scores, True, is_disc=True)
        fake_loss = self.cri_gan(fake_scores, False, is_disc=True)
        self.backward(real_loss + fake_loss)
        self.step(self.optimizer_d, current_iter)
        return {"l_d_real": real_loss, "l_d_fake": fake_loss}
