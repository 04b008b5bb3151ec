"""ITER written directly from the paper (arXiv:2312.05616): the reference for the project's results and speed.

It uses one-hot maps and 1x1 convs, rebuilds mask and position bias in every attention block, and writes out the
softmax. Both token networks run on every position at every step, the evaluator after the last one too, one image after
the other, in float32, eager. In training it calls the four networks one after the other and fetches every loss in every
iteration. The functions use the parameters of the project's modules but none of their forwards: the same weights and
random numbers give the same tokens and losses (tests/parity/test_plain.py).
"""

from collections.abc import Callable, Iterable, Mapping

import basicsr_compat  # noqa: F401  isort: skip
import torch
from basicsr.models.realesrnet_model import RealESRNetModel
from basicsr.utils import DiffJPEG, USMSharp
from torch import Tensor, nn
from torch.nn import functional as F

from iter_arch import ITER, LQEncoder, Restored, SamplingConfig, SwinVQGAN, TokenEvaluator, TokenRefiner
from iter_arch.layers import Downsample, ResBlock, Upsample
from iter_arch.sampling import draw_tokens, keep_count, make_generators, start_step
from iter_arch.schedule import ceil_exact, mask_ratio
from iter_arch.selection import gumbel
from iter_arch.swin import Mlp, SwinBlock, SwinStage, WindowAttention
from iter_arch.tiling import pad_to_multiple
from iter_data import SecondOrderDegradation

Losses = dict[str, Tensor]


# ---------------------------------------------------------------------------------------------------- networks


def to_windows(x: Tensor, window: int) -> Tensor:
    """(b, h, w, c) -> (b * windows, window^2, c)."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, window * window, c)


def from_windows(windows: Tensor, window: int, h: int, w: int) -> Tensor:
    """Inverse of `to_windows`."""
    x = windows.view(-1, h // window, w // window, window, window, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, h, w, windows.shape[-1])


def attention_mask(h: int, w: int, window: int, shift: int, device: torch.device) -> Tensor:
    """(windows, n, n): -100 between positions that a cyclic shift brought into one window."""
    region = torch.zeros(1, h, w, 1, device=device)
    count = 0
    for rows in (slice(0, -window), slice(-window, -shift), slice(-shift, None)):
        for columns in (slice(0, -window), slice(-window, -shift), slice(-shift, None)):
            region[:, rows, columns] = count
            count += 1
    region = to_windows(region, window).squeeze(-1)
    different = region[:, None, :] - region[:, :, None]
    return different.masked_fill(different != 0, -100.0)


def attention(layer: WindowAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """(b * windows, n, c) -> the same."""
    bw, n, c = x.shape
    query, key, value = layer.qkv(x).reshape(bw, n, 3, layer.heads, c // layer.heads).permute(2, 0, 3, 1, 4)
    scores = (query * (c // layer.heads) ** -0.5) @ key.transpose(-2, -1)
    bias = layer.relative_position_bias_table[layer.relative_position_index.view(-1)].view(n, n, -1)
    scores = scores + bias.permute(2, 0, 1).contiguous()
    if mask is not None:
        scores = scores.view(-1, len(mask), layer.heads, n, n) + mask[:, None]
        scores = scores.view(bw, layer.heads, n, n)
    return layer.proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(bw, n, c))


def mlp(layer: Mlp, x: Tensor) -> Tensor:
    x = F.gelu(layer.fc1(x))
    if layer.gate is not None:
        x = x * layer.gate(x.mean((1, 2), keepdim=True))
    return layer.fc2(x)


def swin_block(block: SwinBlock, x: Tensor) -> Tensor:
    """(b, h, w, c) -> the same."""
    _, h, w, _ = x.shape
    y = block.norm1(x)
    mask = None
    if block.shift:
        y = torch.roll(y, (-block.shift, -block.shift), (1, 2))
        mask = attention_mask(h, w, block.window, block.shift, x.device)
    y = from_windows(attention(block.attn, to_windows(y, block.window), mask), block.window, h, w)
    if block.shift:
        y = torch.roll(y, (block.shift, block.shift), (1, 2))
    x = x + y
    return x + mlp(block.mlp, block.norm2(x))


def swin_stage(stage: SwinStage, x: Tensor) -> Tensor:
    """(b, c, h, w) -> the same."""
    y = stage.conv_in(x)
    for group in stage.groups:
        z = y.permute(0, 2, 3, 1)
        for block in group.blocks:
            z = swin_block(block, z)
        z = z.permute(0, 3, 1, 2)
        y = z if group.conv is None else y + group.conv(z)
    y = stage.conv_out(y)
    return x + y if stage.residual else y


def res_block(block: ResBlock, x: Tensor) -> Tensor:
    y = block.conv1(block.activation(block.norm1(x)))
    y = block.conv2(block.activation(block.norm2(y)))
    return block.shortcut(x) + y


def layers(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Layers of a VQGAN or of the stem of an LQ encoder, one after the other."""
    for module in modules:
        if isinstance(module, ResBlock):
            x = res_block(module, x)
        elif isinstance(module, SwinStage):
            x = swin_stage(module, x)
        elif isinstance(module, Downsample):
            x = module.conv(F.pad(x, (0, 1, 0, 1)))
        elif isinstance(module, Upsample):
            x = module.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        else:
            x = module(x)
    return x


def one_hot(tokens: Tensor, channels: int) -> Tensor:
    """(b, h, w) int64 -> (b, channels, h, w) float32."""
    return F.one_hot(tokens, channels).permute(0, 3, 1, 2).float()


def conv1x1(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight[:, :, None, None])


def encode(vqgan: SwinVQGAN, image: Tensor) -> Tensor:
    """image (b, 3, H, W) in [0, 1] -> latent (b, d, h, w)."""
    return layers(vqgan.encoder, image.clamp(0, 1) * 2 - 1)


def quantize(vqgan: SwinVQGAN, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 1: latent (b, d, h, w) -> codes (b, d, h, w), tokens (b, h, w), loss ()."""
    codebook = vqgan.quantizer.embedding.weight
    flat = latent.permute(0, 2, 3, 1).reshape(-1, latent.shape[1])
    distance = flat.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * flat @ codebook.t()
    tokens = distance.argmin(1).view(latent.shape[0], *latent.shape[2:])
    codes = conv1x1(one_hot(tokens, len(codebook)), codebook.t())
    loss = F.mse_loss(codes, latent.detach()) + vqgan.quantizer.beta * F.mse_loss(latent, codes.detach())
    return latent + (codes - latent).detach(), tokens, loss


def decode(vqgan: SwinVQGAN, tokens: Tensor) -> Tensor:
    """tokens (b, h, w) -> image (b, 3, 8h, 8w), nominally in [0, 1]."""
    codebook = vqgan.quantizer.embedding.weight
    return (layers(vqgan.decoder, conv1x1(one_hot(tokens, len(codebook)), codebook.t())) + 1) / 2


def encode_lq(encoder: LQEncoder, lq: Tensor) -> Tensor:
    """lq (b, 3, H/s, W/s) -> logits (b, N, h, w)."""
    return encoder.head(swin_stage(encoder.swin, encoder.project(layers(encoder.stem, lq))))


def mixed_logits(net: TokenRefiner | TokenEvaluator, map_t: Tensor, map_l: Tensor) -> Tensor:
    """Two maps (b, N or N + 1, h, w) through the embedding, the mixing layer, the blocks and the head."""
    embedding = net.embedding.weight.t()
    both = torch.cat([conv1x1(map_t, embedding), conv1x1(map_l, embedding)], 1)
    x = swin_stage(net.swin, conv1x1(both, torch.cat([net.mix_t.weight, net.mix_l.weight], 1)))
    return net.head(F.silu(net.norm(x)))


def refine(net: TokenRefiner, S_t: Tensor, m_t: Tensor, S_l: Tensor, m_l: Tensor) -> Tensor:
    """phi_r: logits (b, N, h, w)."""

    def with_mask(tokens: Tensor, visible: Tensor, kept: Tensor) -> Tensor:
        return torch.cat([one_hot(tokens, net.num_codes) * visible[:, None], (1 - kept.float())[:, None]], 1)

    return mixed_logits(net, with_mask(S_t, m_t, m_t), with_mask(S_l, torch.ones_like(m_l), m_l))


def evaluate(net: TokenEvaluator, S_t: Tensor, S_l: Tensor) -> Tensor:
    """phi_e: logits (b, 2, h, w)."""
    return mixed_logits(net, one_hot(S_t, net.num_codes), one_hot(S_l, net.num_codes))


# ---------------------------------------------------------------------------------------------------- Algorithm 2


@torch.no_grad()
def restore(net: ITER, lq: Tensor, *, config: SamplingConfig, seed: int = 0) -> Restored:
    """Algorithm 2 image by image, what `ITER.restore` does; only the paper's selection, temperature 1."""
    if config.selection != "evaluator" or config.redraw_kept or not config.reevaluate or config.temperature != 1:
        raise ValueError(f"{config} is not the paper's Algorithm 2")
    restored = [_restore_one(net, image[None], config, seed) for image in lq]
    return Restored(*(torch.cat(parts) for parts in zip(*restored, strict=True)))


def _restore_one(net: ITER, lq: Tensor, config: SamplingConfig, seed: int) -> Restored:
    (generator,) = make_generators(seed, 1, lq.device)
    S_l = encode_lq(net.lq_encoder, pad_to_multiple(lq, net.multiple)).argmax(1)
    n = S_l.numel()
    good_l = evaluate(net.evaluator, S_l, S_l).softmax(1)[:, 1]
    m_l = good_l >= config.alpha
    S, m, start = S_l, torch.zeros_like(m_l), config.steps
    if config.adaptive:
        m, start = m_l, start_step(int(m_l.sum()), config.steps, n, config.schedule)
    for t in range(start, 0, -1):
        probabilities = refine(net.refiner, S, m, S_l, m_l).softmax(1)
        uniform = torch.rand(S.shape[1:], generator=generator, device=lq.device)[None]
        S = torch.where(m, S, draw_tokens(probabilities, uniform))
        good = evaluate(net.evaluator, S, S_l).log_softmax(1)[:, 1]
        noise = gumbel(torch.rand(S.shape[1:], generator=generator, device=lq.device))
        kept = (good + noise).flatten().topk(keep_count(t, config.steps, n, config.schedule)).indices
        m = torch.zeros(n, dtype=torch.bool, device=lq.device).index_fill(0, kept, True).view_as(m)
    image = decode(net.vqgan, S).clamp(0, 1)
    image = image[..., : lq.shape[2] * net.scale, : lq.shape[3] * net.scale]
    return Restored(image, S, torch.tensor([start], device=lq.device), good_l)


# ---------------------------------------------------------------------------------------------------- training


class Degradation(RealESRNetModel):
    """BasicSR's own second-order degradation, with its dense USM and its pool of pairs, without its networks.

    ``feed_data({"gt", "kernel1", "kernel2", "sinc_kernel"})`` leaves the pair in ``lq`` and ``gt``.
    """

    def __init__(
        self,
        options: SecondOrderDegradation,
        *,
        scale: int,
        gt_size: int,
        device: torch.device,
        queue_size: int = 180,
        gt_usm: bool = True,
    ) -> None:
        section = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(options).items()}
        self.opt = section | {"scale": scale, "gt_size": gt_size, "gt_usm": gt_usm}
        self.is_train, self.device = True, device
        self.jpeger, self.usm_sharpener = DiffJPEG(differentiable=False).to(device), USMSharp().to(device)
        self.queue_size = queue_size


def average(ema: nn.Module, net: nn.Module, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * net, one parameter after the other, as BasicSR does it."""
    trained = dict(net.named_parameters())
    for name, parameter in ema.named_parameters():
        parameter.data.mul_(decay).add_(trained[name].data, alpha=1 - decay)


def draw_masks(shape: torch.Size, schedule: str, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm 1, image by image: m_t (b, h, w) bool, alpha (b,), uniform (b, h, w), on the generator's device."""
    b, h, w = shape
    device = generator.device
    m_t = torch.ones(b, h * w, dtype=torch.bool, device=device)
    for row in m_t:
        ratio = mask_ratio(schedule, 1 - torch.rand((), generator=generator, device=device).item())
        masked = torch.randperm(h * w, generator=generator, device=device)[: ceil_exact(ratio * h * w)]
        row[masked] = False
    alpha = torch.rand(b, generator=generator, device=device)
    return m_t.view(b, h, w), alpha, torch.rand(b, h, w, generator=generator, device=device)


def token_losses(net: ITER, lq: Tensor, gt: Tensor, m_t: Tensor, alpha: Tensor, uniform: Tensor) -> Losses:
    """Stages II and III, Algorithm 1: l_dist (Eq. 2), l_r (Eq. 4), l_e (Eq. 9, beta 0.9999).

    lq: (b, 3, H/s, W/s). gt: (b, 3, H, W). m_t, alpha, uniform: as `TrainedNetworks` takes them.
    """
    with torch.no_grad():
        S_h = quantize(net.vqgan, encode(net.vqgan, gt))[1]
    lq_logits = encode_lq(net.lq_encoder, lq)
    S_l = lq_logits.detach().argmax(1)
    with torch.no_grad():
        m_l = evaluate(net.evaluator, S_l, S_l).softmax(1)[:, 1] >= alpha[:, None, None]
    refiner_logits = refine(net.refiner, S_h, m_t, S_l, m_l)
    S_r = torch.where(m_t, S_h, draw_tokens(refiner_logits.detach().softmax(1), uniform))
    drawn_logits, logits = evaluate(net.evaluator, S_r, S_l), evaluate(net.evaluator, S_l, S_l)
    good = (S_l == S_h).long()
    weights = torch.tensor([(1 - 0.9999) / (1 - 0.9999 ** max(1, int((good == y).sum()))) for y in (0, 1)]).to(lq)
    drawn_loss = F.cross_entropy(drawn_logits, (S_r == S_h).long())
    return {
        "l_dist": F.cross_entropy(lq_logits, S_h),
        "l_r": F.cross_entropy(refiner_logits, S_h),
        "l_e": drawn_loss + F.cross_entropy(logits, good, weight=weights),
    }


class TokenTraining:
    """Stages II and III.

    Args:
        net: its E_l, phi_r and phi_e are trained, its VQGAN is frozen.
        ema: a copy of ``net`` that averages the trained networks; None: no average.
    """

    def __init__(self, net: ITER, *, ema: ITER | None = None, lr: float = 1e-4, schedule: str = "cosine") -> None:
        self.net, self.ema, self.schedule = net, ema, schedule
        self.names = ("lq_encoder", "refiner", "evaluator")
        parameters = [p for name in self.names for p in getattr(net, name).parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99), foreach=False)

    def step(self, lq: Tensor, gt: Tensor, generator: torch.Generator) -> dict[str, float]:
        """One iteration on a pair (b, 3, H/s, W/s), (b, 3, H, W); generator: on their device. Returns the losses."""
        masks = draw_masks((len(gt), gt.shape[2] // 8, gt.shape[3] // 8), self.schedule, generator)
        losses = token_losses(self.net, lq, gt, *masks)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()
        if self.ema is not None:
            for name in self.names:
                average(getattr(self.ema, name), getattr(self.net, name), 0.999)
        return {name: loss.item() for name, loss in losses.items()}


def vqgan_losses(
    net: SwinVQGAN, gt: Tensor, criteria: Mapping[str, Callable[[Tensor, Tensor], Tensor]]
) -> tuple[Losses, Tensor]:
    """Stage I without the GAN term: l_vq and one loss a criterion (image, gt) -> (); and the image (b, 3, H, W)."""
    codes, _, vq_loss = quantize(net, encode(net, gt))
    image = (layers(net.decoder, codes) + 1) / 2
    return {"l_vq": vq_loss} | {name: criterion(image, gt) for name, criterion in criteria.items()}, image


class VQGANTraining:
    """Stage I.

    Args:
        discriminator: None: no GAN term.
        gan_loss: BasicSR's GANLoss, which holds its weight.
        criteria: losses of the image, such as L1, SSIM and LPIPS, with their weights.
        ema: a copy of ``net`` that averages it; None: no average.
    """

    def __init__(
        self,
        net: SwinVQGAN,
        *,
        criteria: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
        discriminator: nn.Module | None = None,
        gan_loss: nn.Module | None = None,
        ema: SwinVQGAN | None = None,
        lr: float = 1e-4,
        lr_discriminator: float = 4e-4,
    ) -> None:
        self.net, self.ema, self.criteria = net, ema, criteria
        self.discriminator, self.gan_loss = discriminator, gan_loss
        self.optimizer = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 0.99), foreach=False)
        if discriminator is not None:
            self.optimizer_d = torch.optim.Adam(
                discriminator.parameters(), lr=lr_discriminator, betas=(0.9, 0.99), foreach=False
            )

    def step(self, gt: Tensor) -> dict[str, float]:
        """One iteration on images (b, 3, H, W) in [0, 1]. Returns the losses."""
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        self.optimizer.zero_grad()
        losses, image = vqgan_losses(self.net, gt, self.criteria)
        if self.discriminator is not None:
            losses["l_gan"] = self.gan_loss(self.discriminator(image), True, is_disc=False)
        sum(losses.values()).backward()
        self.optimizer.step()
        if self.discriminator is not None:
            # Real and fake images separately, as in BasicSR's SRGANModel.
            self.discriminator.requires_grad_(True)
            self.optimizer_d.zero_grad()
            losses["l_d_real"] = self.gan_loss(self.discriminator(gt), True, is_disc=True)
            losses["l_d_real"].backward()
            losses["l_d_fake"] = self.gan_loss(self.discriminator(image.detach()), False, is_disc=True)
            losses["l_d_fake"].backward()
            self.optimizer_d.step()
        if self.ema is not None:
            average(self.ema, self.net, 0.999)
        return {name: loss.item() for name, loss in losses.items()}
