"""Stage I: training of the Swin-VQGAN (ITER, arXiv:2312.05616, Sec. 3.1, Eq. 1)."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from iter_arch.quantizer import VectorQuantizer
from iter_arch.swin_vqgan_arch import SwinVQGAN
from iter_arch.tiling import pad_to_multiple
from iter_model.options import SwinVQGANTrainOptions, ValOptions, crop_problems, gan_problems
from iter_model.training import TrainingMixin, all_reduce_sum, broadcast_from_main
from iter_model.validation import ValidationMixin


@MODEL_REGISTRY.register()
class SwinVQGANModel(ValidationMixin, TrainingMixin):
    """L1 + SSIM + LPIPS + VQ + hinge GAN, each where the yml names it; network_g SwinVQGAN, network_d optional."""

    train_options = SwinVQGANTrainOptions
    val_options = ValOptions
    further_networks = ("network_d",)

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
        self.net_g = self.model_to_device(build_network(opt["network_g"]).to(memory_format=self.memory_format))
        self.print_network(self.net_g)
        path, key = opt["path"].get("pretrain_network_g"), opt["path"].get("param_key_g") or "params"
        if path:
            self.load_into(self.get_bare_model(self.net_g), path, key)
        if self.is_train:
            self.init_training_settings()

    def init_training_settings(self) -> None:
        path = self.opt["path"]
        self.net_g.train()
        self.revive_freq = self.train.revive_freq
        if self.train.decoder_only:
            self.revive_freq = 0
            net = self.get_bare_model(self.net_g)
            for part in (net.encoder, net.quantizer):
                part.requires_grad_(False)
        if self.train.ema_decay:
            self.net_g_ema = build_network(self.opt["network_g"]).to(self.device).eval().requires_grad_(False)
            self.net_g_ema.load_state_dict(self.get_bare_model(self.net_g).state_dict())
            if path.get("pretrain_network_g"):
                # Of a resumed run, say: BasicSR then sets this path.
                self.load_into(self.net_g_ema, path["pretrain_network_g"])
        self.criteria = {
            name: build_loss(section).to(self.device)
            for name, section in (
                ("l_pix", self.train.pixel_opt),
                ("l_ssim", self.train.ssim_opt),
                ("l_percep", self.train.perceptual_opt),
            )
            if section
        }
        # Iteration before which the codebook is made; a pretrained one is kept.
        self.codebook_iter = None if path.get("pretrain_network_g") else self.train.quantize_start_iter
        self.recent_latents: deque[Tensor] = deque(maxlen=32)
        self.optimizer_g = self.add_optimizer("optim_g", self.net_g.parameters())
        self.net_d = None
        if self.train.gan_opt:
            self.cri_gan = build_loss(self.train.gan_opt).to(self.device)
            # Without GroupNorm, whose backward is slow in this format, a discriminator gains from it everywhere.
            net_d = build_network(self.opt["network_d"]).to(memory_format=torch.channels_last)
            self.net_d = self.model_to_device(net_d)
            if path.get("pretrain_network_d"):
                self.load_into(self.get_bare_model(self.net_d), path["pretrain_network_d"], "params")
            self.net_d.train()
            self.optimizer_d = self.add_optimizer("optim_d", self.net_d.parameters())
        self.setup_schedulers()
        self.code_counts = torch.zeros(self.quantizer.num_codes, device=self.device)
        self.window_counts = self.code_counts
        if self.train.compile:
            self.net_g.compile()
            if self.net_d is not None:
                self.net_d.compile()

    @property
    def quantizer(self) -> VectorQuantizer:
        return self.get_bare_model(self.net_g).quantizer

    def feed_data(self, data: Mapping[str, Any]) -> None:
        # A set of single images has only 'lq': it is what is to be reconstructed.
        image = data["gt"] if "gt" in data else data["lq"]
        self.gt = image.to(self.device, memory_format=self.memory_format, non_blocking=True)

    def optimize_parameters(self, current_iter: int) -> None:
        if current_iter == self.codebook_iter:
            self._initialize_codebook()
        quantize = current_iter >= self.train.quantize_start_iter
        with_gan = self.net_d is not None and current_iter >= self.train.net_d_start_iter
        if with_gan:
            self.net_d.requires_grad_(False)
        # net_d too: a forward here that announces an exchange would make the one below exchange its gradients.
        with (
            self.autocast(),
            self.synchronized(self.net_g, current_iter),
            self.synchronized(self.net_d, current_iter),
        ):
            output = self.net_g(self.gt, quantize=quantize)
            scores = self.net_d(output.image) if with_gan else None
        image = output.image.float()
        losses = {name: criterion(image, self.gt) for name, criterion in self.criteria.items()}
        losses["l_vq"] = self.train.vq_weight * output.loss
        if with_gan:
            losses["l_gan"] = self.cri_gan(scores.float(), True, is_disc=False)
        self.backward(sum(losses.values()))
        self.step(self.optimizer_g, current_iter)
        if with_gan:
            losses |= self._optimize_discriminator(output.image.detach(), current_iter)
        if self.train.ema_decay:
            self.update_ema(self.net_g_ema, self.get_bare_model(self.net_g), current_iter)
        self.recent_latents.append(output.latent.detach().float())
        if quantize:
            self._count_codes(output.tokens, current_iter)
        self.losses = losses

    def _optimize_discriminator(self, fake: Tensor, current_iter: int) -> dict[str, Tensor]:
        self.net_d.requires_grad_(True)
        with self.autocast(), self.synchronized(self.net_d, current_iter):
            # One forward for both halves: DistributedDataParallel allows one before each backward.
            real_scores, fake_scores = self.net_d(torch.cat([self.gt, fake.to(self.gt.dtype)])).float().chunk(2)
        real_loss = self.cri_gan(real_scores, True, is_disc=True)
        fake_loss = self.cri_gan(fake_scores, False, is_disc=True)
        self.backward(real_loss + fake_loss)
        self.step(self.optimizer_d, current_iter)
        return {"l_d_real": real_loss, "l_d_fake": fake_loss}

    @torch.no_grad()
    def _initialize_codebook(self) -> None:
        """Start from k-means of encoder outputs: codes that no latent is near would never be chosen."""
        if not self.recent_latents:
            with self.autocast():
                self.recent_latents.append(self.get_bare_model(self.net_g).latent(self.gt).float())
        latents = self._recent_vectors()
        every_code = torch.arange(self.quantizer.num_codes, device=self.device)
        if len(latents) > len(every_code):
            centres, _ = kmeans2(latents.cpu().numpy(), len(every_code), minit="++", seed=self.opt["manual_seed"])
            self._set_codes(every_code, torch.from_numpy(centres).to(latents))
        else:
            self._set_codes(every_code, self._draw_latents(len(every_code)))

    def _recent_vectors(self) -> Tensor:
        """(k, d): the latents of the last iterations."""
        return torch.cat([latent.movedim(1, -1).flatten(0, 2) for latent in self.recent_latents])

    def _draw_latents(self, count: int) -> Tensor:
        """(count, d): latents of the last iterations, with a little noise to keep equal ones apart."""
        latents = self._recent_vectors()
        chosen = torch.randint(len(latents), (count,), generator=self.generator).to(self.device)
        noise = torch.randn(count, latents.shape[1], generator=self.generator).to(self.device)
        return latents[chosen] + 1e-3 * latents.std() * noise

    def _set_codes(self, indices: Tensor, vectors: Tensor) -> None:
        """Give codes new values, those of rank 0 on every rank."""
        broadcast_from_main([vectors])
        self.quantizer.replace(indices, vectors)
        if self.train.ema_decay:
            self.net_g_ema.quantizer.replace(indices, vectors)

    @torch.no_grad()
    def _count_codes(self, tokens: Tensor, current_iter: int) -> None:
        self.code_counts += torch.bincount(tokens.flatten(), minlength=self.quantizer.num_codes)
        if not self.revive_freq or current_iter % self.revive_freq:
            return
        self.window_counts = all_reduce_sum(self.code_counts.clone())
        dead = (self.window_counts == 0).nonzero().flatten()
        if len(dead):
            self._set_codes(dead, self._draw_latents(len(dead)))
            get_root_logger().info(f"{len(dead)} of {self.quantizer.num_codes} codes were not in use and start anew.")
        self.code_counts.zero_()

    def get_current_log(self) -> Mapping[str, float]:
        counts = all_reduce_sum(self.code_counts.clone())
        counts = counts if counts.sum() > 0 else self.window_counts
        frequency = counts / counts.sum().clamp_min(1)
        self.losses["perplexity"] = torch.exp(-(frequency * frequency.clamp_min(1e-10).log()).sum())
        self.losses["codes_used"] = (counts > 0).sum()
        return super().get_current_log()

    @torch.no_grad()
    def test(self) -> None:
        net = self.net_g_ema if hasattr(self, "net_g_ema") else self.get_bare_model(self.net_g)
        was_training = net.training
        net.eval()
        height, width = self.gt.shape[-2:]
        padded = pad_to_multiple(self.gt, net.factor * net.window)
        self.output = net(padded).image[..., :height, :width]
        net.train(was_training)

    def draw(self) -> Tensor:
        """gt and output side by side, (3, H, W)."""
        return torch.cat([self.gt, self.output], dim=3)[0]

    def save(self, epoch: int, current_iter: int) -> None:
        if hasattr(self, "net_g_ema"):
            networks, keys = [self.net_g, self.net_g_ema], ["params", "params_ema"]
            self.save_network(networks, "net_g", current_iter, param_key=keys)
        else:
            self.save_network(self.net_g, "net_g", current_iter)
        if self.net_d is not None:
            self.save_network(self.net_d, "net_d", current_iter)
        self.save_training_state(epoch, current_iter)

    def training_state(self, current_iter: int) -> dict[str, Any]:
        """See `TrainingMixin`; of the latents those that the next change of the codebook will still look at."""
        state = super().training_state(current_iter) | {
            "codebook_iter": self.codebook_iter,
            "code_counts": self.code_counts,
            "window_counts": self.window_counts,
        }
        changes = []
        if self.revive_freq:
            changes.append(current_iter - current_iter % self.revive_freq + self.revive_freq)
        if self.codebook_iter is not None and self.codebook_iter > current_iter:
            changes.append(self.codebook_iter)
        if changes:
            recent = list(self.recent_latents)
            # The change in iteration n looks at those of n - 32 and later, at most.
            first = max(0, len(recent) - max(0, current_iter - (min(changes) - self.recent_latents.maxlen) + 1))
            state["recent_latents"] = recent[first:]
        return state

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        super().load_training_state(state)
        self.codebook_iter = state["codebook_iter"]
        self.code_counts = state["code_counts"].to(self.device)
        self.window_counts = state["window_counts"].to(self.device)
        latents = (latent.to(self.device) for latent in state.get("recent_latents", ()))
        self.recent_latents = deque(latents, self.recent_latents.maxlen)
