"""Selection rules, quantizers and tokenizers of a user's own: FSQ, other factors."""

import pytest
import torch
from small_models import iter_model_of, vqgan_model
from small_networks import TOKENS, VQGAN, config, photo
from torch import nn
from torch.nn import functional as F

import basicsr_compat
import iter_arch
from iter_arch import FSQ, ITER, Encoded, SamplingConfig, SwinVQGAN, VectorQuantizer, load_pretrained, save_pretrained
from iter_arch.pretrained.checkpoint import Checkpoint, build


class PatchTokenizer(nn.Module):
    """A token is a patch of 16x16 pixels, seen through one convolution."""

    factor, window = 16, 8

    def __init__(self, *, num_codes: int = 24, dim: int = 8):
        super().__init__()
        self.num_codes = num_codes
        self.down = nn.Conv2d(3, dim, self.factor, stride=self.factor)
        self.quantizer = VectorQuantizer(num_codes=num_codes, dim=dim)
        self.up = nn.ConvTranspose2d(dim, 3, self.factor, stride=self.factor)

    def encode(self, image):
        latent = self.down(image)
        quantized = self.quantizer(latent)
        return Encoded(latent, quantized.tokens, quantized.loss)

    def decode_codes(self, codes):
        return self.up(codes)

    def decode(self, tokens):
        return self.decode_codes(self.quantizer.codes(tokens)).clamp(0, 1)


basicsr_compat.register("arch", PatchTokenizer)


def test_an_unknown_selection_rule_is_told_the_known_ones():
    with pytest.raises(ValueError, match="selection='evaluate' must be one of evaluator, confidence, halton"):
        SamplingConfig(selection="evaluate")


# Quantizers


@pytest.mark.parametrize("levels", [(8, 8, 8), (8, 5, 5, 5), (2, 3), (64,)], ids=str)
def test_every_code_of_fsq_is_its_own_token_and_is_reached(levels):
    quantizer = FSQ(levels=levels)
    every = torch.arange(quantizer.num_codes).view(1, 1, -1)
    codes = quantizer.codes(every)
    assert codes.abs().max() == 1 and len(codes[0, :, 0].t().unique(dim=0)) == quantizer.num_codes
    # tanh gives every level an equal part of its range.
    z = torch.atanh(codes * (torch.tensor(levels) - 1).view(-1, 1, 1) / torch.tensor(levels).view(-1, 1, 1))
    assert torch.equal(quantizer.tokens(z), every)
    for extreme in (-1e4, 1e4):
        token = quantizer.tokens(torch.full((1, len(levels), 1, 1), extreme)).item()
        assert token == (0 if extreme < 0 else quantizer.num_codes - 1)


def test_fsq_passes_gradients_straight_through_and_has_no_loss():
    quantizer, z = FSQ(levels=(8, 5)), torch.randn(2, 2, 4, 4, requires_grad=True)
    result = quantizer(z)
    assert torch.allclose(result.codes, quantizer.codes(result.tokens)) and result.loss == 0
    result.codes.sum().backward()
    assert (z.grad > 0).all()


@pytest.mark.long
def test_stage_one_trains_with_fsq(tmp_path, monkeypatch):
    monkeypatch.setitem(VQGAN, "quantizer", {"type": "FSQ", "levels": [4, 4, 2]})
    model = vqgan_model(tmp_path, revive_freq=3, quantize_start_iter=2)
    # Smooth photos, of which something can be learned in a few iterations.
    gt = F.interpolate(photo(4, 3, 3, 3), (64, 64), mode="bicubic").clamp(0, 1)
    losses = []
    for iteration in range(1, 41):
        model.feed_data({"gt": gt})
        model.update_learning_rate(iteration)
        model.optimize_parameters(iteration)
        losses.append(model.get_current_log()["l_pix"])
    assert model.net_g.quantizer.num_codes == 32 and sum(losses[-5:]) < 0.7 * sum(losses[2:7])
    assert model.get_current_log()["codes_used"] > 1


def test_the_whole_iter_runs_on_fsq_and_is_saved(tmp_path):
    net = ITER(**(config() | {"vqgan": VQGAN | {"quantizer": {"type": "FSQ", "levels": [4, 4, 2]}}})).eval()
    lq = photo(1, 3, 20, 24)
    faithful = SamplingConfig(fidelity=0.5, alpha=0.9)
    for dtype in (torch.float32, torch.bfloat16):
        assert net.to(dtype).restore(lq, config=faithful).image.shape == (1, 3, 80, 96)
    net.float()
    save_pretrained(net, tmp_path / "net.safetensors")
    assert torch.equal(load_pretrained(tmp_path / "net.safetensors")(lq), net(lq))


def test_an_unknown_quantizer_is_told_the_known_ones():
    with pytest.raises(ValueError, match="quantizer.type='Vector' must be one of VectorQuantizer, FSQ"):
        SwinVQGAN(quantizer={"type": "Vector"})


# Tokenizers


@pytest.mark.parametrize("tile", [None, 32])
def test_a_tokenizer_of_ones_own(tmp_path, tile):
    net = ITER(**(config() | {"vqgan": {"type": "PatchTokenizer"}})).eval()
    assert (net.multiple, len(net.lq_encoder.stem)) == (32, 7)  # a conv, and two stages of a conv and two blocks
    lq = photo(1, 3, 40, 70)
    for sampling in (SamplingConfig(alpha=0.9), SamplingConfig(fidelity=0.5)):
        restored = net.restore(lq, config=sampling, tile=tile)
        assert restored.image.shape == (1, 3, 160, 280) and restored.tokens.shape == (1, 16, 24)
    save_pretrained(net, tmp_path / "net.safetensors")
    assert torch.equal(load_pretrained(tmp_path / "net.safetensors")(lq), net(lq))


def test_stages_two_and_three_train_on_a_tokenizer_of_ones_own(tmp_path, monkeypatch):
    whole = config() | {"vqgan": {"type": "PatchTokenizer"}}
    monkeypatch.setattr("small_models.config", lambda: whole)
    torch.save({"params": ITER(**whole).vqgan.state_dict()}, tmp_path / "tokenizer.pth")
    model = iter_model_of(tmp_path, tmp_path / "tokenizer.pth")
    for iteration in (1, 2):
        model.feed_data({"lq": photo(2, 3, 32, 32), "gt": photo(2, 3, 128, 128)})
        model.update_learning_rate(iteration)
        model.optimize_parameters(iteration)
    assert all(torch.as_tensor(loss).isfinite() for loss in model.get_current_log().values())


def test_what_a_tokenizer_lacks_is_named():
    with pytest.raises(
        ValueError, match="vqgan.type=LQEncoder is not a tokenizer: it has no num_codes, factor, window, encode"
    ):
        ITER(vqgan={"type": "LQEncoder"})
    with pytest.raises(ValueError, match="vqgan.type='Nothing' is not a network in BasicSR's ARCH_REGISTRY"):
        ITER(vqgan={"type": "Nothing"})


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("tile", [None, 128])
def test_tokens_of_16_pixels(scale, tile):
    given = config(scale)
    given["vqgan"] = given["vqgan"] | {"multipliers": [1, 1, 1, 2, 2]}
    net = ITER(**given).eval()
    assert net.vqgan.factor == 16 and net.multiple == 128 // scale
    lq = photo(1, 3, 150 // scale, 200 // scale)
    restored = net.restore(lq, tile=tile)
    assert restored.image.shape == (1, 3, scale * lq.shape[2], scale * lq.shape[3])
    assert restored.tokens.shape == (1, 16, 16)
    again = build(Checkpoint(dict(net.state_dict()), None), "weights")  # the architecture read from keys and shapes
    assert again.scale == scale and torch.equal(again.restore(lq, tile=tile).tokens, restored.tokens)


def test_options_of_swin_blocks_are_a_dataclass():
    options = iter_arch.SwinOptions(dim=16, depth=2, heads=2)
    a, b = (iter_arch.TokenRefiner(num_codes=8, swin=swin) for swin in (options, TOKENS["swin"]))
    assert a.state_dict().keys() == b.state_dict().keys()
    with pytest.raises(ValueError, match="swin.dim=16 must be a multiple of swin.heads=3"):
        iter_arch.SwinOptions(dim=16, heads=3)
    with pytest.raises(ValueError, match="swin.depth=0 must be a whole number from 1 to 100"):
        iter_arch.SwinOptions(depth=0)
