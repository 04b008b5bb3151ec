"""Stage IV: the decoder alone learns, on the codes that it gets at test time."""

import pytest
import torch
from small_models import decoder_model
from small_networks import photo, small_iter

from iter_arch import load_pretrained
from iter_arch.color import low_frequencies
from iter_arch.quantizer import expected_codes

PAIRS = {"lq": photo(4, 3, 16, 16), "gt": photo(4, 3, 64, 64, seed=1)}
GAN = {"gan_opt": {"type": "GANLoss", "gan_type": "hinge", "loss_weight": 0.1}}


@pytest.fixture
def net():
    return small_iter()


def train(model, iterations, data=PAIRS, first=1):
    losses = []
    for current_iter in range(first, first + iterations):
        model.generator.manual_seed(current_iter)
        model.feed_data(data)
        model.optimize_parameters(current_iter)
        losses.append(model.get_current_log())
    return losses


def draw(model, **ratios):
    """`draw_codes` with these ratios and no others."""
    options = {"expected_ratio": 0.0, "refined_ratio": 0.0, "gt_ratio": 0.0, "mild_ratio": 0.0} | ratios
    for name, value in options.items():
        object.__setattr__(model.train, name, value)
    model.feed_data(PAIRS)
    model.generator.manual_seed(0)
    return model.draw_codes()


def test_only_the_decoder_changes(net, tmp_path):
    model = decoder_model(tmp_path, net, **GAN)
    log = train(model, 3)
    assert set(log[0]) == {"l_pix", "l_gan", "l_d_real", "l_d_fake"}
    for name, value in model.iter.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]) != name.startswith("vqgan.decoder."), name


@pytest.mark.long
def test_the_decoder_learns(net, tmp_path):
    log = train(decoder_model(tmp_path, net, gt_ratio=0.0, expected_ratio=1.0), 40)
    assert log[-1]["l_pix"] < 0.9 * log[0]["l_pix"]


def test_expected_codes_alone(net, tmp_path):
    model = decoder_model(tmp_path, net)
    drawn = draw(model, expected_ratio=1.0)
    expected = expected_codes(model.iter.vqgan.quantizer, model.iter.lq_encoder(PAIRS["lq"]))
    assert torch.allclose(drawn.codes, expected, atol=1e-6) and torch.equal(drawn.lq, PAIRS["lq"])


def test_fidelity_is_drawn_for_every_image(net, tmp_path):
    model = decoder_model(tmp_path, net)
    drawn = draw(model)
    logits, quantizer = model.iter.lq_encoder(PAIRS["lq"]), model.iter.vqgan.quantizer
    start, expected = quantizer.codes(logits.argmax(1)), expected_codes(quantizer, logits)
    shares = ((drawn.codes - start) / (expected - start)).flatten(1).median(1).values
    assert torch.allclose(drawn.codes, start.lerp(expected, shares[:, None, None, None]), atol=1e-4)
    assert len(shares.unique()) == 4 and shares.min() > 0 and shares.max() < 1


def test_tokens_of_the_ground_truth(net, tmp_path):
    model = decoder_model(tmp_path, net)
    drawn, quantizer = draw(model, gt_ratio=1.0), model.iter.vqgan.quantizer
    tokens = model.iter.vqgan.encode(PAIRS["gt"]).tokens
    assert torch.equal(drawn.codes, quantizer.codes(tokens))
    shrunk = torch.nn.functional.interpolate(PAIRS["gt"], scale_factor=0.25, mode="bicubic", antialias=True)
    assert torch.equal(drawn.lq, shrunk.clamp(0, 1))


def test_refined_tokens_come_from_phi_r(net, tmp_path):
    model = decoder_model(tmp_path, net)
    plain, refined = draw(model), draw(model, refined_ratio=1.0)
    assert not torch.equal(plain.codes, refined.codes)
    # Drawn from another stream, they are others.
    model.generator.manual_seed(1)
    assert not torch.equal(model.draw_codes().codes, refined.codes)


def test_a_mild_degradation_is_between_the_lq_and_the_shrunk_ground_truth(net, tmp_path):
    drawn = draw(decoder_model(tmp_path, net), mild_ratio=1.0)
    clean = torch.nn.functional.interpolate(PAIRS["gt"], scale_factor=0.25, mode="bicubic", antialias=True).clamp(0, 1)
    shares = ((drawn.lq - PAIRS["lq"]) / (clean - PAIRS["lq"])).flatten(1).median(1).values
    assert torch.allclose(drawn.lq, PAIRS["lq"].lerp(clean, shares[:, None, None, None]), atol=1e-4)
    assert 1 <= (shares == 1).sum() < 4 and shares.min() > 0


def test_color_is_in_the_loop_where_val_corrects_it(net, tmp_path):
    image = photo(2, 3, 64, 64)
    for method in ("adain", "none"):
        model = decoder_model(tmp_path, net, color_correction=method)
        assert torch.equal(model.corrected(image, PAIRS["lq"][:2]), image)
    model = decoder_model(tmp_path, net)
    corrected = model.corrected(image, PAIRS["lq"][:2])
    upsampled = torch.nn.functional.interpolate(PAIRS["lq"][:2], scale_factor=4, mode="bicubic").clamp(0, 1)
    expected = image - low_frequencies(image) + low_frequencies(upsampled)
    assert torch.allclose(corrected, expected, atol=1e-5)
    # A cast costs nothing and is not learned from.
    shifted = (image + 0.1).requires_grad_()
    (gradient,) = torch.autograd.grad((model.corrected(shifted, PAIRS["lq"][:2]) - corrected).square().sum(), shifted)
    assert gradient.abs().max() < 1e-4


def test_the_whole_iter_that_is_saved_has_the_averaged_decoder(net, tmp_path):
    model = decoder_model(tmp_path, net)
    train(model, 3)
    model.save(0, -1)
    saved = load_pretrained(tmp_path / "models/iter_latest.safetensors").state_dict()
    for name, value in net.state_dict().items():
        expected = model.iter_ema.state_dict()[name] if name.startswith("vqgan.decoder.") else value
        assert torch.equal(saved[name], expected), name
    assert any(not torch.equal(saved[name], model.iter.state_dict()[name]) for name in saved)


def test_a_resumed_run_continues_with_the_same_losses(net, tmp_path):
    model = decoder_model(tmp_path, net, **GAN)
    train(model, 2)
    model.save(0, 2)
    straight = train(model, 2, first=3)
    saved = {f"pretrain_network_{label}": str(tmp_path / f"models/net_{label}_2.pth") for label in "gd"}
    again = decoder_model(tmp_path, net, path=saved, **GAN)
    again.resume_training(torch.load(tmp_path / "training_states/2.state", weights_only=True))
    assert train(again, 2, first=3) == straight


def test_without_a_whole_iter_it_says_what_is_missing(net, tmp_path):
    with pytest.raises(ValueError, match="path.pretrain_network_iter is missing"):
        decoder_model(tmp_path, net, path={"pretrain_network_iter": None})


def test_validation_uses_the_averaged_decoder_and_leaves_the_trained_one_in_its_mode(net, tmp_path):
    model = decoder_model(tmp_path, net)
    train(model, 2)
    model.feed_data(PAIRS)
    model.test()
    assert model.output.shape == (4, 3, 64, 64) and model.net_g.training
