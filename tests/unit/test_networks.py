"""The four networks against straightforward readings of the paper."""

import math

import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from small_models import sr_options
from small_networks import RELEASED_FORM, config, photo, small_iter
from torch.nn import functional as F

from iter_arch import ITER, LQEncoder, SwinVQGAN, TokenEvaluator, TokenRefiner
from iter_arch.layers import group_norm
from iter_arch.quantizer import VectorQuantizer
from iter_arch.swin import SwinOptions, SwinStage, WindowAttention, merge, partition, shift_mask


def tokens(*shape, codes=32, seed=0):
    return torch.randint(codes, shape, generator=torch.Generator().manual_seed(seed))


def mask(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


FORMS = [{}, RELEASED_FORM]


@pytest.mark.parametrize("form", FORMS, ids=["paper", "released"])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_shapes_and_ranges(scale, form):
    net = small_iter(scale, **form)
    lq = photo(2, 3, 64 // scale, 128 // scale)
    with torch.no_grad():
        assert net.lq_encoder(lq).shape == (2, 32, 8, 16)
        S, m = tokens(2, 8, 16), mask(2, 8, 16)
        assert net.refiner(S, m, S, m).shape == (2, 32, 8, 16)
        assert net.evaluator(S, S).shape == (2, 2, 8, 16)
        encoded = net.vqgan.encode(photo(2, 3, 64, 128))
        assert encoded.latent.shape == (2, 8, 8, 16) and encoded.tokens.shape == (2, 8, 16) and encoded.loss.ndim == 0
        image = net.vqgan.decode(S)
    assert image.shape == (2, 3, 64, 128) and image.min() >= 0 and image.max() <= 1


def test_networks_of_the_papers_size():
    count = {
        network.__name__: round(sum(p.numel() for p in network().parameters()) / 1e6, 1)
        for network in (SwinVQGAN, LQEncoder, TokenRefiner, TokenEvaluator)
    }
    assert count == {"SwinVQGAN": 64.1, "LQEncoder": 10.3, "TokenRefiner": 9.9, "TokenEvaluator": 9.8}


@pytest.mark.parametrize("name", ["ITER", "SwinVQGAN", "LQEncoder", "TokenRefiner", "TokenEvaluator"])
def test_networks_can_be_named_in_a_yml(name):
    small = config()
    options = {
        "ITER": small,
        "SwinVQGAN": small["vqgan"],
        "LQEncoder": small["lq_encoder"],
        "TokenRefiner": small["refiner"],
        "TokenEvaluator": small["evaluator"],
    }[name]
    assert type(build_network({"type": name, **options})).__name__ == name


@pytest.mark.parametrize("form", FORMS, ids=["paper", "released"])
def test_refiner_equals_convolutions_on_one_hot_maps(form):
    """DESIGN of the released networks: 1x1 embedding and mixing of one-hot maps with a channel for the mask."""
    net = small_iter(**form).refiner
    S_t, S_l, m_t, m_l = tokens(2, 8, 8), tokens(2, 8, 8, seed=5), mask(2, 8, 8), mask(2, 8, 8, seed=6)

    def embed(map_, token_channels, mask_channel):
        one_hot = F.one_hot(map_, 33).movedim(-1, 1).float()
        one_hot = one_hot * token_channels[:, None]
        one_hot[:, 32] = mask_channel
        return F.conv2d(one_hot, net.embedding.weight.t()[..., None, None])

    ones = torch.ones_like(S_l).float()
    first = embed(S_l, ones, 1 - m_l.float())
    second = embed(S_t, m_t.float(), 1 - m_t.float())
    weight = torch.cat([net.mix_l.weight, net.mix_t.weight], 1)[..., None, None]
    mixed = F.conv2d(torch.cat([first, second], 1), weight)
    expected = net.head(F.silu(net.norm(net.swin(mixed))))
    assert torch.allclose(net(S_t, m_t, S_l, m_l), expected, atol=1e-4)


def test_a_masked_position_contributes_only_the_mask_embedding():
    net = small_iter().refiner
    S_t, S_l, m = tokens(1, 8, 8), tokens(1, 8, 8, seed=5), mask(1, 8, 8)
    changed = torch.where(m, S_t, (S_t + 1) % 32)
    everything = torch.ones_like(m)
    assert torch.equal(net(S_t, m, S_l, everything), net(changed, m, S_l, everything))
    assert not torch.equal(net(S_t, everything, S_l, everything), net(changed, everything, S_l, everything))


def test_S_l_is_seen_where_it_is_bad():
    net = small_iter().refiner
    S, m = tokens(1, 8, 8), mask(1, 8, 8)
    nothing = torch.zeros_like(m)
    assert not torch.allclose(net(S, m, S, nothing), net(S, m, (S + 1) % 32, nothing))
    assert not torch.allclose(net(S, m, S, nothing), net(S, m, S, ~nothing))


def test_context_computed_once_gives_the_same_logits():
    net = small_iter()
    S, S_l, m = tokens(2, 8, 16), tokens(2, 8, 16, seed=3), mask(2, 8, 16)
    assert torch.equal(net.evaluator.logits(S, net.evaluator.context(S_l)), net.evaluator(S, S_l))
    context = net.refiner.context(S_l, m, net.refiner.swin.biases(8, 16))
    assert torch.equal(net.refiner.logits(S, m, context), net.refiner(S, m, S_l, m))


def test_window_attention_equals_the_formula():
    torch.manual_seed(0)
    attention = WindowAttention(8, heads=2, window=4)
    torch.nn.init.normal_(attention.relative_position_bias_table)
    x = torch.randn(3, 16, 8)
    query, key, value = attention.qkv(x).chunk(3, -1)
    expected = torch.empty(3, 16, 8)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        scores = query[..., part] @ key[..., part].mT / math.sqrt(4)
        for i in range(16):
            for j in range(16):
                dy, dx = i // 4 - j // 4, i % 4 - j % 4
                scores[:, i, j] += attention.relative_position_bias_table[(dy + 3) * 7 + dx + 3, head]
        expected[..., part] = scores.softmax(-1) @ value[..., part]
    assert torch.allclose(attention(x, attention.bias(None)), attention.proj(expected), atol=1e-5)


@pytest.mark.parametrize("b", [1, 3])
def test_masked_window_attention_is_the_same_for_every_image_of_a_batch(b):
    torch.manual_seed(0)
    attention = WindowAttention(8, heads=2, window=4)
    bias = attention.bias(shift_mask(8, 12, 4, 2, torch.device("cpu")))
    x = torch.randn(1, 6, 16, 8)
    together = attention(x.expand(b, -1, -1, -1).reshape(b * 6, 16, 8), bias).view(b, 6, 16, 8)
    windows = torch.stack([attention(x[:, i], bias[i : i + 1])[0] for i in range(6)])
    assert torch.allclose(together, windows.expand(b, -1, -1, -1), atol=1e-6)


def test_shift_mask_separates_what_the_roll_brings_together():
    found = shift_mask(8, 8, 4, 2, torch.device("cpu"))
    rows = torch.arange(8).roll(-2)
    position = torch.stack(torch.meshgrid(rows, rows, indexing="ij"), -1)[None].float()
    windows = partition(position, 4)
    # Neighbors in the image are at most 3 apart within a window of 4.
    apart = (windows[:, :, None] - windows[:, None]).abs().amax(-1) > 3
    assert torch.equal(found == -100, apart) and set(found.unique().tolist()) == {-100.0, 0.0}


def test_partition_and_merge_are_inverse():
    x = torch.randn(2, 8, 12, 5)
    assert torch.equal(merge(partition(x, 4), x.shape, 4), x)


def test_shifted_blocks_let_windows_see_each_other():
    torch.manual_seed(0)
    stage = SwinStage(8, SwinOptions(dim=8, depth=2, heads=2, window=4))
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    stage(x)[0, :, 0, 0].sum().backward()
    reached = x.grad[0].abs().sum(0) > 0
    # The pixel's own window in the shifted grid is its corner of 2x2, which the first block fed from a window of 4x4.
    assert reached[:4, :4].all() and not reached[4:].any() and not reached[:, 4:].any()
    x.grad = None
    stage(x)[0, :, 3, 3].sum().backward()
    reached = x.grad[0].abs().sum(0) > 0
    assert reached.all()


def test_a_grid_that_does_not_fit_the_window_is_refused_with_the_remedy():
    net = small_iter()
    with pytest.raises(ValueError, match="12x8 positions must be a multiple of window=8.*pad_to_multiple"):
        net.evaluator(tokens(1, 12, 8), tokens(1, 12, 8))
    with pytest.raises(ValueError, match="64x100 pixels must have sides that are multiples of 64"):
        net.vqgan.encode(photo(1, 3, 64, 100))


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="dpeth"):
        ITER(refiner={"dpeth": 3})
    with pytest.raises(ValueError, match="scale=3 must be one of 1, 2, 4, 8"):
        LQEncoder(scale=3)
    with pytest.raises(ValueError, match=r"window must be the same in all four networks, not \[4, 8\]"):
        ITER(**(config() | {"refiner": {"swin": {"dim": 16, "depth": 2, "heads": 2, "window": 4}}}))


def test_an_iter_in_a_hosts_sr_model_says_which_networks_to_train(tmp_path):
    model = build_model(sr_options(tmp_path, network_g={"type": "ITER", **config()}))
    model.feed_data({"lq": photo(1, 3, 16, 16), "gt": photo(1, 3, 64, 64)})
    with pytest.raises(RuntimeError, match="SwinVQGANModel.*LQEncoder, TokenRefiner and TokenEvaluator.*ITERModel"):
        model.optimize_parameters(1)
    model.test()
    assert model.output.shape == (1, 3, 64, 64)


def test_group_norm_keeps_at_least_four_channels_a_group():
    assert [group_norm(c).num_groups for c in (512, 128, 64, 32, 8)] == [32, 32, 16, 8, 2]


# ---------------------------------------------------------------------------------------------------- quantizer


def quantizer():
    torch.manual_seed(0)
    vq = VectorQuantizer(num_codes=20, dim=6)
    torch.nn.init.normal_(vq.embedding.weight)
    return vq


def test_tokens_of_codes_are_the_tokens():
    vq = quantizer()
    t = tokens(2, 5, 7, codes=20)
    assert torch.equal(vq.tokens(vq.codes(t)), t)


def test_tokens_are_the_nearest_codes():
    vq = quantizer()
    z = torch.randn(2, 6, 4, 5)
    distance = torch.cdist(z.permute(0, 2, 3, 1).reshape(1, -1, 6), vq.embedding.weight[None])[0]
    assert torch.equal(vq.tokens(z).flatten(), distance.argmin(1))


def test_loss_is_equation_1_with_beta_on_the_commitment():
    vq = VectorQuantizer(num_codes=2, dim=1, beta=0.25)
    vq.embedding.weight.data = torch.tensor([[0.0], [10.0]])
    z = torch.tensor([1.0, 8.0], requires_grad=True).view(1, 1, 1, 2)
    z.retain_grad()
    result = vq(z)
    # Distances 1 and 2: mean square 2.5; (1 + 0.25) * 2.5.
    assert result.tokens.tolist() == [[[0, 1]]] and result.loss.item() == pytest.approx(3.125)
    result.loss.backward()
    # d/dz: 0.25 * 2 (z - e) / 2; d/de: 2 (e - z) / 2.
    assert z.grad.flatten().tolist() == pytest.approx([0.25, -0.5])
    assert vq.embedding.weight.grad.flatten().tolist() == pytest.approx([-1.0, 2.0])


def test_gradients_pass_straight_through():
    vq = quantizer()
    z = torch.randn(1, 6, 2, 2, requires_grad=True)
    codes = vq(z).codes
    assert torch.allclose(codes, vq.codes(vq.tokens(z)), atol=1e-6)
    (codes * 3).sum().backward()
    assert torch.equal(z.grad, torch.full_like(z, 3))


def test_distances_stay_float32_under_autocast():
    vq = VectorQuantizer(num_codes=2, dim=1)
    # bfloat16 has 8 bits: 1 and 1.001 would be the same code.
    vq.embedding.weight.data = torch.tensor([[1.0], [1.001]])
    with torch.autocast("cpu", torch.bfloat16):
        found = vq.tokens(torch.tensor([1.0002, 1.0009]).view(1, 1, 1, 2))
    assert found.tolist() == [[[0, 1]]]


def test_vqgan_image_is_clamped_in_eval_mode_only():
    net = small_iter().vqgan
    with torch.no_grad():
        net.decoder[-1].weight.mul_(50)
        assert net(photo(1, 3, 64, 64)).image.max() <= 1
        assert net.train()(photo(1, 3, 64, 64)).image.max() > 1


def test_vqgan_without_quantization_decodes_the_latent():
    net = small_iter().vqgan
    image = photo(1, 3, 64, 64)
    with torch.no_grad():
        plain = net(image, quantize=False)
        expected = net.decode_codes(net.latent(image)).clamp(0, 1)
    assert torch.equal(plain.image, expected) and plain.loss == 0
