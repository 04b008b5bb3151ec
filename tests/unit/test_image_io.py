"""Reading and writing of image files: every kind of file that people have, and every way in which one can be broken."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from iter_model import image_io
from iter_model.image_io import Photo, UnreadableImageError, is_image, read_image, write_image

HEIGHT, WIDTH = 5, 7
JPEG_LEVELS = 5  # what quality 100 may change


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def random_pixels(rng, channels, bits=8, size=(HEIGHT, WIDTH)):
    return rng.integers(0, 2**bits, (*size, channels), dtype=f"uint{bits}")


def smooth_pixels(rng, size=(120, 160)):
    return cv2.resize(random_pixels(rng, 3, size=(12, 16)), size[::-1], interpolation=cv2.INTER_CUBIC)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(pixels, color_type, *extra):
    """A PNG file made by hand: neither Pillow nor OpenCV writes all kinds."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(height, -1).view(np.uint8)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def saved(pixels, kind, **options):
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def tiff16(pixels, orientation=1):
    """An uncompressed 16-bit TIFF file made by hand, gray or RGB(A): Pillow writes none in colour."""
    height, width, channels = pixels.shape
    body = pixels.astype("<u2").tobytes()
    shorts = struct.pack(f"<{channels}H", *[16] * channels)
    end = 8 + len(body)
    bits = (258, 3, channels, 16 if channels == 1 else end)
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        bits,
        (259, 3, 1, 1),
        (262, 3, 1, 1 if channels == 1 else 2),
        (273, 4, 1, 8),
        (274, 3, 1, orientation),
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, 1, len(body)),
    ]
    if channels == 4:
        entries.append((338, 3, 1, 2))
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries) + b"\0" * 4
    return b"II*\0" + struct.pack("<I", end + len(shorts)) + body + shorts + directory


def file_of(folder, data, name="photo"):
    path = folder / name
    path.write_bytes(data)
    return path


def check(photo, pixels, *, bits, gray=False, alpha=None, tolerance=0):
    """The photo holds these pixels (H, W) or (H, W, 3), within ``tolerance`` levels."""
    top = 2**bits - 1
    assert photo.rgb.dtype == np.float32
    assert photo.rgb.flags.c_contiguous and photo.rgb.flags.writeable
    expected = pixels[..., None].repeat(3, axis=2) if pixels.ndim == 2 else pixels
    assert photo.rgb.shape == expected.shape
    assert np.abs(photo.rgb * top - expected.astype(np.float64)).max() <= tolerance + 0.01
    assert (photo.bit_depth, photo.is_gray) == (bits, gray)
    if alpha is None:
        assert photo.alpha is None
    else:
        assert photo.alpha.dtype == np.float32
        np.testing.assert_allclose(photo.alpha * top, alpha, atol=0.01)


# Every kind of file


@pytest.mark.parametrize("bits", [8, 16])
def test_png_of_every_kind_keeps_depth_gray_and_alpha(tmp_path, rng, bits):
    p = random_pixels(rng, 4, bits)
    check(read_image(file_of(tmp_path, png(p[..., :1], 0))), p[..., 0], bits=bits, gray=True)
    check(read_image(file_of(tmp_path, png(p[..., :2], 4))), p[..., 0], bits=bits, gray=True, alpha=p[..., 1])
    check(read_image(file_of(tmp_path, png(p[..., :3], 2))), p[..., :3], bits=bits)
    check(read_image(file_of(tmp_path, png(p, 6))), p[..., :3], bits=bits, alpha=p[..., 3])


@pytest.mark.parametrize("kind", ["BMP", "WEBP", "TIFF", "PNG", "GIF", "JPEG"])
def test_eight_bit_colour_of_every_format(tmp_path, rng, kind):
    pixels = smooth_pixels(rng) if kind == "JPEG" else random_pixels(rng, 3)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    photo = read_image(file_of(tmp_path, saved(pixels, kind, **options)))
    check(photo, pixels, bits=8, tolerance=JPEG_LEVELS if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "JPEG"])
def test_eight_bit_gray_stays_gray(tmp_path, rng, kind):
    pixels = smooth_pixels(rng)[..., 0]
    options = {"quality": 100} if kind == "JPEG" else {}
    photo = read_image(file_of(tmp_path, saved(pixels, kind, **options)))
    check(photo, pixels, bits=8, gray=True, tolerance=JPEG_LEVELS if kind == "JPEG" else 0)


def test_one_bit_png_is_gray(tmp_path, rng):
    bits = random_pixels(rng, 1)[..., 0] > 127
    check(read_image(file_of(tmp_path, saved(bits, "PNG"))), bits * 255, bits=8, gray=True)


@pytest.mark.parametrize("kind", ["WEBP", "TIFF"])
def test_alpha_of_other_formats(tmp_path, rng, kind):
    pixels = random_pixels(rng, 4)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    photo = read_image(file_of(tmp_path, saved(pixels, kind, **options)))
    check(photo, pixels[..., :3], bits=8, alpha=pixels[..., 3])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bit_tiff(tmp_path, rng, channels):
    pixels = random_pixels(rng, channels, 16)
    photo = read_image(file_of(tmp_path, tiff16(pixels)))
    if channels == 1:
        check(photo, pixels[..., 0], bits=16, gray=True)
    else:
        check(photo, pixels[..., :3], bits=16, alpha=pixels[..., 3] if channels == 4 else None)


def test_palette_with_and_without_transparency(tmp_path, rng):
    image = Image.fromarray(random_pixels(rng, 3)).quantize(16)
    indices, palette = np.asarray(image), np.array(image.getpalette()).reshape(-1, 3)
    opacity = np.linspace(0, 255, 16).astype(np.uint8)
    photo = read_image(file_of(tmp_path, saved(image, "PNG", transparency=opacity.tobytes())))
    check(photo, palette[indices], bits=8, alpha=opacity[indices])
    check(read_image(file_of(tmp_path, saved(image, "PNG"))), palette[indices], bits=8)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_colour_declared_transparent_becomes_alpha(tmp_path, rng, bits):
    pixels = random_pixels(rng, 3, bits)
    transparent = chunk(b"tRNS", struct.pack(">HHH", *pixels[0, 0].tolist()))
    photo = read_image(file_of(tmp_path, png(pixels, 2, transparent)))
    alpha = np.full((HEIGHT, WIDTH), 2**bits - 1)
    alpha[0, 0] = 0
    check(photo, pixels, bits=bits, alpha=alpha)


def test_cmyk_jpeg_becomes_rgb(tmp_path, rng):
    pixels = smooth_pixels(rng)
    data = saved(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=100, subsampling=0)
    check(read_image(file_of(tmp_path, data)), pixels, bits=8, tolerance=6)


def upright(pixels, orientation):
    """What EXIF says a viewer shows: 0th row and column are at these sides of the picture."""
    row, column = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    if row in ("left", "right"):
        pixels, row, column = np.swapaxes(pixels, 0, 1), column, row
    pixels = pixels[::-1] if row == "bottom" else pixels
    return pixels[:, ::-1] if column == "right" else pixels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path, rng, orientation):
    smooth, p16 = smooth_pixels(rng, (24, 32)), random_pixels(rng, 3, 16)
    jpeg = saved(smooth, "JPEG", quality=100, subsampling=0, exif=exif(orientation))
    check(read_image(file_of(tmp_path, jpeg)), upright(smooth, orientation), bits=8, tolerance=JPEG_LEVELS)
    png16 = png(p16, 2, chunk(b"eXIf", exif(orientation).tobytes().removeprefix(b"Exif\0\0")))
    check(read_image(file_of(tmp_path, png16)), upright(p16, orientation), bits=16)
    tiff8 = saved(smooth, "TIFF", exif=exif(orientation))
    check(read_image(file_of(tmp_path, tiff8)), upright(smooth, orientation), bits=8)
    for channels in (1, 3):
        photo = read_image(file_of(tmp_path, tiff16(p16[..., :channels], orientation)))
        expected = upright(p16[..., :channels], orientation)
        check(photo, expected if channels == 3 else expected[..., 0], bits=16, gray=channels == 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("tags", [b"Exif\0\0rubbish", b"Exif\0\0", exif(9)])
def test_broken_or_unknown_orientation_changes_nothing(tmp_path, rng, kind, tags):
    pixels = smooth_pixels(rng, (24, 32))
    assert read_image(file_of(tmp_path, saved(pixels, kind, exif=tags))).rgb.shape == pixels.shape


def test_phone_jpeg_with_a_second_picture(tmp_path, rng):
    pixels = smooth_pixels(rng)
    data = saved(pixels, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], quality=100, subsampling=0)
    check(read_image(file_of(tmp_path, data, "phone.jpg")), pixels, bits=8, tolerance=JPEG_LEVELS)


@pytest.mark.parametrize("name", ["фото.png", "写真 1.png", "no suffix", "really_a_png.jpg"])
def test_any_name_can_be_read_and_written(tmp_path, rng, name):
    pixels = random_pixels(rng, 3)
    write_image(tmp_path / name, Photo(pixels.astype(np.float32) / 255))
    check(read_image(tmp_path / name), pixels, bits=8)


# Broken files


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no image at all", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", "not an image"),
    ],
)
def test_a_file_that_is_no_image_is_named(tmp_path, data, reason):
    path = file_of(tmp_path, data, "letter.jpg")
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert not is_image(path)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(UnreadableImageError, match="gone.png: No such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(UnreadableImageError, match="directory"):
        read_image(tmp_path)


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("part", [0.3, 0.9, 0.99])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_truncated_image_is_refused(tmp_path, rng, monkeypatch, kind, options, part, lenient):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)  # importing pyiqa sets it
    data = saved(smooth_pixels(rng), kind, **options)
    with pytest.raises(UnreadableImageError):
        read_image(file_of(tmp_path, data[: int(part * len(data))]))


def test_truncated_sixteen_bit_images_are_refused(tmp_path, rng):
    for data in (png(random_pixels(rng, 3, 16, (64, 64)), 2), tiff16(random_pixels(rng, 3, 16, (64, 64)))):
        with pytest.raises(UnreadableImageError):
            read_image(file_of(tmp_path, data[: len(data) // 2]))


def test_png_whose_end_was_never_written_is_refused(tmp_path, rng):
    data = saved(smooth_pixels(rng), "PNG")
    half = len(data) // 2
    with pytest.raises(UnreadableImageError, match="damaged"):
        read_image(file_of(tmp_path, data[:half] + bytes(len(data) - half)))


def test_decompression_bomb_is_refused_with_its_size(tmp_path):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(UnreadableImageError, match="too large.*3600000000 pixels"):
        read_image(file_of(tmp_path, b"\x89PNG\r\n\x1a\n" + header + body))


def test_depths_other_than_8_and_16_are_refused(tmp_path, rng):
    image = Image.fromarray(rng.random((HEIGHT, WIDTH), np.float32))
    with pytest.raises(UnreadableImageError, match="8 or 16 bits"):
        read_image(file_of(tmp_path, saved(image, "TIFF")))


def test_is_image_looks_at_the_contents(tmp_path, rng):
    assert is_image(file_of(tmp_path, saved(smooth_pixels(rng), "JPEG"), "notes.txt"))
    assert not is_image(tmp_path / "gone.png")


# Writing


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (HEIGHT, WIDTH), (1, 300), (300, 1)])
def test_what_is_written_is_read_back_exactly(tmp_path, rng, bits, gray, alpha, size):
    levels = random_pixels(rng, 4, bits, size).astype(np.float32) / (2**bits - 1)
    rgb = levels[..., :1].repeat(3, axis=2) if gray else levels[..., :3]
    photo = Photo(rgb, levels[..., 3] if alpha else None, bits, gray)
    write_image(tmp_path / "out.png", photo)
    back = read_image(tmp_path / "out.png")
    np.testing.assert_array_equal(back.rgb, rgb)
    np.testing.assert_array_equal(back.alpha, photo.alpha)
    assert (back.bit_depth, back.is_gray) == (bits, gray)
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("strip", [1, 5 * 4 * 7 * 2])
def test_a_file_written_in_strips_is_read_back_exactly(tmp_path, rng, monkeypatch, bits, strip):
    monkeypatch.setattr(image_io, "STRIP_BYTES", strip)
    levels = random_pixels(rng, 4, bits, (23, 7)).astype(np.float32) / (2**bits - 1)
    write_image(tmp_path / "out.png", Photo(levels[..., :3], levels[..., 3], bits))
    back = read_image(tmp_path / "out.png")
    np.testing.assert_array_equal(back.rgb, levels[..., :3])
    np.testing.assert_array_equal(back.alpha, levels[..., 3])


def test_other_programs_read_what_is_written(tmp_path, rng):
    pixels = random_pixels(rng, 4, 16)
    write_image(
        tmp_path / "out.png", Photo(pixels[..., :3] / np.float32(65535), pixels[..., 3] / np.float32(65535), 16)
    )
    bgra = cv2.imread(str(tmp_path / "out.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(bgra[..., [2, 1, 0, 3]], pixels)
    write_image(tmp_path / "la.png", Photo(np.full((2, 3, 3), 0.2, np.float32), np.ones((2, 3), np.float32), 8, True))
    with Image.open(tmp_path / "la.png") as image:
        assert image.mode == "LA"
        image.verify()


def test_values_are_clipped_and_rounded(tmp_path):
    rgb = np.array([[[-0.5, 1.5, 100.5 / 255], [0.49 / 255, 0.51 / 255, 1.0]]], np.float32)
    write_image(tmp_path / "out.png", Photo(rgb))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), [[[0, 255, 100], [0, 1, 255]]])


def test_colour_profile_is_carried_over_where_it_fits(tmp_path, rng):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = file_of(tmp_path, saved(random_pixels(rng, 3), "PNG", icc_profile=profile))
    photo = read_image(path)
    assert photo.icc_profile == profile
    write_image(tmp_path / "out.png", photo)
    with Image.open(tmp_path / "out.png") as image:
        assert image.info["icc_profile"] == profile
    gray = file_of(tmp_path, saved(random_pixels(rng, 1)[..., 0], "PNG", icc_profile=profile))
    assert read_image(gray).icc_profile is None


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = file_of(tmp_path, b"old", "out.png")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_io.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_image(path, Photo(np.zeros((2, 2, 3), np.float32)))
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
        write_image(tmp_path / "out.png", photo)
    assert not list(tmp_path.iterdir())
