"""Whole image files of every kind and hostile ones, from which the property tests make damaged ones."""

import struct
import zlib

import cv2
import numpy as np
from photos import chunk, encoded, png, tiff16
from PIL import Image, ImageCms, features

# Side of a canvas that is far larger than its file. Test data sets degrade it: half a second per megapixel.
CANVAS = 2_000


def with_checksums(data):
    """A PNG file with the checksums of what is in its chunks, so that its readers get to see that."""
    out, at = bytearray(data), 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(out)


def originals():
    """Files of every format and of most of the layouts that each has."""
    rng = np.random.default_rng(0)
    files = []
    for side in (1, 9, 33, 64):
        rgba = Image.fromarray(rng.integers(0, 256, (side, max(1, side // 2), 4), dtype=np.uint8))
        smooth = rgba.resize((2, 2)).resize(rgba.size)
        files += [encoded(image, kind, **options) for kind, image, options in _eight_bits(rgba, smooth)]
        files += _deep(rng.integers(0, 65536, (side, side, 4), dtype=np.uint16))
    return files


def _eight_bits(rgba, smooth):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8825).update({1: "N", 2: (51.0, 30.0, 0.0)})
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    described = {"exif": exif, "icc_profile": profile}
    rgb, animated = rgba.convert("RGB"), {"save_all": True, "append_images": [smooth], "duration": 50}
    files = [
        ("PNG", rgba, {"exif": exif, "icc_profile": bytes(64)}),
        *[("PNG", rgba.convert(mode), {}) for mode in ("1", "L", "LA", "P", "RGB")],
        ("PNG", rgba, animated),
        *[("JPEG", smooth.convert(mode), {"quality": 50, "exif": exif}) for mode in ("L", "RGB", "CMYK")],
        ("JPEG", rgb, {"progressive": True, **described}),
        *[("WEBP", rgba, {"lossless": lossless, **described}) for lossless in (True, False)],
        ("WEBP", rgba, animated),
        *[("BMP", rgba.convert(mode), {}) for mode in ("1", "L", "P", "RGB", "RGBA")],
        *[("TIFF", rgba, {"compression": method}) for method in (None, "tiff_lzw", "tiff_adobe_deflate")],
        *[("TIFF", rgba.convert("RGB").convert(mode), {}) for mode in ("1", "L", "P", "CMYK")],
        ("TIFF", rgb, {"save_all": True, "append_images": [smooth.convert("RGB")], **described}),
        ("TIFF", smooth.convert("RGB"), {"compression": "jpeg"}),
        ("GIF", rgba.convert("P"), {}),
        ("GIF", rgba, animated),
        *[("PPM", rgba.convert(mode), {}) for mode in ("1", "L", "RGB")],
        *[("TGA", rgba.convert(mode), {"compression": "tga_rle"}) for mode in ("L", "P", "RGB", "RGBA")],
    ]
    if features.check("jpg_2000"):
        files += [("JPEG2000", rgba.convert(mode), {}) for mode in ("L", "RGB", "RGBA")]
    if features.check("avif"):
        files += [("AVIF", rgba, described), ("AVIF", rgba, animated)]
    return files


def _deep(levels):
    """Files of 16 bits and of floats."""
    files = [encoded(Image.fromarray(levels[..., 0]), kind) for kind in ("PNG", "TIFF", "PPM")]
    files += [tiff16(levels[..., :channels]) for channels in (1, 3, 4)]
    files += [png(levels[..., :channels], kind) for channels, kind in ((1, 0), (2, 4), (3, 2), (4, 6))]
    floats = (levels[..., :3] / 65535).astype(np.float32)
    files += [cv2.imencode(".tiff", image)[1].tobytes() for image in (levels[..., :3], floats, floats[..., 0])]
    return files


def hostile():
    """Files that claim or unpack to far more than they hold."""
    rgb = Image.fromarray(np.zeros((9, 9, 3), np.uint8))
    zeros = zlib.compress(bytes(2**27), 9)
    bombs = {
        b"iCCP": b"x\0\0" + zeros,
        b"zTXt": b"Comment\0\0" + zeros,
        b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0" + zeros,
        b"tEXt": b"Comment\0" + bytes(2**20),
    }
    pixels = np.zeros((9, 9, 3), np.uint8)
    files = [png(pixels, 2, chunk(kind, body)) for kind, body in bombs.items()]
    files += [png(pixels, 2, *[chunk(b"tEXt", b"a\0b")] * 10_000)]
    for exif in _exif_blocks():
        files += [encoded(rgb, kind, exif=exif) for kind in ("PNG", "JPEG", "WEBP")]
    for profile in (bytes(128), struct.pack(">I", 2**31) + bytes(124), b"\xff" * 3000, bytes(2**20)):
        files += [encoded(rgb, kind, icc_profile=profile) for kind in ("PNG", "JPEG", "WEBP", "TIFF")]
    return [*files, *canvases(CANVAS)]


def _exif_blocks():
    """Directories that name themselves as the next one, that have 65,535 entries, and values of four gigabytes."""
    directory = b"Exif\0\0II*\0\x08\0\0\0"
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    yield directory + struct.pack("<H", 1) + entry + struct.pack("<I", 8)
    yield directory + struct.pack("<H", 65535) + entry * 100
    yield (
        directory
        + struct.pack("<H", 2)
        + struct.pack("<HHIIHHII", 0x10E, 2, 2**32 - 1, 8, 0x112, 5, 2**31, 8)
        + bytes(4)
    )


def canvases(size):
    """Animations of a few pixels on a canvas of `size` x `size`: WebP, GIF, APNG."""
    rgb, moving = Image.new("RGB", (9, 9)), {"save_all": True, "duration": 50}
    moving["append_images"] = [Image.new("RGB", (9, 9), "red")]
    webp = bytearray(encoded(rgb, "WEBP", **moving))
    place = webp.index(b"VP8X") + 12
    webp[place : place + 6] = 2 * (size - 1).to_bytes(3, "little")
    gif = bytearray(encoded(rgb, "GIF", **moving))
    gif[6:10] = struct.pack("<HH", size, size)
    apng = bytearray(encoded(rgb, "PNG", **moving))
    apng[16:24] = struct.pack(">II", size, size)
    return [bytes(webp), bytes(gif), with_checksums(apng)]
