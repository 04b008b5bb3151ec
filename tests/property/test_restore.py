"""Laws of ITER.restore and forward: sizes, batches, seeds, tiles."""

from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch
from PIL import Image
from small_networks import RELEASED_FORM, photo, small_iter
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.functional import to_tensor

import iter_arch
from iter_arch import SamplingConfig
from iter_arch.tiling import pad_to_multiple

PHOTO = Path(__file__).parents[2] / "datasets/sample/gt/coffee.png"


@pytest.fixture(scope="module")
def net():
    return small_iter()


@pytest.mark.parametrize("size", [(1, 1), (1, 150), (3, 2), (16, 16), (17, 33), (40, 15)], ids=str)
def test_any_size_is_restored_to_s_times_its_size(net, size):
    image = net(photo(1, 3, *size))
    assert image.shape == (1, 3, 4 * size[0], 4 * size[1])
    assert image.min() >= 0 and image.max() <= 1 and image.isfinite().all()


@pytest.mark.parametrize("scale", [1, 2, 8])
def test_other_scales(scale):
    assert small_iter(scale)(photo(1, 3, 20, 31)).shape == (1, 3, 20 * scale, 31 * scale)


def test_forward_and_restore_sample_as_the_network_says_with_seed_0():
    lq, net = photo(2, 3, 16, 24), small_iter()
    assert torch.equal(net(lq), net.restore(lq, config=SamplingConfig(), seed=0).image)
    net.sampling = SamplingConfig(alpha=0.9, steps=3)
    expected = net.restore(lq, config=SamplingConfig(alpha=0.9, steps=3), seed=0)
    assert torch.equal(net(lq), expected.image) and torch.equal(net.restore(lq).tokens, expected.tokens)
    assert not torch.equal(expected.image, net.restore(lq, config=SamplingConfig()).image)


def test_a_forward_that_would_train_nothing_says_what_to_train_instead():
    net = small_iter().train()
    with pytest.raises(RuntimeError, match="SwinVQGANModel.*ITERModel"):
        net(photo(1, 3, 16, 16))
    with torch.no_grad():
        net(photo(1, 3, 16, 16))


def test_good_is_the_evaluators_probability_of_S_l(net):
    lq = photo(2, 3, 16, 24)
    restored = net.restore(lq, config=SamplingConfig(alpha=0.6))
    with torch.no_grad():
        S_l = net.lq_encoder(pad_to_multiple(lq, net.multiple)).argmax(1)
        expected = net.evaluator(S_l, S_l).softmax(1)[:, 1]
    assert restored.good.dtype == torch.float32 and torch.allclose(restored.good, expected, atol=1e-5)
    assert torch.allclose(net.restore(lq, tile=32, config=SamplingConfig(alpha=0.1)).good, expected, atol=1e-5)


@pytest.mark.parametrize("adaptive", [True, False])
def test_one_seed_one_picture_another_seed_another_picture(net, adaptive):
    lq, config = photo(1, 3, 16, 24), SamplingConfig(adaptive=adaptive, alpha=0.9)
    first = net.restore(lq, config=config, seed=3)
    assert torch.equal(first.image, net.restore(lq, config=config, seed=3).image)
    assert not torch.equal(first.tokens, net.restore(lq, config=config, seed=4).tokens)


@pytest.mark.parametrize(
    "config", [SamplingConfig(), SamplingConfig(adaptive=False), SamplingConfig.released()], ids=str
)
@pytest.mark.parametrize("form", [{}, RELEASED_FORM], ids=["paper", "released"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_batch_of_1_equals_batch_of_8(form, config, dtype):
    net, lq, seeds = small_iter(**form).to(dtype), photo(8, 3, 16, 16), list(range(8))
    together = net.restore(lq, config=config, seed=seeds)
    for i in (0, 3, 7):
        alone = net.restore(lq[i : i + 1], config=config, seed=seeds[i])
        assert torch.equal(alone.tokens[0], together.tokens[i]) and alone.start_step[0] == together.start_step[i]
        assert torch.allclose(alone.image[0], together.image[i], atol=1e-4)


def test_one_int_gives_every_image_the_same_stream(net):
    lq = photo(1, 3, 16, 16)
    tokens = net.restore(lq.expand(3, -1, -1, -1), seed=5).tokens
    assert torch.equal(tokens[0], tokens[1]) and torch.equal(tokens[0], tokens[2])


def test_alpha_0_decodes_S_l_and_a_higher_alpha_starts_earlier(net):
    lq = photo(1, 3, 32, 32)
    plain = net.restore(lq, config=SamplingConfig(alpha=0.0))
    assert plain.start_step.tolist() == [1] and torch.equal(plain.tokens, net.lq_encoder(lq).argmax(1))
    starts = [int(net.restore(lq, config=SamplingConfig(alpha=a)).start_step) for a in (0, 0.3, 0.6, 1)]
    assert starts == sorted(starts) and starts[-1] == 8


def test_on_step_sees_the_way_from_start_to_result(net):
    seen = []
    result = net.restore(photo(1, 3, 16, 16), on_step=lambda *state: seen.append(state))
    assert [t for t, _, _ in seen] == list(range(int(result.start_step), -1, -1))
    assert torch.equal(seen[-1][1], result.tokens) and seen[-1][2].all()


class Waits(TorchDispatchMode):
    """Records operations for whose result, or for whose data from the CPU, a GPU makes Python wait."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if by_mask or any(name.startswith(waiting) for waiting in self.NAMES):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("selection", ["evaluator", "confidence", "halton"])
@pytest.mark.parametrize("tile", [None, 32])
def test_the_steps_never_wait_for_the_device(net, selection, tile):
    config, seen = SamplingConfig(selection=selection, alpha=0.9), {}
    with Waits() as waits:
        net.restore(
            photo(2, 3, 16, 48), config=config, tile=tile, on_step=lambda t, *_: seen.update({t: len(waits.found)})
        )
    assert len(seen) > 2 and len(set(seen.values())) == 1
    assert seen[0] > 0  # T_s, before the steps: the recording works


@pytest.mark.gpu
def test_the_steps_never_wait_for_a_gpu():
    def watch(t, *_):
        torch.cuda.set_sync_debug_mode("error" if t else "default")

    try:
        small_iter().cuda().restore(photo(2, 3, 16, 48).cuda(), config=SamplingConfig(alpha=0.9), on_step=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_restored_is_the_decoded_tokens_cropped(net):
    result = net.restore(photo(1, 3, 10, 20))
    assert result.tokens.shape == (1, 8, 16)
    with torch.no_grad():
        assert torch.equal(result.image, net.vqgan.decode(result.tokens)[..., :40, :80])


def test_no_gradients_and_no_change_of_the_network(net):
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert not net.restore(photo(1, 3, 16, 16).requires_grad_()).image.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_dtype_follows_the_input(net):
    lq = photo(1, 3, 16, 16)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert net(lq.to(dtype)).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert net(lq).dtype == torch.float32


def test_a_network_in_float64_computes_in_float64(net):
    double, lq = small_iter().double(), photo(1, 3, 16, 16).double()
    restored = double.restore(lq)
    with torch.no_grad():
        exact = (double.vqgan.decoder(double.vqgan.quantizer.codes(restored.tokens)) + 1) / 2
    assert exact.dtype == restored.image.dtype == torch.float64
    assert torch.equal(restored.image, exact.clamp(0, 1)[..., :64, :64])
    assert not torch.equal(restored.image, restored.image.float().double())
    tiled = double.restore(lq.repeat(1, 1, 3, 3), tile=32)
    assert not torch.equal(tiled.image, tiled.image.float().double())


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 0, 5)], ids=str)
def test_wrong_shapes_are_refused(net, shape):
    lq = torch.zeros(shape)
    with pytest.raises(ValueError, match="must be \\(b, 3, height, width\\)"):
        net(lq)


# ---------------------------------------------------------------------------------------------------- tiles


def test_a_tile_as_large_as_the_image_changes_nothing(net):
    lq = photo(1, 3, 32, 48)
    assert torch.equal(net.restore(lq, tile=48).image, net.restore(lq).image)


def local(net):
    """A network that sees one window only: no shifts, no GroupNorm, which measures the whole tile."""
    for part in (net.lq_encoder, net.refiner, net.evaluator):
        for block in part.swin.groups[0].blocks:
            block.shift = 0
    for part in (net.lq_encoder.stem, net.refiner, net.evaluator):
        for name, module in list(part.named_modules()):
            if isinstance(module, torch.nn.GroupNorm):
                parent, _, last = name.rpartition(".")
                part.get_submodule(parent).register_module(last, torch.nn.Identity())
    return net


def test_local_networks_give_the_same_tokens_in_tiles():
    net, lq = local(small_iter()), photo(1, 3, 48, 80)
    whole, tiled = net.restore(lq), net.restore(lq, tile=32, overlap=16)
    assert torch.equal(tiled.start_step, whole.start_step)
    # The stem's convolutions look over the edge of a tile: a few positions may differ there.
    assert (tiled.tokens == whole.tokens).float().mean() > 0.9


@pytest.mark.long
def test_tiles_give_no_seams():
    """Of the pixels of a photo at the default tile of `upscale`: what tiles change has no step where they meet."""
    net, config = iter_arch.load_pretrained("iter_tiny_x4"), SamplingConfig(alpha=0.0)
    lq = torch.from_numpy(cv2.imread(str(PHOTO))[64:192, :256, ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    whole = net.restore(lq, config=config).image

    def steps(overlap):
        change = net.restore(lq, config=config, tile=128, overlap=overlap).image - whole
        return change.diff(dim=3).abs().mean((0, 1, 2))

    # The 128 columns of tokens are covered as [0, 64), [48, 112), [64, 128); a token is 8 pixels.
    meeting = torch.tensor([48, 64, 112]) * 8 - 1
    assert steps(None)[meeting].max() < 0.03 < 0.06 < steps(0)[64 * 8 - 1]


@pytest.mark.long
@pytest.mark.parametrize(("size", "tile", "equal", "psnr"), [((64, 96), 64, 0.75, 26), ((128, 192), 128, 0.75, 32)])
def test_how_much_tiles_change_is_bounded(size, tile, equal, psnr):
    """docs/decisions.md: networks see one tile at a time, so that the tile is a part of what a result depends on."""
    net = iter_arch.load_pretrained("iter_tiny_x4")
    with Image.open(PHOTO) as image:
        lq = to_tensor(image.convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC))[None]
    whole, tiled = net.restore(lq), net.restore(lq, tile=tile)
    assert (tiled.tokens == whole.tokens).float().mean() > equal
    assert -10 * (tiled.image - whole.image).square().mean().log10() > psnr


@pytest.mark.parametrize("selection", ["evaluator", "confidence"])
def test_what_goes_through_together_changes_nothing(net, selection):
    lq, options = photo(2, 3, 40, 70), {"config": SamplingConfig(selection=selection, alpha=0.9), "tile": 32}
    alone = net.restore(lq, **options, batch=1)
    for batch in (3, 1000):
        together = net.restore(lq, **options, batch=batch)
        assert torch.equal(together.tokens, alone.tokens)
        assert torch.allclose(together.image, alone.image, atol=1e-4)


def test_networks_never_see_more_than_a_tile(net):
    sizes = set()
    hooks = [
        part.register_forward_pre_hook(lambda module, inputs: sizes.add(tuple(inputs[0].shape[-2:])))
        for part in (net.lq_encoder.swin, net.refiner.swin, net.evaluator.swin, net.vqgan.decoder)
    ]
    net.restore(photo(1, 3, 70, 100), tile=32, batch=4)
    for hook in hooks:
        hook.remove()
    assert sizes == {(16, 16)}


def test_an_empty_batch_is_refused(net):
    with pytest.raises(ValueError, match="batch=0 must be at least 1"):
        net.restore(photo(1, 3, 16, 16), batch=0)


@pytest.mark.parametrize(("tile", "overlap"), [(15, None), (32, 32), (32, -4)])
def test_impossible_tiles_are_refused(net, tile, overlap):
    with pytest.raises(ValueError, match="tile=|overlap="):
        net.restore(photo(1, 3, 64, 64), tile=tile, overlap=overlap)


FAITHFUL = SamplingConfig(alpha=0.9, fidelity=0.6)


def test_fidelity_0_is_the_paper_bit_for_bit(net):
    lq = photo(2, 3, 16, 24)
    result = net.restore(lq, config=SamplingConfig(alpha=0.9, fidelity=0.0))
    with torch.no_grad():
        assert torch.equal(result.image, net.vqgan.decode(result.tokens)[..., :64, :96])


def test_fidelity_blends_drawn_and_expected_codes(net):
    lq = photo(2, 3, 16, 24)
    plain, faithful = (net.restore(lq, config=replace(FAITHFUL, fidelity=f)) for f in (0.0, 0.6))
    assert torch.equal(plain.tokens, faithful.tokens)
    padded = pad_to_multiple(lq, net.multiple)
    expected = torch.einsum("bnhw,nd->bdhw", net.lq_encoder(padded).softmax(1), net.vqgan.quantizer.embedding.weight)
    codes = 0.4 * net.vqgan.quantizer.codes(plain.tokens) + 0.6 * expected
    image = net.vqgan.decode_codes(codes).clamp(0, 1)[..., :64, :96]
    assert torch.allclose(faithful.image, image, atol=1e-5) and not torch.allclose(plain.image, image, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fidelity_does_not_depend_on_the_batch(dtype):
    net, lq, seeds = small_iter().to(dtype), photo(4, 3, 16, 16), list(range(4))
    together = net.restore(lq, config=FAITHFUL, seed=seeds)
    for i in range(4):
        alone = net.restore(lq[i : i + 1], config=FAITHFUL, seed=seeds[i])
        assert torch.allclose(alone.image[0], together.image[i], atol=1e-4)


def test_fidelity_does_not_depend_on_how_many_tiles_go_together(net):
    lq = photo(2, 3, 40, 56)
    one, many = (net.restore(lq, config=FAITHFUL, tile=32, batch=batch).image for batch in (1, 8))
    assert torch.allclose(one, many, atol=1e-4)


def test_fidelity_keeps_no_logits_of_the_whole_map(net):
    """Of N logits per token no more than a row of tiles is held, however tall the image."""
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.ndim == 4 and net.vqgan.quantizer.num_codes in result.shape:
                largest = max(largest, result.numel())
            return result

    sizes = []
    for height in (64, 160):
        largest = 0
        with Sizes():
            net.restore(photo(1, 3, height, 32), config=FAITHFUL, tile=32)
        sizes.append(largest)
    assert 0 < sizes[0] == sizes[1]


@pytest.mark.parametrize("tile", [None, 16])
def test_rows_are_those_of_the_image_and_progress_ends_where_it_says(tile):
    net, lq = small_iter(), photo(2, 3, 37, 45)
    image = net.restore(lq, tile=tile).image
    tops, strips, told = [], [], []
    rest = net.restore(
        lq,
        tile=tile,
        on_rows=lambda top, rows: (tops.append(top), strips.append(rows.clone())),
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert torch.equal(torch.cat(strips, 2), image) and rest.image.shape[2] == 0
    assert tops == [sum(strip.shape[2] for strip in strips[:index]) for index in range(len(strips))]
    done = [one for one, _ in told]
    assert done == sorted(set(done)) and told[-1][0] == told[-1][1]


def test_what_on_progress_raises_ends_the_restoration():
    class Cancelled(Exception):
        pass

    def cancel(done, total):
        raise Cancelled

    with pytest.raises(Cancelled):
        small_iter().restore(photo(1, 3, 16, 16), on_progress=cancel)
