"""The one reader: every kind of file that people have, and every way in which one can be broken."""

import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from photos import bomb, chunk, encoded, exif, file_of, png, random_pixels, tiff16
from PIL import Image, ImageCms, ImageFile

from basicsr_compat.images import UnreadableImage, decode_image, image_kind, is_image, read_photo


def smooth_pixels(rng, size=(120, 160)):
    return cv2.resize(random_pixels(rng, 3, size=(12, 16)), size[::-1], interpolation=cv2.INTER_CUBIC)


JPEG_LEVELS = 5  # what quality 100 may change


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
    check(read_photo(file_of(tmp_path, png(p[..., :1], 0))), p[..., 0], bits=bits, gray=True)
    check(read_photo(file_of(tmp_path, png(p[..., :2], 4))), p[..., 0], bits=bits, gray=True, alpha=p[..., 1])
    check(read_photo(file_of(tmp_path, png(p[..., :3], 2))), p[..., :3], bits=bits)
    check(read_photo(file_of(tmp_path, png(p, 6))), p[..., :3], bits=bits, alpha=p[..., 3])


@pytest.mark.parametrize("kind", ["BMP", "WEBP", "TIFF", "PNG", "GIF", "JPEG"])
def test_eight_bit_color_of_every_format(tmp_path, rng, kind):
    pixels = smooth_pixels(rng) if kind == "JPEG" else random_pixels(rng, 3)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    photo = read_photo(file_of(tmp_path, encoded(pixels, kind, **options)))
    check(photo, pixels, bits=8, tolerance=JPEG_LEVELS if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "JPEG"])
def test_eight_bit_gray_stays_gray(tmp_path, rng, kind):
    pixels = smooth_pixels(rng)[..., 0]
    options = {"quality": 100} if kind == "JPEG" else {}
    photo = read_photo(file_of(tmp_path, encoded(pixels, kind, **options)))
    check(photo, pixels, bits=8, gray=True, tolerance=JPEG_LEVELS if kind == "JPEG" else 0)


def test_one_bit_png_is_gray(tmp_path, rng):
    bits = random_pixels(rng, 1)[..., 0] > 127
    check(read_photo(file_of(tmp_path, encoded(bits, "PNG"))), bits * 255, bits=8, gray=True)


@pytest.mark.parametrize("kind", ["WEBP", "TIFF"])
def test_alpha_of_other_formats(tmp_path, rng, kind):
    pixels = random_pixels(rng, 4)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    photo = read_photo(file_of(tmp_path, encoded(pixels, kind, **options)))
    check(photo, pixels[..., :3], bits=8, alpha=pixels[..., 3])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bit_tiff(tmp_path, rng, channels):
    pixels = random_pixels(rng, channels, 16)
    photo = read_photo(file_of(tmp_path, tiff16(pixels)))
    if channels == 1:
        check(photo, pixels[..., 0], bits=16, gray=True)
    else:
        check(photo, pixels[..., :3], bits=16, alpha=pixels[..., 3] if channels == 4 else None)


def test_palette_with_and_without_transparency(tmp_path, rng):
    image = Image.fromarray(random_pixels(rng, 3)).quantize(16)
    indices, palette = np.asarray(image), np.array(image.getpalette()).reshape(-1, 3)
    opacity = np.linspace(0, 255, 16).astype(np.uint8)
    photo = read_photo(file_of(tmp_path, encoded(image, "PNG", transparency=opacity.tobytes())))
    check(photo, palette[indices], bits=8, alpha=opacity[indices])
    check(read_photo(file_of(tmp_path, encoded(image, "PNG"))), palette[indices], bits=8)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_color_declared_transparent_becomes_alpha(tmp_path, rng, bits):
    pixels = random_pixels(rng, 3, bits)
    transparent = chunk(b"tRNS", struct.pack(">HHH", *pixels[0, 0].tolist()))
    photo = read_photo(file_of(tmp_path, png(pixels, 2, transparent)))
    alpha = np.full((5, 7), 2**bits - 1)
    alpha[0, 0] = 0
    check(photo, pixels, bits=bits, alpha=alpha)


def test_cmyk_jpeg_becomes_rgb(tmp_path, rng):
    pixels = smooth_pixels(rng)
    data = encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=100, subsampling=0)
    check(read_photo(file_of(tmp_path, data)), pixels, bits=8, tolerance=6)


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
    jpeg = encoded(smooth, "JPEG", quality=100, subsampling=0, exif=exif(orientation))
    check(read_photo(file_of(tmp_path, jpeg)), upright(smooth, orientation), bits=8, tolerance=JPEG_LEVELS)
    png16 = png(p16, 2, chunk(b"eXIf", exif(orientation).tobytes().removeprefix(b"Exif\0\0")))
    check(read_photo(file_of(tmp_path, png16)), upright(p16, orientation), bits=16)
    tiff8 = encoded(smooth, "TIFF", exif=exif(orientation))
    check(read_photo(file_of(tmp_path, tiff8)), upright(smooth, orientation), bits=8)
    for channels in (1, 3):
        photo = read_photo(file_of(tmp_path, tiff16(p16[..., :channels], orientation)))
        expected = upright(p16[..., :channels], orientation)
        check(photo, expected if channels == 3 else expected[..., 0], bits=16, gray=channels == 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("tags", [b"Exif\0\0rubbish", b"Exif\0\0", exif(9)])
def test_broken_or_unknown_orientation_changes_nothing(tmp_path, rng, kind, tags):
    pixels = smooth_pixels(rng, (24, 32))
    assert read_photo(file_of(tmp_path, encoded(pixels, kind, exif=tags))).rgb.shape == pixels.shape


def test_phone_jpeg_with_a_second_picture(tmp_path, rng):
    pixels = smooth_pixels(rng)
    data = encoded(pixels, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], quality=100, subsampling=0)
    check(read_photo(file_of(tmp_path, data, "phone.jpg")), pixels, bits=8, tolerance=JPEG_LEVELS)


# Broken files


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no image at all", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", "not an image"),
    ],
)
def test_a_file_that_is_no_image_is_named(tmp_path, data, reason):
    path = file_of(tmp_path, data, "letter.jpg")
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_photo(path)
    assert str(path) in str(caught.value)
    assert not is_image(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert image_kind(tmp_path / "a.png") is None
    with pytest.raises(UnreadableImage, match=r"a\.png: it is a device or a pipe"):
        read_photo(tmp_path / "a.png")


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(UnreadableImage, match="gone.png: No such file"):
        read_photo(tmp_path / "gone.png")
    with pytest.raises(UnreadableImage, match="directory"):
        read_photo(tmp_path)


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
    data = encoded(smooth_pixels(rng), kind, **options)
    with pytest.raises(UnreadableImage):
        read_photo(file_of(tmp_path, data[: int(part * len(data))]))


def test_truncated_sixteen_bit_images_are_refused(tmp_path, rng):
    for data in (png(random_pixels(rng, 3, 16, (64, 64)), 2), tiff16(random_pixels(rng, 3, 16, (64, 64)))):
        with pytest.raises(UnreadableImage):
            read_photo(file_of(tmp_path, data[: len(data) // 2]))


def test_png_whose_end_was_never_written_is_refused(tmp_path, rng):
    data = encoded(smooth_pixels(rng), "PNG")
    half = len(data) // 2
    with pytest.raises(UnreadableImage, match="damaged"):
        read_photo(file_of(tmp_path, data[:half] + bytes(len(data) - half)))


def test_decompression_bomb_is_refused_with_its_size(tmp_path):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(UnreadableImage, match="too large.*3600000000 pixels"):
        read_photo(file_of(tmp_path, b"\x89PNG\r\n\x1a\n" + header + body))


def test_a_huge_file_of_another_kind_is_refused_before_it_is_read(tmp_path, rng):
    path = file_of(tmp_path, encoded(random_pixels(rng, 3), "PNG"))
    os.truncate(path, 2**28)  # a photo with much behind it
    assert read_photo(path).kind == "png"
    damaged = file_of(tmp_path, b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "damaged.heic")
    os.truncate(damaged, 2**28)
    with pytest.raises(UnreadableImage, match="damaged.heic: it is (damaged|a HEIC file)"):
        read_photo(damaged)
    assert image_kind(damaged) is None
    path = file_of(tmp_path, b"no photo")
    os.truncate(path, 2**36)  # sparse: takes no room on the disk
    with pytest.raises(UnreadableImage, match="^[^:]*: it is not an image of a known kind"):
        read_photo(path)


def test_a_large_png_with_a_damaged_chunk_is_read_like_a_small_one(tmp_path, rng):
    pixels = random_pixels(rng, 3)
    gamma = bytearray(chunk(b"gAMA", (45455).to_bytes(4, "big")))
    gamma[-1] ^= 1
    path = file_of(tmp_path, png(pixels, 2, bytes(gamma)))
    for size in (os.path.getsize(path), 2**28):
        os.truncate(path, size)
        assert np.array_equal(np.rint(255 * read_photo(path).rgb), pixels)


def test_the_canvas_of_an_animation_counts_and_not_its_frames(rng):
    frames = [Image.fromarray(random_pixels(rng, 3)) for _ in range(2)]
    data = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    canvas = data.index(b"VP8X") + 12
    data[canvas : canvas + 6] = 2 * (2**14 - 2).to_bytes(3, "little")
    with pytest.raises(UnreadableImage, match="too large: 16383x16383"):
        read_photo(bytes(data))


def test_floats_of_another_range_are_refused(rng):
    image = Image.fromarray(255 * rng.random((5, 7), np.float32))
    with pytest.raises(UnreadableImage, match=r"its floats reach 2\d\d.* must be in \[0, 1\]"):
        read_photo(encoded(image, "TIFF"))


def test_is_image_looks_at_the_contents(tmp_path, rng):
    assert is_image(file_of(tmp_path, encoded(smooth_pixels(rng), "JPEG"), "notes.txt"))
    assert not is_image(tmp_path / "gone.png")


# Ends of JPEG files


JPEGS = [
    {},
    {"progressive": True},
    {"subsampling": 0},
    {"restart_marker_rows": 1},
    {"restart_marker_blocks": 1},
    {"progressive": True, "restart_marker_rows": 2},
]


@pytest.mark.parametrize("options", JPEGS, ids=str)
def test_bytes_behind_the_end_of_a_jpeg_change_nothing(rng, options):
    data = encoded(smooth_pixels(rng), "JPEG", **options)
    whole = decode_image(data)
    for behind in (b"\xff\xda", encoded(smooth_pixels(rng), "JPEG")[:-2], rng.bytes(2_000_000)):
        np.testing.assert_array_equal(decode_image(data + behind), whole)


@pytest.mark.parametrize("options", JPEGS, ids=str)
def test_a_jpeg_without_its_end_marker_is_read_and_without_anything_else_is_not(rng, options):
    # 113 = 7 x 16 + 1: little of the last row shows
    pixels = cv2.resize(random_pixels(rng, 3, size=(60, 80)), (161, 113))
    data = encoded(pixels, "JPEG", **options)
    whole = decode_image(data)
    for missing in (1, 2):
        np.testing.assert_array_equal(decode_image(data[:-missing]), whole)
    cuts = [*range(16, 200), *range(200, len(data) - 3, 211)]
    for missing in cuts:
        with pytest.raises(UnreadableImage, match="it is truncated"):
            decode_image(data[:-missing])


def test_a_thumbnail_has_an_end_of_its_own(rng):
    thumbnail = encoded(smooth_pixels(rng, (16, 16)), "JPEG")
    data = encoded(smooth_pixels(rng), "JPEG")
    data = data[:2] + b"\xff\xe5" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2:]
    assert decode_image(data).shape == (120, 160, 3)
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_image(data[: len(data) * 3 // 4])


# Chunks of PNG files


def test_text_of_a_png_is_stepped_over_however_large_or_damaged(rng):
    pixels = random_pixels(rng, 3)
    packed = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2_700_000)))
    damaged = chunk(b"tEXt", b"Comment\0hello")[:-1] + b"?"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(2_000_000)
    large_profile = chunk(b"iCCP", b"icc\0\0" + zlib.compress(profile))
    for extra in (packed, chunk(b"tEXt", b"Comment\0" + b"x" * 70_000_000), damaged, large_profile):
        np.testing.assert_array_equal(decode_image(png(pixels, 2, extra)), pixels[..., ::-1])
    photo = read_photo(png(pixels, 2, large_profile))
    assert photo.icc_profile == profile


def test_a_png_with_a_damaged_chunk_of_pixels_is_refused(rng):
    data = bytearray(png(random_pixels(rng, 3, size=(64, 64)), 2))
    data[len(data) // 2] ^= 1
    with pytest.raises(UnreadableImage, match="checksum of its IDAT chunk"):
        decode_image(bytes(data))


# Pixels as OpenCV arranges them


def test_the_flags_are_those_of_opencv(rng):
    for channels, color_type in ((1, 0), (3, 2), (4, 6)):
        for bits in (8, 16):
            data = png(random_pixels(rng, channels, bits), color_type)
            expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(decode_image(data, cv2.IMREAD_UNCHANGED), expected)
    for pixels in (smooth_pixels(rng), smooth_pixels(rng)[..., 0]):
        data = encoded(pixels)
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_allclose(decode_image(data, cv2.IMREAD_GRAYSCALE), expected, atol=1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_eight_bit_pixels_are_those_of_opencv(rng, kind):
    """So that networks trained before see the same pixels."""
    data = encoded(smooth_pixels(rng), kind)
    np.testing.assert_array_equal(decode_image(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))


def test_the_limit_of_pixels_is_an_argument_and_no_warning_comes_below_it(rng, recwarn):
    data = png(random_pixels(rng, 3), 2)
    with pytest.raises(UnreadableImage, match="too large: 7x5 are 35 pixels, more than 34"):
        read_photo(data, max_pixels=34)
    assert read_photo(data, max_pixels=35).rgb.shape == (5, 7, 3)
    with pytest.raises(UnreadableImage, match="checksum|damaged|truncated"):
        decode_image(bomb(10_000))  # 100 megapixels: below the limit, where Pillow warns; it lacks its pixels
    assert not recwarn.list
