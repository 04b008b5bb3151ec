"""Small networks for the tests: every part is there, nothing is large."""

import torch

from iter_arch import ITER

VQGAN = {
    "base_channels": 8,
    "res_blocks": 1,
    "quantizer": {"num_codes": 32, "dim": 8},
    "swin": {"dim": 16, "depth": 2, "heads": 2},
}
TOKENS = {"swin": {"dim": 16, "depth": 2, "heads": 2}}
RELEASED_FORM = {"groups": 2, "residual_groups": True, "gate": True}


def config(scale: int = 4, **form) -> dict:
    """Constructor arguments of a small ITER; ``form`` goes to every Swin stage."""
    vqgan_form = {key: value for key, value in form.items() if key != "groups"}
    return {
        "scale": scale,
        "vqgan": VQGAN | {"swin": VQGAN["swin"] | vqgan_form},
        "lq_encoder": {"stem_channels": 8, "swin": TOKENS["swin"] | form},
        "refiner": {"swin": TOKENS["swin"] | form},
        "evaluator": {"swin": TOKENS["swin"] | form},
    }


def small_iter(scale: int = 4, seed: int = 0, **form) -> ITER:
    """A small ITER in eval mode with random weights, livelier than the initial ones, so that tokens vary."""
    torch.manual_seed(seed)
    net = ITER(**config(scale, **form)).eval()
    with torch.no_grad():
        net.vqgan.quantizer.embedding.weight.normal_()
        for part in (net.lq_encoder, net.refiner, net.evaluator):
            part.head.weight.mul_(8)
    return net


def photo(*size: int, seed: int = 0) -> torch.Tensor:
    """(b, 3, h, w) in [0, 1]."""
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))
