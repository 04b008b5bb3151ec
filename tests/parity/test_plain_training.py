"""A step of the model classes does the work of a plain one: the same losses in float32, with every optimization on."""

import copy

import plain
import pytest
import torch
from small_models import iter_model_of, vqgan_model
from small_networks import photo
from torch.nn import functional as F

from iter_arch.swin import attention_with_bias_gradient

TOLERANCE = 1e-4  # relative


def test_first_step_of_stages_2_and_3(tmp_path):
    model = iter_model_of(tmp_path)
    # Livelier than the initial weights, of which the attention hardly matters.
    for name, parameter in model.net_g.named_parameters():
        parameter.data.mul_(50 if "bias_table" in name else 3 if parameter.ndim > 1 else 1)
    lq, gt = photo(2, 3, 16, 16), photo(2, 3, 64, 64, seed=1)
    net = copy.deepcopy(model.iter)
    masks = model.draw_training_masks(torch.Size((2, 8, 8)))
    model.draw_training_masks = lambda shape: masks
    model.feed_data({"lq": lq, "gt": gt})
    model.optimize_parameters(1)
    expected = plain.token_losses(net, lq, gt, *masks)
    assert {name: model.losses[name].item() for name in expected} == pytest.approx(
        {name: loss.item() for name, loss in expected.items()}, rel=TOLERANCE
    )


def test_first_step_of_stage_1(tmp_path):
    model = vqgan_model(tmp_path, gan_opt={"type": "GANLoss", "gan_type": "hinge", "loss_weight": 0.1})
    training = plain.VQGANTraining(
        copy.deepcopy(model.net_g),
        criteria=model.criteria,
        discriminator=copy.deepcopy(model.net_d),
        gan_loss=model.cri_gan,
    )
    gt = photo(2, 3, 64, 64)
    model.feed_data({"gt": gt})
    model.optimize_parameters(2)
    expected = training.step(gt)
    # One forward for both halves: the spectral norm has made a step less where it sees the fake images.
    assert model.losses.pop("l_d_fake").item() == pytest.approx(expected.pop("l_d_fake"), rel=0.05)
    assert {name: loss.item() for name, loss in model.losses.items()} == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("windows", [1, 3])
def test_attention_that_is_written_out_is_pytorchs(windows):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(6, 2, 16, 8, generator=generator, requires_grad=True) for _ in range(3)]
    bias = torch.randn(windows, 2, 16, 16, generator=generator, requires_grad=True)
    found = attention_with_bias_gradient(*inputs, bias)
    repeated = bias.repeat(6 // windows, 1, 1, 1) if windows > 1 else bias
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=repeated)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    gradients = [torch.autograd.grad(y.square().sum(), [*inputs, bias]) for y in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_fused_adam_is_the_default_and_takes_the_steps_of_the_plain_one(tmp_path):
    optim = {"type": "Adam", "lr": 1e-3, "betas": [0.9, 0.99]}
    fused, loop = (vqgan_model(tmp_path, optim_g=optim | more) for more in ({}, {"foreach": False}))
    assert fused.optimizer_g.defaults["fused"] and not loop.optimizer_g.defaults["fused"]
    for optimizer in (fused.optimizer_g, loop.optimizer_g):
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    for ours, theirs in zip(fused.net_g.parameters(), loop.net_g.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
