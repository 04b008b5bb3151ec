"""Window attention and Swin stages, the transformer part of all four networks (ITER, arXiv:2312.05616, Sec. 3 and 4.1;
Swin Transformer, arXiv:2103.14030; residual groups: SwinIR, arXiv:2108.10257)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr_compat.schema import Count, Layers, Positive, section_problems

# Attention biases of every block of every group, see `SwinStage.biases`.
Biases = list[list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class SwinOptions:
    """The Swin blocks of a network.

    Args:
        dim: channels inside the blocks.
        depth: Swin blocks per group.
        groups: number of groups.
        heads: attention heads, of which ``dim`` is a multiple.
        window: positions of a window's side; every second block is shifted by half of it.
        mlp_ratio: hidden channels of the MLPs, in units of ``dim``.
        residual_groups: SwinIR's form, as in the authors' released networks: conv3x3 before and after, a skip over all,
            and every group closed by a conv3x3 and a skip. Otherwise (the paper's form) the blocks alone, between two
            1x1 convs where the map has other than ``dim`` channels.
        gate: squeeze-and-excitation gate in the MLPs (released networks).

    Raises:
        ValueError: a value out of range; names the field, the value and the rule.

    Examples:
        >>> TokenRefiner(swin=SwinOptions(dim=128, depth=6, heads=4))
    """

    dim: Count = 256
    depth: Layers = 12
    groups: Layers = 1
    heads: Count = 8
    window: Count = 8
    mlp_ratio: Positive = 4.0
    residual_groups: bool = False
    gate: bool = False

    def __post_init__(self) -> None:
        problems = list(section_problems(vars(self), SwinOptions, "swin"))
        if not problems and self.dim % self.heads:
            problems = [f"swin.dim={self.dim} must be a multiple of swin.heads={self.heads}"]
        if problems:
            raise ValueError("; ".join(problems))

    def updated(self, section: "SwinOptions | Mapping[str, Any] | None") -> "SwinOptions":
        """These options, updated with a section of a yml. A SwinOptions is returned unchanged."""
        return section if isinstance(section, SwinOptions) else replace(self, **(section or {}))


def relative_position_index(window: int) -> Tensor:
    """Index of each (query, key) pair of a window into the bias table: (n, n) int64 on the CPU, n = window^2."""
    axis = torch.arange(window, device="cpu")
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    offset = grid[:, :, None] - grid[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Attention mask of shifted windows: (windows, n, n) float32, -100 between positions that are not neighbors."""

    def region(length: int) -> Tensor:
        position = torch.arange(length, device=device)
        return (position >= length - window).float() + (position >= length - shift).float()

    regions = 3 * region(height)[:, None] + region(width)
    regions = partition(regions[None, :, :, None], window).flatten(1)
    return (regions[:, :, None] != regions[:, None, :]).float() * -100.0


def partition(x: Tensor, window: int) -> Tensor:
    """(b, h, w, c) -> (b * windows, window^2, c)."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.transpose(2, 3).reshape(-1, window * window, c)


def merge(windows: Tensor, shape: torch.Size, window: int) -> Tensor:
    """Inverse of `partition`; ``shape`` is that of the result, (b, h, w, c)."""
    b, h, w, c = shape
    windows = windows.view(b, h // window, w // window, window, window, c)
    return windows.transpose(2, 3).reshape(b, h, w, c)


def attention_with_bias_gradient(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention (b * windows, heads, n, d) with a bias (1 or windows, heads, n, n), its softmax in float32.

    On a CPU, PyTorch's own function takes twice the time if the bias needs a gradient.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    scores = (scores.unflatten(0, (-1, len(bias))) + bias).flatten(0, 1)
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


def attention_in_bf16(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """The same without gradients, in bfloat16: on a CPU it takes two thirds of the time of PyTorch's own."""
    windows, heads, n, d = query.shape
    query, key, value = (x.reshape(windows * heads, n, d) for x in (query, key, value))
    scores = torch.baddbmm(bias.flatten(0, 1), query, key.transpose(1, 2), alpha=d**-0.5)
    return torch.bmm(scores.softmax(-1), value).view(windows, heads, n, d)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows: (b * windows, n, c) -> (b * windows, n, c)."""

    relative_position_index: Tensor

    def __init__(self, dim: int, *, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        index = relative_position_index(window).to(self.relative_position_bias_table.device)
        self.register_buffer("relative_position_index", index, persistent=False)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def bias(self, mask: Tensor | None) -> Tensor:
        """Position bias (1, heads, n, n); with a shift mask (windows, n, n) the sum of both, (windows, heads, n, n)."""
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None].contiguous()
        return bias if mask is None else (mask[:, None] + bias).to(bias.dtype)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (b * windows, n, c), bias (1 or windows, heads, n, n), see `bias` -> (b * windows, n, c)."""
        bw, n, c = x.shape
        query, key, value = self.qkv(x).view(bw, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if bias.requires_grad and x.device.type == "cpu":
            y = attention_with_bias_gradient(query, key, value, bias)
        else:
            bias = bias.to(query.dtype)
            if bias.shape[0] not in (1, bw):
                bias = bias.repeat(bw // bias.shape[0], 1, 1, 1)
            if x.dtype == torch.bfloat16 and x.device.type == "cpu" and not torch.is_grad_enabled():
                y = attention_in_bf16(query, key, value, bias.expand(bw, -1, -1, -1))
            else:
                y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(y.transpose(1, 2).reshape(bw, n, c))


class Mlp(nn.Module):
    """fc - GELU - fc on (b, h, w, c), optionally with a squeeze-and-excitation gate over all positions in between."""

    def __init__(self, dim: int, *, ratio: float, gate: bool) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        squeezed = max(1, hidden // 16)
        self.gate = (
            nn.Sequential(nn.Linear(hidden, squeezed), nn.SiLU(), nn.Linear(squeezed, hidden), nn.Sigmoid())
            if gate
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, c) -> (b, h, w, c)."""
        y = F.gelu(self.fc1(x))
        if self.gate is not None:
            y = y * self.gate(y.mean(dim=(1, 2), keepdim=True))
        return self.fc2(y)


class SwinBlock(nn.Module):
    """Window attention and MLP, each after LayerNorm and with a skip; shifted by half a window or not at all."""

    def __init__(self, options: SwinOptions, *, shifted: bool) -> None:
        super().__init__()
        dim, self.window = options.dim, options.window
        self.shift = options.window // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads=options.heads, window=options.window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, ratio=options.mlp_ratio, gate=options.gate)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (b, h, w, c), bias of `SwinStage.biases` -> (b, h, w, c)."""
        y = self.norm1(x)
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
        y = merge(self.attn(partition(y, self.window), bias), y.shape, self.window)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


class SwinGroup(nn.Module):
    """Swin blocks, every second one shifted; as a residual group a conv3x3 and a skip close it."""

    def __init__(self, options: SwinOptions) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(options, shifted=i % 2 == 1) for i in range(options.depth))
        self.conv = nn.Conv2d(options.dim, options.dim, 3, padding=1) if options.residual_groups else None

    def forward(self, x: Tensor, biases: list[Tensor]) -> Tensor:
        """x (b, h, w, c), one bias per block -> (b, h, w, c)."""
        y = x
        for block, bias in zip(self.blocks, biases, strict=True):
            y = block(y, bias)
        if self.conv is None:
            return y
        return x + self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SwinStage(nn.Module):
    """A run of Swin blocks on a feature map.

    Args:
        channels: channels of the map.
        options: the blocks.
    """

    def __init__(self, channels: int, options: SwinOptions) -> None:
        super().__init__()
        dim, self.window = options.dim, options.window
        self.residual = options.residual_groups
        self.conv_in: nn.Module
        self.conv_out: nn.Module
        if self.residual:
            self.conv_in = nn.Conv2d(channels, dim, 3, padding=1)
            self.conv_out = nn.Conv2d(dim, channels, 3, padding=1)
        else:
            self.conv_in = nn.Identity() if channels == dim else nn.Conv2d(channels, dim, 1)
            self.conv_out = nn.Identity() if channels == dim else nn.Conv2d(dim, channels, 1)
        self.groups = nn.ModuleList(SwinGroup(options) for _ in range(options.groups))
        for module in self.groups.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def biases(self, height: int, width: int) -> Biases:
        """Attention biases of every block for a grid of height x width; pass them to `forward` to compute them once.

        Raises:
            ValueError: the grid is no multiple of the window.
        """
        if height % self.window or width % self.window:
            raise ValueError(
                f"grid of {height}x{width} positions must be a multiple of window={self.window}; "
                "pad the image first (iter_arch.tiling.pad_to_multiple)"
            )
        device = next(self.groups.parameters()).device
        groups = [[block for block in group.modules() if isinstance(block, SwinBlock)] for group in self.groups]
        shifts = {block.shift for group in groups for block in group}
        masks = {s: shift_mask(height, width, self.window, s, device) if s else None for s in shifts}
        return [[block.attn.bias(masks[block.shift]) for block in group] for group in groups]

    def forward(self, x: Tensor, biases: Biases | None = None) -> Tensor:
        """x (b, channels, h, w), h and w multiples of the window -> (b, channels, h, w)."""
        if biases is None:
            biases = self.biases(*x.shape[-2:])
        y = self.conv_in(x).permute(0, 2, 3, 1).contiguous()
        for group, group_biases in zip(self.groups, biases, strict=True):
            y = group(y, group_biases)
        y = self.conv_out(y.permute(0, 3, 1, 2))
        return x + y if self.residual else y
