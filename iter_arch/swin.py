"""Window attention and Swin stages, the transformer part of all four networks (ITER, arXiv:2312.05616, Sec. 3 and 4.1;
Swin Transformer, arXiv:2103.14030; residual groups: SwinIR, arXiv:2108.10257)."""

from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr_compat.schema import Count, Layers, Positive


def relative_position_index(window: int) -> Tensor:
    """Index of each (query, key) pair of a window into the bias table: (n, n) int64, n = window^2."""
    axis = torch.arange(window)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    offset = grid[:, :, None] - grid[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


@lru_cache(maxsize=32)
def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Attention mask of shifted windows: (windows, n, n) float32, -100 between positions that are not neighbours."""
    regions = torch.zeros(height, width, device=device)
    bounds = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(bounds):
        for j, columns in enumerate(bounds):
            regions[rows, columns] = 3 * i + j
    regions = partition(regions[None, :, :, None], window).flatten(1)
    return (regions[:, :, None] != regions[:, None, :]).float() * -100.0


def partition(x: Tensor, window: int) -> Tensor:
    """(b, h, w, c) -> (b * windows, window^2, c)."""
    return rearrange(x, "b (h i) (w j) c -> (b h w) (i j) c", i=window, j=window)


def merge(windows: Tensor, shape: torch.Size, window: int) -> Tensor:
    """Inverse of `partition`; ``shape`` is that of the result, (b, h, w, c)."""
    h, w = shape[1] // window, shape[2] // window
    return rearrange(windows, "(b h w) (i j) c -> b (h i) (w j) c", h=h, w=w, i=window)


def attention_with_bias_gradient(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention (b * windows, heads, n, d) with a bias (1 or windows, heads, n, n), its softmax in float32.

    On a CPU PyTorch's own falls back to twice the time where the bias needs a gradient.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    scores = (scores.unflatten(0, (-1, len(bias))) + bias).flatten(0, 1)
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows: (b * windows, n, c) -> (b * windows, n, c)."""

    def __init__(self, dim: int, *, heads: int, window: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} must be a multiple of heads={heads}")
        self.heads = heads
        self.window = window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def bias(self, mask: Tensor | None) -> Tensor:
        """Position bias (1, heads, n, n); with a shift mask (windows, n, n) the sum of both, (windows, heads, n, n)."""
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None].contiguous()
        return bias if mask is None else (mask[:, None] + bias).to(bias.dtype)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        bw, n, c = x.shape
        query, key, value = self.qkv(x).view(bw, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if bias.requires_grad and x.device.type == "cpu":
            y = attention_with_bias_gradient(query, key, value, bias)
        else:
            bias = bias.to(query.dtype)
            if bias.shape[0] not in (1, bw):
                bias = bias.repeat(bw // bias.shape[0], 1, 1, 1)
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
        y = F.gelu(self.fc1(x))
        if self.gate is not None:
            y = y * self.gate(y.mean(dim=(1, 2), keepdim=True))
        return self.fc2(y)


class SwinBlock(nn.Module):
    """Window attention and MLP, each after LayerNorm and with a skip: (b, h, w, c) -> (b, h, w, c)."""

    def __init__(self, dim: int, *, heads: int, window: int, shift: int, mlp_ratio: float, gate: bool) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads=heads, window=window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, ratio=mlp_ratio, gate=gate)

    def bias(self, height: int, width: int) -> Tensor:
        """What `forward` needs besides x for a grid of this size; constant as long as the weights are."""
        table = self.attn.relative_position_bias_table
        mask = shift_mask(height, width, self.window, self.shift, table.device) if self.shift else None
        return self.attn.bias(mask)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
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

    def __init__(self, dim: int, *, depth: int, residual: bool, window: int, **block) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(dim, window=window, shift=window // 2 if i % 2 else 0, **block) for i in range(depth)
        )
        self.conv = nn.Conv2d(dim, dim, 3, padding=1) if residual else None

    def forward(self, x: Tensor, biases: list[Tensor]) -> Tensor:
        y = x
        for block, bias in zip(self.blocks, biases, strict=True):
            y = block(y, bias)
        if self.conv is None:
            return y
        return x + self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SwinStage(nn.Module):
    """A run of Swin blocks on a feature map: (b, channels, h, w) -> (b, channels, h, w).

    h and w must be multiples of the window; anything else is a ValueError.

    Args:
        channels: channels of the map.
        dim: channels inside the blocks.
        depth: Swin blocks a group.
        groups: number of groups.
        heads, window, mlp_ratio: of every block; every second block is shifted by half a window.
        residual_groups: SwinIR's form, as in the authors' released networks: conv3x3 before and after, a skip over all,
            and every group closed by a conv3x3 and a skip. Otherwise (the paper's form) the blocks alone, between two
            1x1 convs where ``channels`` differs from ``dim``.
        gate: squeeze-and-excitation gate in the MLPs (released networks).
    """

    def __init__(
        self,
        channels: int,
        *,
        dim: Count,
        depth: Layers,
        groups: Layers = 1,
        heads: Count = 8,
        window: Count = 8,
        mlp_ratio: Positive = 4.0,
        residual_groups: bool = False,
        gate: bool = False,
    ) -> None:
        super().__init__()
        self.window = window
        self.residual = residual_groups
        if residual_groups:
            self.conv_in = nn.Conv2d(channels, dim, 3, padding=1)
            self.conv_out = nn.Conv2d(dim, channels, 3, padding=1)
        else:
            self.conv_in = nn.Identity() if channels == dim else nn.Conv2d(channels, dim, 1)
            self.conv_out = nn.Identity() if channels == dim else nn.Conv2d(dim, channels, 1)
        self.groups = nn.ModuleList(
            SwinGroup(
                dim, depth=depth, residual=residual_groups, heads=heads, window=window, mlp_ratio=mlp_ratio, gate=gate
            )
            for _ in range(groups)
        )
        for module in self.groups.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def biases(self, height: int, width: int) -> list[list[Tensor]]:
        """Attention biases of every block for a grid of h x w; pass them to `forward` to compute them only once."""
        if height % self.window or width % self.window:
            raise ValueError(
                f"grid of {height}x{width} positions must be a multiple of window={self.window}; "
                "pad the image first (iter_arch.tiling.pad_to_multiple)"
            )
        return [[block.bias(height, width) for block in group.blocks] for group in self.groups]

    def forward(self, x: Tensor, biases: list[list[Tensor]] | None = None) -> Tensor:
        if biases is None:
            biases = self.biases(*x.shape[-2:])
        y = self.conv_in(x).permute(0, 2, 3, 1).contiguous()
        for group, group_biases in zip(self.groups, biases, strict=True):
            y = group(y, group_biases)
        y = self.conv_out(y.permute(0, 3, 1, 2))
        return x + y if self.residual else y
