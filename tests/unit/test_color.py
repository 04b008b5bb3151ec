"""Color correction: low frequencies, detail, flat and gray photos, strips, memory."""

import pytest
import torch
from torch.nn import functional as F

from iter_arch import color
from iter_arch.color import low_frequencies, match_color

METHODS = ("adain", "wavelet")


@pytest.fixture
def noise():
    """Makes noise of a shape, in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.rand(shape, generator=generator)


def smooth(noise, size: int) -> torch.Tensor:
    """A photo without detail, (1, 3, size, size) in [0.2, 0.8]."""
    return F.interpolate(0.2 + 0.6 * noise(1, 3, 2, 2), (size, size), mode="bilinear", align_corners=True)


def checkers(size: int) -> torch.Tensor:
    """The finest detail, (size, size), 0.05 and -0.05 in turn."""
    return 0.1 * (torch.arange(size)[:, None] + torch.arange(size)).remainder(2) - 0.05


def upsampled(lq, image):
    return F.interpolate(lq, image.shape[2:], mode="bicubic").clamp(0, 1)


def test_low_frequencies_become_those_of_the_input(noise):
    lq = smooth(noise, 64)
    # A hue that drifts over the photo, which one gain and offset per channel cannot mend, and some detail.
    wave = torch.linspace(0, torch.pi, 256).cos()
    drift = 0.1 * wave[:, None] * wave * torch.tensor([1, -1, 0.5]).view(1, 3, 1, 1)
    image = upsampled(lq, drift) + drift + checkers(256)

    def largest(method):
        difference = low_frequencies(match_color(image, lq, method) - upsampled(lq, image))
        return 255 * difference[..., 32:-32, 32:-32].abs().max()

    assert largest("wavelet") < 0.5 and largest("adain") > 5


@pytest.mark.parametrize("method", METHODS)
def test_a_global_cast_is_gone(noise, method):
    lq = smooth(noise, 40)
    image = upsampled(lq, torch.empty(1, 3, 160, 160))
    cast = image + torch.tensor([0.1, -0.05, 0.15]).view(1, 3, 1, 1)
    assert (match_color(cast, lq, method) - image).abs().max() < 2 / 255


def test_detail_is_untouched(noise):
    lq = torch.full((1, 3, 32, 32), 0.5)
    image = 0.35 + checkers(128).expand(1, 3, 128, 128)
    matched = match_color(image, lq)
    inner = (..., slice(32, -32), slice(32, -32))
    assert torch.allclose(matched[inner] - 0.5, image[inner] - 0.35, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_flat_photo_stays_flat(noise, method):
    lq = 0.2 + 0.3 * (noise(1, 3, 64, 64) - 0.5)
    image = 0.7 + 1e-4 * noise(1, 3, 256, 256)
    # The first with the noise of the input averaged out, the second with none.
    for source, tolerance in ((lq, 0.03), (torch.full_like(lq, 0.2), 1e-4)):
        matched = match_color(image, source, method)
        assert matched.std() < tolerance and matched.mean() == pytest.approx(0.2, abs=0.01)


def test_means_and_deviations_become_those_of_the_input(noise):
    image = noise(2, 3, 40, 40) * 0.3 + 0.4
    lq = noise(2, 3, 10, 10) * torch.tensor([0.2, 0.4, 0.3]).view(1, 3, 1, 1) + 0.2
    matched = match_color(image, lq, "adain")
    assert torch.allclose(matched.mean((2, 3)), lq.mean((2, 3)), atol=1e-4)
    assert torch.allclose(matched.std((2, 3), correction=0), lq.std((2, 3), correction=0), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_values_stay_in_range(noise, method):
    matched = match_color(noise(1, 3, 8, 8), noise(1, 3, 4, 4).round(), method)
    assert matched.isfinite().all() and matched.min() >= 0 and matched.max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (127, 9), (128, 8), (300, 17), (513, 40)], ids=str)
@pytest.mark.parametrize("levels", [1, 4, 8])
@pytest.mark.parametrize("scale", [1, 4, 1.7])
def test_strips_equal_the_whole_image(noise, size, levels, scale):
    lq = noise(2, 3, *size)
    image = noise(2, 3, *(round(scale * side) for side in size))
    whole = image + low_frequencies(upsampled(lq, image), levels) - low_frequencies(image, levels)
    assert torch.allclose(match_color(image, lq, levels=levels), whole.clamp(0, 1), atol=1e-4)


def test_images_of_a_batch_do_not_depend_on_each_other(noise):
    image, lq = noise(3, 3, 40, 40), noise(3, 3, 10, 10)
    lq[1] = lq[1, :1]
    for method in METHODS:
        together = match_color(image, lq, method)
        for i in range(3):
            assert torch.equal(match_color(image[i : i + 1], lq[i : i + 1], method)[0], together[i])


@pytest.mark.parametrize("method", METHODS)
def test_gray_in_gray_out(noise, method):
    gray = noise(1, 1, 50, 70).expand(1, 3, 50, 70)
    matched = match_color(noise(1, 3, 200, 280), gray, method)
    assert torch.equal(matched, matched[:, :1].expand_as(matched))
    colored = match_color(noise(1, 3, 200, 280), noise(1, 3, 50, 70), method)
    assert not torch.equal(colored, colored[:, :1].expand_as(colored))


def test_none_changes_nothing(noise):
    image = noise(1, 3, 8, 8)
    assert torch.equal(match_color(image, noise(1, 3, 2, 2), "none"), image)


def test_the_image_given_is_not_changed_and_keeps_its_dtype(noise):
    image = noise(1, 3, 16, 16).bfloat16()
    before = image.clone()
    for method in METHODS:
        assert match_color(image, noise(1, 3, 4, 4), method).dtype == torch.bfloat16
        assert torch.equal(image, before)


def test_memory_is_that_of_a_strip(noise, monkeypatch):
    """No tensor that is made is as large as the image."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            owns = isinstance(result, torch.Tensor) and result.data_ptr() not in known
            largest = max(largest, result.untyped_storage().nbytes() if owns else 0)
            return result

    image, lq = noise(1, 3, 2048, 64), noise(1, 1, 512, 16).expand(1, 3, 512, 16)
    known = {strip.data_ptr() for strip in image[0].flatten(0, 1)} | {lq.data_ptr()}
    with Sizes():
        color.match_color_(image, lq)
    assert 0 < largest < image.nbytes / 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "wavelets"}, "color_correction='wavelets' must be one of none, adain, wavelet"),
        ({"levels": 0}, "color_levels=0 must be a whole number from 1 to 8"),
        ({"levels": 9}, "color_levels=9"),
    ],
)
def test_refused_arguments(noise, arguments, message):
    with pytest.raises(ValueError, match=message):
        match_color(noise(1, 3, 8, 8), noise(1, 3, 2, 2), **arguments)
