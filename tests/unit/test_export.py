"""torch.export of the four networks with dynamic sizes: the same outputs, and the network stays usable."""

import pytest
import torch
from small_networks import RELEASED_FORM, photo, small_iter
from torch.export import Dim, export

pytestmark = pytest.mark.long


def tokens(*shape, seed=0):
    return torch.randint(32, shape, generator=torch.Generator().manual_seed(seed))


def mask(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


class Decoder(torch.nn.Module):
    def __init__(self, vqgan):
        super().__init__()
        self.vqgan = vqgan

    def forward(self, tokens):
        return self.vqgan.decode(tokens)


def cases(net):
    """Name: (module, its inputs for a map of b x h x w tokens, LQ or HQ pixels per token)."""
    return {
        "vqgan": (net.vqgan, lambda b, h, w: (photo(b, 3, 8 * h, 8 * w),), 8),
        "decoder": (Decoder(net.vqgan), lambda b, h, w: (tokens(b, h, w),), 1),
        "lq_encoder": (net.lq_encoder, lambda b, h, w: (photo(b, 3, 2 * h, 2 * w),), 2),
        "refiner": (
            net.refiner,
            lambda b, h, w: (tokens(b, h, w), mask(b, h, w), tokens(b, h, w, seed=2), mask(b, h, w, seed=3)),
            1,
        ),
        "evaluator": (net.evaluator, lambda b, h, w: (tokens(b, h, w), tokens(b, h, w, seed=2)), 1),
    }


@pytest.mark.parametrize("form", [{}, RELEASED_FORM], ids=["paper", "released"])
@pytest.mark.parametrize("name", ["vqgan", "decoder", "lq_encoder", "refiner", "evaluator"])
def test_an_exported_network_computes_the_same_at_other_sizes(name, form):
    net = small_iter(**form).requires_grad_(False)
    module, inputs, unit = cases(net)[name]
    before = module(*inputs(2, 16, 24))
    rows, columns, batch = Dim("rows", min=2, max=64), Dim("columns", min=2, max=64), Dim("batch", min=2, max=16)
    example = inputs(2, 16, 24)
    shapes = [{0: batch, x.ndim - 2: 8 * unit * rows, x.ndim - 1: 8 * unit * columns} for x in example]
    program = export(module, example, dynamic_shapes=tuple(shapes)).module()
    for size in ((2, 16, 24), (3, 32, 16)):
        expected, found = module(*inputs(*size)), program(*inputs(*size))
        for one, other in zip(flat(expected), flat(found), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    # No tensor of the export is left behind.
    for one, other in zip(flat(before), flat(module(*inputs(2, 16, 24))), strict=True):
        assert torch.equal(one, other) and type(other) is torch.Tensor


def flat(output):
    return [output] if isinstance(output, torch.Tensor) else list(output)
