"""Writing photos: what is written is what is read back, in its kind, whole or not at all."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from photos import encoded, file_of, random_pixels
from PIL import Image, ImageCms

from basicsr_compat.images import Photo, read_photo
from iter_model.photo import levels as photo_levels
from iter_model.photo import writer
from iter_model.photo.writer import WRITERS, write_photo


@pytest.mark.parametrize("name", ["фото.png", "写真 1.png", "no suffix", "really_a_png.jpg"])
def test_any_name_can_be_read_and_written(tmp_path, rng, name):
    pixels = random_pixels(rng, 3)
    write_photo(tmp_path / name, Photo(pixels.astype(np.float32) / 255))
    np.testing.assert_array_equal(np.rint(read_photo(tmp_path / name).rgb * 255), pixels)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (1, 300), (300, 1)])
@pytest.mark.parametrize("large", [0, writer._LARGE])
def test_what_is_written_is_read_back_exactly(tmp_path, rng, bits, gray, alpha, size, large, monkeypatch):
    monkeypatch.setattr(writer, "_LARGE", large)
    levels = random_pixels(rng, 4, bits, size).astype(np.float32) / (2**bits - 1)
    rgb = levels[..., :1].repeat(3, axis=2) if gray else levels[..., :3]
    photo = Photo(rgb, levels[..., 3] if alpha else None, bits, gray)
    write_photo(tmp_path / "out.png", photo)
    back = read_photo(tmp_path / "out.png")
    np.testing.assert_array_equal(back.rgb, rgb)
    np.testing.assert_array_equal(back.alpha, photo.alpha)
    assert (back.bit_depth, back.is_gray) == (bits, gray)
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("strip", [1, 5 * 4 * 7 * 2])
def test_a_file_written_in_strips_is_read_back_exactly(tmp_path, rng, monkeypatch, bits, strip):
    monkeypatch.setattr(photo_levels, "STRIP_BYTES", strip)
    monkeypatch.setattr(writer, "_LARGE", 0)
    levels = random_pixels(rng, 4, bits, (23, 7)).astype(np.float32) / (2**bits - 1)
    write_photo(tmp_path / "out.png", Photo(levels[..., :3], levels[..., 3], bits))
    back = read_photo(tmp_path / "out.png")
    np.testing.assert_array_equal(back.rgb, levels[..., :3])
    np.testing.assert_array_equal(back.alpha, levels[..., 3])


def test_a_large_photo_is_never_held_twice(tmp_path):
    """Its own levels take 3 bytes a pixel; Pillow's copy of them would take another 4."""
    script = f"""
import numpy as np
from basicsr_compat.images import Photo
from iter_model.photo.writer import write_photo
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
photo = Photo(np.zeros((6000, 6000, 3), np.uint8))
photo.rgb[:] = 7
before = peak()
write_photo("{tmp_path / "out.png"}", photo)
print((peak() - before) / 36e6)
"""
    more = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert float(more) < 1
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (6000, 6000) and image.getpixel((5999, 5999)) == (7, 7, 7)


def test_other_programs_read_what_is_written(tmp_path, rng):
    pixels = random_pixels(rng, 4, 16)
    write_photo(
        tmp_path / "out.png", Photo(pixels[..., :3] / np.float32(65535), pixels[..., 3] / np.float32(65535), 16)
    )
    bgra = cv2.imread(str(tmp_path / "out.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(bgra[..., [2, 1, 0, 3]], pixels)
    write_photo(tmp_path / "la.png", Photo(np.full((2, 3, 3), 0.2, np.float32), np.ones((2, 3), np.float32), 8, True))
    with Image.open(tmp_path / "la.png") as image:
        assert image.mode == "LA"
        image.verify()


def test_values_are_clipped_and_rounded(tmp_path):
    rgb = np.array([[[-0.5, 1.5, 100.5 / 255], [0.49 / 255, 0.51 / 255, 1.0]]], np.float32)
    write_photo(tmp_path / "out.png", Photo(rgb))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), [[[0, 255, 100], [0, 1, 255]]])


def test_color_profile_is_carried_over_where_it_fits(tmp_path, rng):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = file_of(tmp_path, encoded(random_pixels(rng, 3), "PNG", icc_profile=profile))
    photo = read_photo(path)
    assert photo.icc_profile == profile
    write_photo(tmp_path / "out.png", photo)
    with Image.open(tmp_path / "out.png") as image:
        assert image.info["icc_profile"] == profile
    gray = file_of(tmp_path, encoded(random_pixels(rng, 1)[..., 0], "PNG", icc_profile=profile))
    assert read_photo(gray).icc_profile is None


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = file_of(tmp_path, b"old", "out.png")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_photo(path, Photo(np.zeros((2, 2, 3), np.float32)))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("photo", "field"),
    [
        (Photo(np.zeros((2, 2), np.float32)), "photo.rgb"),
        (Photo(np.zeros((0, 2, 3), np.float32)), "photo.rgb"),
        (Photo(np.zeros((2, 2, 3), np.float32), np.zeros((3, 2), np.float32)), "photo.alpha"),
        (Photo(np.zeros((2, 2, 3), np.float32), bit_depth=12), "photo.bit_depth=12"),
    ],
)
def test_wrong_photos_are_refused(tmp_path, photo, field):
    with pytest.raises(ValueError, match=field):
        write_photo(tmp_path / "out.png", photo)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "gif"])
@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
def test_every_kind_holds_gray_alpha_and_profile_as_far_as_it_can(tmp_path, kind, gray, alpha):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rgb = np.full((16, 24, 3), 0.2, np.float32) if gray else np.tile(np.float32([0.8, 0.4, 0.2]), (16, 24, 1))
    opacity = np.full((16, 24), 0.6, np.float32) if alpha else None
    write_photo(tmp_path / "out", Photo(rgb, opacity, 16, gray, None if gray else profile), kind)
    back = read_photo(tmp_path / "out")
    assert back.bit_depth == (16 if kind in ("png", "tiff") else 8)
    assert back.icc_profile == (None if gray else profile)
    assert back.is_gray == (gray and kind in ("png", "jpg", "tiff")) or kind == "avif" or (kind == "tiff" and alpha)
    flat = alpha and kind == "jpg"  # over white
    np.testing.assert_allclose(back.rgb, 0.6 * rgb + 0.4 if flat else rgb, atol=0.02)
    assert (back.alpha is not None) == (alpha and kind != "jpg")


def test_an_unknown_kind_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="kind='bmp' must be one of png, jpg, webp, tiff, avif, gif"):
        write_photo(tmp_path / "out.bmp", Photo(np.zeros((2, 2, 3), np.float32)), "bmp")
