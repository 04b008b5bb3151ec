"""The networks, the sampling and the losses against `benchmarks/plain.py`, the straightforward reading of the paper."""

import copy

import plain
import pytest
import torch
from basicsr.losses import build_loss
from small_networks import RELEASED_FORM, photo, small_iter

from iter_arch import ITER, SamplingConfig
from iter_data import SecondOrderDegradation
from iter_model.iter_model import TrainedNetworks
from iter_model.token_loss import EvaluatorLoss, TokenCrossEntropy

# Largest difference of an image in [0, 1], of a loss or of a gradient relative to its largest entry.
TOLERANCE = 1e-4
FORMS = pytest.mark.parametrize("form", [{}, RELEASED_FORM], ids=["paper", "released"])


def near(found, expected):
    return (found - expected).abs().max() <= TOLERANCE * max(1e-3, expected.abs().max())


@FORMS
@pytest.mark.parametrize("adaptive", [True, False])
def test_restored_tokens_are_those_of_the_plain_reading(form, adaptive):
    net, lq = small_iter(**form), photo(3, 3, 20, 40)
    config = SamplingConfig(adaptive=adaptive, alpha=0.6)
    found, expected = net.restore(lq, config=config, seed=1), plain.restore(net, lq, config=config, seed=1)
    assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.start_step, expected.start_step)
    assert found.start_step.max() > 1 and near(found.image, expected.image)


@pytest.mark.slow
def test_restored_tokens_at_the_papers_size():
    torch.manual_seed(0)
    net, lq = ITER().eval(), photo(1, 3, 128, 128)
    for part in (net.lq_encoder, net.refiner, net.evaluator):
        part.head.weight.data.mul_(8)
    config = SamplingConfig(adaptive=False)
    found, expected = net.restore(lq, config=config), plain.restore(net, lq, config=config)
    assert torch.equal(found.tokens, expected.tokens) and near(found.image, expected.image)


def test_another_sampling_than_the_papers_is_refused():
    with pytest.raises(ValueError, match="not the paper's Algorithm 2"):
        plain.restore(small_iter(), photo(1, 3, 16, 16), config=SamplingConfig.released())


@FORMS
def test_losses_and_gradients_of_stages_2_and_3(form):
    net = small_iter(**form)
    lq, gt = photo(2, 3, 16, 32), photo(2, 3, 64, 128, seed=1)
    m_t, alpha, uniform = masks = plain.draw_masks((2, 8, 16), "cosine", torch.Generator().manual_seed(0))
    assert 1 <= (~m_t).flatten(1).sum(1).min() and m_t.any()
    S_h = net.vqgan.encode(gt).tokens
    predicted = TrainedNetworks(net)(lq, S_h, m_t, alpha, uniform)
    good_l, good_r = predicted.S_l == S_h, predicted.S_r == S_h
    found = {
        "l_dist": TokenCrossEntropy()(predicted.lq_logits, S_h),
        "l_r": TokenCrossEntropy()(predicted.refiner_logits, S_h),
        "l_e": EvaluatorLoss()(predicted.drawn_logits, good_r, predicted.evaluator_logits, good_l),
    }
    expected = plain.token_losses(net, lq, gt, *masks)
    trained = dict(TrainedNetworks(net).named_parameters())
    for name, loss in expected.items():
        assert near(found[name], loss), name
    gradients = [torch.autograd.grad(sum(losses.values()), trained.values()) for losses in (found, expected)]
    for name, ours, theirs in zip(trained, *gradients, strict=True):
        assert near(ours, theirs), name


def test_losses_and_gradients_of_stage_1():
    net, gt = small_iter().vqgan.train(), photo(2, 3, 64, 64)
    criteria = {"l_pix": build_loss({"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"})}
    output = net(gt)
    found = {"l_vq": output.loss, "l_pix": criteria["l_pix"](output.image, gt)}
    expected, image = plain.vqgan_losses(net, gt, criteria)
    assert near(output.image, image) and found.keys() == expected.keys()
    for name, loss in expected.items():
        assert near(found[name], loss), name
    gradients = [torch.autograd.grad(sum(losses.values()), net.parameters()) for losses in (found, expected)]
    for (name, _), ours, theirs in zip(net.named_parameters(), *gradients, strict=True):
        assert near(ours, theirs), name


def test_plain_steps_train():
    net, generator = small_iter(), torch.Generator().manual_seed(0)
    ema = copy.deepcopy(net)
    degradation = plain.Degradation(
        SecondOrderDegradation(), scale=4, gt_size=64, device=torch.device("cpu"), queue_size=4
    )
    kernel = torch.zeros(2, 21, 21)
    kernel[:, 10, 10] = 1
    kernels = {name: kernel for name in ("kernel1", "kernel2", "sinc_kernel")}
    degradation.feed_data({"gt": photo(2, 3, 64, 64, seed=1)} | kernels)
    training = plain.TokenTraining(net, ema=ema, lr=1e-3)
    losses = [sum(training.step(degradation.lq, degradation.gt, generator).values()) for _ in range(12)]
    assert losses[-1] < losses[0]
    changed = [not torch.equal(a, b) for a, b in zip(net.parameters(), ema.parameters(), strict=True)]
    assert sum(changed) == len(list(TrainedNetworks(net).parameters()))

    net = small_iter().vqgan.train()
    discriminator = torch.nn.Conv2d(3, 1, 3)
    gan = build_loss({"type": "GANLoss", "gan_type": "hinge", "loss_weight": 0.1})
    criteria = {"l_pix": build_loss({"type": "L1Loss"})}
    training = plain.VQGANTraining(net, criteria=criteria, discriminator=discriminator, gan_loss=gan, lr=1e-3)
    steps = [training.step(degradation.gt) for _ in range(8)]
    assert steps[0].keys() == {"l_pix", "l_vq", "l_gan", "l_d_real", "l_d_fake"}
    assert steps[-1]["l_pix"] < steps[0]["l_pix"]
