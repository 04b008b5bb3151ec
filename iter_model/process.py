"""A picture of how sampling restores an image, for TensorBoard."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from iter_arch.tokenizer import Tokenizer

# (t, tokens, mask), as `ITER.restore` reports them.
Step = tuple[int, Tensor, Tensor]


def masked_picture(vqgan: Tokenizer, tokens: Tensor, mask: Tensor) -> Tensor:
    """tokens (b, h, w) int64, mask (b, h, w) bool, False = masked -> (b, 3, H, W) in [0, 1], dark where masked."""
    image = vqgan.decode(tokens)
    kept = F.interpolate(mask[:, None].float(), image.shape[-2:], mode="nearest")
    return image * (0.25 + 0.75 * kept)


@torch.no_grad()
def picture_of_process(
    vqgan: Tokenizer, lq: Tensor, steps: Sequence[Step], output: Tensor, gt: Tensor | None
) -> Tensor:
    """Show lq, the decoded S_l, every step with masked tokens dark, the result, and gt side by side.

    Args:
        vqgan: decodes the tokens.
        lq: (1, 3, H/s, W/s) in [0, 1].
        steps: (t, tokens (1, h, w), mask (1, h, w)) as `ITER.restore` reports them, the first before the first draw.
        output: (1, 3, H, W) in [0, 1].
        gt: like output, or None.

    Returns:
        (3, H, n W), in [0, 1].
    """
    height, width = output.shape[-2:]
    columns = [F.interpolate(lq, (height, width), mode="nearest")]
    # The first tokens are S_l; the mask does not change them.
    columns.append(vqgan.decode(steps[0][1])[..., :height, :width])
    columns += [masked_picture(vqgan, tokens, mask)[..., :height, :width] for _, tokens, mask in steps[:-1]]
    columns.append(output)
    if gt is not None:
        columns.append(gt)
    return torch.cat(columns, dim=3)[0]
