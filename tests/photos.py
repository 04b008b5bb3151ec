"""Photos for the tests, whole and broken, of every kind of file."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image


def levels(size=(6, 9), seed=0):
    """A photo of noise (H, W, 3) of uint8."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def random_pixels(rng, channels, bits=8, size=(5, 7)):
    """Noise (H, W, channels) of 8 or 16 bits."""
    return rng.integers(0, 2**bits, (*size, channels), dtype=f"uint{bits}")


def smooth(*size, seed=0):
    """A smooth photo (H, W, 3) of uint8 whose JPEG is close to it."""
    small = np.random.default_rng(seed).integers(40, 216, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


def blurred(*size, seed=0):
    """A photo (H, W, 3) of uint8 with soft blobs, from black to white."""
    image = cv2.GaussianBlur(levels(size, seed), (9, 9), 0)
    return cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)


def encoded(image, kind="PNG", **options):
    """The file of pixels, or of a Pillow image."""
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def save(path, pixels=None, **options):
    """A file of the kind that its suffix says."""
    Image.fromarray(levels() if pixels is None else pixels).save(path, **options)
    return path


def save_photos(folder, count, *size):
    """Blurred photos `0.png`, `1.png`, ... of one size in a folder, which is made."""
    folder.mkdir()
    for index in range(count):
        save(folder / f"{index}.png", blurred(*size, seed=index))


def save_pairs(gt, lq, count, size, scale=4):
    """Blurred photos in the folder gt, and the same in 1/scale of the size in lq; both are made."""
    save_photos(gt, count, *size)
    lq.mkdir()
    for path in sorted(gt.iterdir()):
        with Image.open(path) as image:
            image.reduce(scale).save(lq / path.name)


def file_of(folder, data, name="photo"):
    """A file of these bytes, whatever they are."""
    path = folder / name
    path.write_bytes(data)
    return path


def exif(orientation):
    """EXIF that says nothing but how the camera was held, 1 to 8."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def rotated(image):
    """A JPEG of the image as a camera held on its side notes it."""
    return encoded(np.rot90(image), "JPEG", exif=exif(6), quality=100, subsampling=0)


def chunk(kind, body):
    """A chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(pixels, color_type, *extra):
    """A PNG file made by hand: neither Pillow nor OpenCV writes all kinds."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(height, -1).view(np.uint8)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bomb(side):
    """A PNG file of a few bytes that claims side x side pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def tiff16(pixels, orientation=1):
    """An uncompressed 16-bit TIFF file made by hand, gray or RGB(A): Pillow writes none in color."""
    height, width, channels = pixels.shape
    body = pixels.astype("<u2").tobytes()
    shorts = struct.pack(f"<{channels}H", *[16] * channels)
    end = 8 + len(body)
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, channels, 16 if channels == 1 else end),
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


def unusable(image):
    """Files that are no image, or not all of one; their names say what they are, or pretend to be."""
    files = {"letter.jpg": b"no image", "empty.png": b"", "huge.png": bomb(100_000)}
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF"):
        whole = encoded(image, kind)
        files[f"cut.{kind.lower()}"] = whole[: len(whole) // 2]
    return files
