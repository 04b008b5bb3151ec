"""ITER for programs built on spandrel (https://github.com/chaiNNer-org/spandrel): importing this module registers it.

    import iter_arch.spandrel_plugin
    model = spandrel.ModelLoader().load_from_file("ITER_x4.pth")

It detects whole ITERs: files of `iter_arch.save_pretrained`, of ``basicsr convert``, and the authors' releases.
spandrel passes on tensors only, so architecture and sampling are stored in one; otherwise keys and shapes tell.
"""

from collections.abc import Mapping
from typing import Any

from iter_arch.iter_arch import ITER
from iter_arch.pretrained.checkpoint import Checkpoint, build, split_config
from iter_arch.pretrained.released import from_released, is_released
from iter_arch.swin import SwinOptions

try:
    from spandrel import MAIN_REGISTRY, Architecture, ArchRegistry, ArchSupport, ImageModelDescriptor, ModelTiling
    from spandrel.util import KeyCondition
except ImportError as error:
    raise ImportError(f"iter_arch.spandrel_plugin needs spandrel ({error}); pip install spandrel") from error

# Pixels of the restored image above which it is restored in tiles.
TILE = 1024


class ITERArch(Architecture[ITER]):
    """Tells spandrel whether a state dict is an ITER's, and loads it."""

    def __init__(self) -> None:
        super().__init__(
            id="ITER",
            detect=KeyCondition.has_any(
                KeyCondition.has_all(
                    "lq_encoder.stem.0.weight", "refiner.embedding.weight", "evaluator.embedding.weight"
                ),
                KeyCondition.has_all(
                    "lq_encoder.model.0.weight",
                    "token_refine_net.token_refine_net.code_emb.weight",
                    "token_refine_net.token_crit_net.code_emb.weight",
                ),
            ),
        )

    def load(self, state_dict: Mapping[str, Any]) -> ImageModelDescriptor[ITER]:
        """The model with these weights; with the sampling that they are tuned for, seed 0, and tiles for large images.

        Raises:
            ValueError: the weights are not those of a whole ITER; a released checkpoint without VQGAN is completed by
                ``basicsr convert --vqgan``.
        """
        state, config = split_config(state_dict, "the state dict")
        state = from_released(state) if is_released(state) else state
        net = build(Checkpoint(state, config), "the state dict")
        tile = max(TILE // net.scale, net.multiple)
        swin = SwinOptions().updated(net.config["refiner"].get("swin"))
        return ImageModelDescriptor(
            net,
            state,
            architecture=self,
            purpose="SR" if net.scale > 1 else "Restoration",
            tags=[f"{swin.dim}dim", f"{swin.groups * swin.depth}blocks"],
            supports_half=False,
            supports_bfloat16=True,
            scale=net.scale,
            input_channels=3,
            output_channels=3,
            tiling=ModelTiling.INTERNAL,
            call_fn=lambda model, image: model.restore(image, tile=tile).image,
        )


def install(registry: ArchRegistry = MAIN_REGISTRY) -> None:
    """Add ITER to a registry of spandrel; the main one has it as soon as this module is imported."""
    registry.add(ArchSupport.from_architecture(ITERArch()), ignore_duplicates=True)


install()
