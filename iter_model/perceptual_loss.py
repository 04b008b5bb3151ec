"""The SSIM and perceptual losses of stage I (ITER, arXiv:2312.05616, Sec. 3.1), computed by pyiqa."""

from typing import Any

from torch import Tensor, nn

from basicsr_compat import register


@register("loss")
class SSIMLoss(nn.Module):
    """loss_weight * (1 - SSIM): images (b, 3, H, W) in [0, 1], sides >= 11 -> () float32."""

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        from pyiqa.archs.ssim_arch import ssim  # slow to import

        self.ssim = ssim

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """image, target (b, 3, H, W) in [0, 1] -> () float32."""
        return self.loss_weight * (1 - self.ssim(image.float(), target.float(), data_range=1.0).mean())


@register("loss")
class PyIQALoss(nn.Module):
    """loss_weight * a metric of pyiqa that has gradients: images (b, 3, H, W) in [0, 1] -> () float32.

    A metric of which higher values are better counts as 1 - metric.

    Args:
        metric: pyiqa's name, such as 'lpips' or 'lpips-vgg'.
        options: further arguments of the metric; ``pretrained_model_path`` names weights on disk.

    Raises:
        ValueError: see `create_metric`.
    """

    def __init__(self, metric: str = "lpips", loss_weight: float = 1.0, **options: Any) -> None:
        super().__init__()
        from iter_model.pyiqa_metric import create_metric

        self.loss_weight = loss_weight
        self.metric = create_metric(metric, as_loss=True, **options)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """image (b, 3, H, W), clamped to [0, 1], target (b, 3, H, W) -> () float32."""
        score = self.metric(image.float().clamp(0, 1), target.float())
        return self.loss_weight * (score if self.metric.lower_better else 1 - score)
