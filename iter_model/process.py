"""A picture of how an image came about, for TensorBoard."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Step = tuple[int, Tensor, Tensor]


def masked_picture(vqgan: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """tokens (b, h, w) int64, mask (b, h, w) bool, False = masked -> image (b, 3, H, W), dark where it is masked."""
    image = vqgan.decode(tokens)
    kept = nn.functional.interpolate(mask[:, None].float(), image.shape[-2:], mode="nearest")
    return image * (0.25 + 0.75 * kept)


@torch.no_grad()
def picture_of_process(
    vqgan: nn.Module, lq: Tensor, steps: Sequence[Step], output: Tensor, gt: Tensor | None
) -> Tensor:
    """lq, S_l decoded, every step (what is masked there is dark), result and gt side by side.

    Args:
        lq: (1, 3, H/s, W/s). output, gt: (1, 3, H, W); without gt its column is left out.
        steps: (t, tokens (1, h, w), mask (1, h, w)) as `ITER.restore` tells them, the first before the first draw.

    Returns:
        (3, H, n W), in [0, 1].
    """
    height, width = output.shape[-2:]
    columns = [nn.functional.interpolate(lq, (height, width), mode="nearest")]
    # Sampling starts from S_l, whatever of it is masked.
    columns.append(vqgan.decode(steps[0][1])[..., :height, :width])
    columns += [masked_picture(vqgan, tokens, mask)[..., :height, :width] for _, tokens, mask in steps[:-1]]
    columns.append(output)
    if gt is not None:
        columns.append(gt)
    return torch.cat(columns, dim=3)[0]
