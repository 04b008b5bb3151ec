"""A folder as people have them: photos of every kind and name, broken ones, and what lies beside photos.

python tests/odd_photos.py FOLDER
"""

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from photos import bomb, chunk, encoded, exif, levels, png, smooth, tiff16
from PIL import Image, ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">a photo</x:xmpmeta>'
SIZE = (24, 32)
# Of a good photo's result: how many levels its pixels may be off where its kind of file is lossy.
LOSSY = 12


class Odd(NamedTuple):
    """What a photo becomes with --ext auto.

    kind: of the file, as in `Photo`. mode: 'L', 'LA', 'RGB' or 'RGBA'. bits: a channel.
    frames: of the photo, of which the first is restored.
    """

    kind: str = "png"
    mode: str = "RGB"
    bits: int = 8
    frames: int = 1


class OddFolder(NamedTuple):
    """Paths below the folder: good photos, photos that cannot be read, and files that are no photos."""

    good: dict[str, Odd]
    refused: set[str]
    passed_over: set[str]


def camera_tags(orientation=1):
    """EXIF of a camera."""
    tags = exif(orientation)
    tags[0x010F] = "Camera"
    tags.get_ifd(0x8769)[0x927C] = b"a maker's note"
    tags.get_ifd(0x8825)[1] = "N"
    return tags


def gray_profile(gamma=1.8):
    """An ICC profile of one channel."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * gamma))
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve + bytes(2)})


def press_profile():
    """An ICC profile of CMYK whose paper is not white and whose black is not black."""
    table = bytearray(b"mft1" + bytes(4) + bytes([4, 3, 2, 0]))
    table += struct.pack(">9i", *(65536 * (index % 4 == 0) for index in range(9)))
    table += bytes(range(256)) * 4
    for corner in range(16):
        cyan, magenta, yellow, black = (corner >> shift & 1 for shift in (3, 2, 1, 0))
        lightness = (90 - 25 * cyan - 35 * magenta - 8 * yellow) * (1 - black) + 12 * black
        a, b = -30 * cyan + 60 * magenta - 5 * yellow, -35 * cyan + 0 * magenta + 70 * yellow
        table += bytes([round(2.55 * max(lightness, 8)), *(round(128 + x * (1 - black)) for x in (a, b))])
    table += bytes(range(256)) * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": bytes(table)})


def _profile(device, space, connection, tags):
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    text = b"text" + bytes(4) + b"none\0\0\0\0"
    name = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(79)
    tags = {b"desc": name, b"cprt": text, b"wtpt": white, **tags}
    entries, body, offset = [], b"", 132 + 12 * len(tags)
    for signature, data in tags.items():
        data += bytes(-len(data) % 4)
        entries.append(struct.pack(">4sII", signature, offset + len(body), len(data)))
        body += data
    head = struct.pack(
        ">I4sI4s4s4s12s4s", offset + len(body), b"lcms", 0x02400000, device, space, connection, b"", b"acsp"
    )
    head += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + b"".join(entries) + body


def _animation(kind, seed=0, **options):
    frames = [Image.fromarray(smooth(*SIZE, seed=seed + number)) for number in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=80, **options)


def _by_opencv(suffix, pixels):
    return cv2.imencode(suffix, pixels)[1].tobytes()


def _jpegs(photo, image):
    jpeg = encoded(photo, "JPEG", quality=97, subsampling=0)
    camera = {
        "quality": 97,
        "subsampling": 0,
        "exif": camera_tags(),
        "xmp": XMP,
        "icc_profile": SRGB,
        "dpi": (300, 300),
    }
    noise = np.random.default_rng(0).bytes
    phone = encoded(photo, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    color = Odd("jpg")
    yield "camera.jpg", encoded(photo, "JPEG", comment=b"hello", **camera), color
    for orientation in range(1, 9):
        tags = camera_tags(orientation)
        yield f"turned {orientation}.jpg", encoded(photo, "JPEG", quality=97, subsampling=0, exif=tags), color
    yield "gray.jpg", encoded(image.convert("L"), "JPEG", quality=97), Odd("jpg", "L")
    yield "cmyk.jpg", encoded(image.convert("CMYK"), "JPEG", quality=97), color
    yield "press.jpg", encoded(image.convert("CMYK"), "JPEG", quality=97, icc_profile=press_profile()), color
    yield "color with a profile for gray.jpg", encoded(photo, "JPEG", quality=97, icc_profile=gray_profile()), color
    yield "progressive.JPG", encoded(photo, "JPEG", quality=97, progressive=True), color
    yield "motion.jpg", jpeg + b"\xff\xd9" + noise(200_000), color
    yield "no end.jpg", jpeg[:-2], color
    yield "phone.jpg", phone, color
    yield "phone.mpo", phone, color
    yield "old.jfif", jpeg, color
    yield "old.jpe", jpeg, color
    yield "a photo without a suffix", jpeg, color
    yield "renamed.png", jpeg, color
    yield "写真 ümläut (1), 100%.jpg", jpeg, color
    yield "-x.jpg", jpeg, color
    yield "same stem.jpg", jpeg, color


def _pngs(photo, image):
    gray = smooth(*SIZE)[..., :1]
    deep = smooth(*SIZE).astype(np.uint16) * 257
    alpha = np.tile(np.linspace(0, 255, SIZE[1], dtype=np.uint8), (SIZE[0], 1))[..., None]
    with_alpha = np.concatenate([photo, alpha], 2)
    deep_alpha = np.concatenate([deep, alpha.astype(np.uint16) * 257], 2)
    text = chunk(b"tEXt", b"Title\0a photo")
    colors = chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"sRGB", b"\0")
    density = chunk(b"pHYs", struct.pack(">IIB", 11811, 11811, 1))
    camera = chunk(b"eXIf", camera_tags().tobytes().removeprefix(b"Exif\0\0"))
    yield "chunks.png", png(photo, 2, text, colors, density, camera), Odd()
    yield "gray.png", png(gray, 0), Odd(mode="L")
    yield "gray 16.png", png(deep[..., :1], 0), Odd(mode="L", bits=16)
    yield "gray alpha.png", png(with_alpha[..., 2:], 4), Odd(mode="LA")
    yield "gray alpha 16.png", png(deep_alpha[..., 2:], 4), Odd(mode="LA", bits=16)
    yield "rgba.png", png(with_alpha, 6), Odd(mode="RGBA")
    yield "rgba 16.png", png(deep_alpha, 6), Odd(mode="RGBA", bits=16)
    yield "rgb 16.png", png(deep, 2), Odd(bits=16)
    yield "palette.png", encoded(image.quantize(32)), Odd()
    yield "palette with a hole.png", encoded(image.quantize(8), transparency=3), Odd(mode="RGBA")
    yield "1 bit.png", encoded(photo[..., 0] > 127), Odd(mode="L")
    yield "gray as rgb.png", png(np.repeat(gray, 3, 2), 2), Odd()
    yield "large text.png", png(photo, 2, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2_700_000)))), Odd()
    yield "damaged text.png", png(photo, 2, text[:-1] + b"?"), Odd()
    yield "large profile.png", png(photo, 2, chunk(b"iCCP", b"i\0\0" + zlib.compress(SRGB + bytes(2_000_000)))), Odd()
    yield "hdr.png", png(photo, 2, chunk(b"cICP", bytes([9, 16, 0, 1]))), Odd()
    yield "animation.png", _animation("PNG"), Odd(frames=3)
    yield "one pixel.png", png(photo[:1, :1], 2), Odd()
    yield "a line.png", png(levels((1, 90)), 2), Odd()
    yield "renamed.jpg", png(photo, 2), Odd()
    yield "same stem.png", png(photo, 2), Odd()
    yield "twins.png", png(photo, 2), Odd()
    yield " a space and a ' and a \" and a\nline break.png", png(photo, 2), Odd()
    yield "x" * 200 + ".png", png(photo, 2), Odd()
    yield "%d {0} $HOME.png", png(photo, 2), Odd()
    yield "a folder.jpg/in it.png", png(photo, 2), Odd()
    yield "2024/06 [June]/trip.png", png(photo, 2), Odd()


def _others(photo, image):
    floats = (photo.astype(np.float32) / 255)[..., ::-1]
    camera = {"exif": camera_tags(), "xmp": XMP, "icc_profile": SRGB}
    yield "picture.gif", encoded(image, "GIF"), Odd()
    yield "animation.gif", _animation("GIF"), Odd(frames=3)
    yield "photo.webp", encoded(photo, "WEBP", quality=97, **camera), Odd("webp")
    yield "alpha.webp", encoded(image.convert("RGBA"), "WEBP", lossless=True), Odd("webp")
    yield "animation.webp", _animation("WEBP"), Odd("webp", frames=3)
    yield "photo.avif", encoded(photo, "AVIF", quality=97, **camera), Odd("avif")
    yield "photo.jp2", encoded(photo, "JPEG2000"), Odd()
    yield "photo.bmp", encoded(photo, "BMP"), Odd()
    yield "twins.bmp", encoded(photo, "BMP"), Odd()
    yield "photo.ppm", encoded(photo, "PPM"), Odd()
    yield "photo.pgm", encoded(image.convert("L"), "PPM"), Odd(mode="L")
    yield "photo.pbm", encoded(image.convert("1"), "PPM"), Odd(mode="L")
    yield "photo.tga", encoded(photo, "TGA"), Odd()
    yield "photo.tif", encoded(photo, "TIFF", compression="tiff_lzw", **camera), Odd("tiff")
    yield "rgb 16.tif", tiff16(photo.astype(np.uint16) * 257), Odd("tiff", bits=16)
    yield "gray 16.tif", tiff16(photo[..., :1].astype(np.uint16) * 257), Odd("tiff", "L", 16)
    yield "gray float.tif", encoded(Image.fromarray(np.ascontiguousarray(floats[..., 0])), "TIFF"), Odd("tiff", "L", 32)
    yield "rgb float.tif", _by_opencv(".tiff", floats), Odd("tiff", bits=32)
    yield "cmyk.tif", encoded(image.convert("CMYK"), "TIFF"), Odd("tiff")
    yield "lab.tif", encoded(_lab(image), "TIFF"), Odd("tiff")
    yield "pages.tif", encoded(image, "TIFF", save_all=True, append_images=[image]), Odd("tiff", frames=2)


def _lab(image):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.buildTransform(srgb, lab, "RGB", "LAB").apply(image)


def good_photos():
    """Name, content and `Odd` of every photo."""
    photo = smooth(*SIZE)
    image = Image.fromarray(photo)
    for make in (_jpegs, _pngs, _others):
        yield from make(photo, image)
    try:
        import pillow_heif
    except ImportError:
        return
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=97)
    yield "photo.heic", file.getvalue(), Odd("jpg")


def bad_photos():
    """Name and content of files that look like photos and are none, or not all of one."""
    photo = smooth(96, 128)
    yield "letter.jpg", b"no image"
    yield "page.png", b"<!DOCTYPE html><title>404 Not Found</title>"
    yield "empty.png", b""
    yield "huge.png", bomb(60_000)
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM"):
        whole = encoded(photo, kind)
        yield f"cut.{kind.lower()}", whole[: len(whole) // 2]
    damaged = bytearray(encoded(photo))
    damaged[len(damaged) // 2] ^= 1
    yield "damaged.png", bytes(damaged)


BESIDE = "Thumbs.db desktop.ini IMG_1.xmp IMG_1.aae IMG_1.mov IMG_1.CR2 photo.json .hidden.jpg half.png.tmp".split()


def make_odd_folder(root):
    """Write the files below `root`."""
    good = {}
    for name, data, odd in good_photos():
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        good[name] = odd
    refused = {"dangling.jpg"}
    for name, data in bad_photos():
        Path(root, name).write_bytes(data)
        refused.add(name)
    for name in BESIDE:
        Path(root, name).write_bytes(b"no photo")
    Path(root, "dangling.jpg").symlink_to("nowhere.jpg")
    Path(root, "link.png").symlink_to("2024/06 [June]/trip.png")
    Path(root, "2024", "back").symlink_to("..")
    return OddFolder(good | {"link.png": Odd()}, refused, {name for name in BESIDE if not name.startswith(".")})


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True)
    print(make_odd_folder(sys.argv[1]))
