"""Networks of other projects in `basicsr test`: any checkpoint that spandrel knows, measured like ITER."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr_compat import register
from basicsr_compat.schema import format_value, section_problems
from iter_arch.color import match_color
from iter_model.options import SpandrelRunOptions, SpandrelValOptions, TrainOptions, read_model_options
from iter_model.peer import load_peer
from iter_model.validation import ValidationMixin

_NO_FILE = "path.pretrain_network_g is missing: name a checkpoint of a network that spandrel knows"


@register("model")
class SpandrelModel(ValidationMixin, BaseModel):
    """Tests the network of path.pretrain_network_g, any file that spandrel knows; it cannot be trained.

    The yml has no network_g, because the file says which network it is.

    Raises:
        ValueError: a section of the options does not fit, or the scale or val.tile does not fit the network.
        NoPeer, FileNotFoundError: see `load_peer`.
    """

    val: SpandrelValOptions
    path_keys = ("pretrain_network_g",)

    @classmethod
    def option_problems(
        cls, opt: Mapping[str, Any], is_train: bool, networks: Mapping[str, nn.Module]
    ) -> Iterator[str]:
        """See `TrainingMixin`."""
        if is_train:
            yield "model_type=SpandrelModel only tests; train with another model_type"
        yield from section_problems(opt, SpandrelRunOptions, "")
        if opt.get("val") is not None:
            yield from section_problems(opt["val"], SpandrelValOptions, "val")
        if not opt["path"].get("pretrain_network_g"):
            yield _NO_FILE

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__(opt)
        if self.is_train:
            raise ValueError("model_type=SpandrelModel only tests")
        self.options = read_model_options(self.opt, TrainOptions, SpandrelValOptions)
        self.val = self.options.val
        self.build_metrics()
        source = self.options.paths.pretrain_network_g
        if source is None:
            raise ValueError(_NO_FILE)
        self.net_g = load_peer(source)
        if opt["scale"] != self.net_g.scale:
            scale = format_value(opt["scale"])
            raise ValueError(
                f"scale={scale} must be {self.net_g.scale}, that of the {self.net_g.architecture} {source}"
            )
        if self.val.tile is not None and self.val.tile < self.net_g.multiple:
            raise ValueError(
                f"val.tile={self.val.tile} must be at least {self.net_g.multiple} for {self.net_g.architecture}"
            )
        self.net_g.to(self.device)
        parameters = sum(parameter.numel() for parameter in self.net_g.parameters()) / 1e6
        get_root_logger().info(f"Loaded {self.net_g.architecture} ({parameters:.1f} M parameters) from {source}")

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """data: 'lq' (b, 3, h, w) and maybe 'gt' (b, 3, H, W), float32 RGB in [0, 1]."""
        self.lq = data["lq"].to(self.device, non_blocking=True)
        self.gt = data["gt"].to(self.device, non_blocking=True) if "gt" in data else None

    def test(self) -> None:
        """self.lq (b, 3, h, w), any size -> self.output (b, 3, s h, s w) in [0, 1]."""
        image = self.net_g.restore(self.lq, tile=self.val.tile).image
        self.output = match_color(image, self.lq, self.val.color_correction, self.val.color_levels)

    def draw(self) -> Tensor:
        """LQ, result, and GT where there is one, side by side, (3, H, n W) in [0, 1]."""
        lq = F.interpolate(self.lq, self.output.shape[-2:], mode="bicubic")
        pictures = [lq, self.output] if self.gt is None else [lq, self.output, self.gt]
        return torch.cat([picture[0].cpu() for picture in pictures], 2)
