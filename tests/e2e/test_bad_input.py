"""Bad input, row by row: what a command prints, its exit code, and what is on disk afterwards.

Commands that run are processes of their own, one a module; those that must refuse to start are called in this process.
"""

import io
import struct
import zlib
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
import yaml
from commands import BASICSR, call
from PIL import Image
from small_networks import config, small_iter

import iter_arch
from iter_model.image_io import Photo, read_image, write_image

SAMPLING = {"steps": 2}


def pixels(*size, seed=0):
    """A smooth photo (H, W, 3) of uint8 whose JPEG is close to it."""
    small = np.random.default_rng(seed).integers(40, 216, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def rotated(image):
    """A JPEG of the image as a camera held on its side notes it."""
    tags = Image.Exif()
    tags[0x0112] = 6
    return encoded(np.rot90(image), "JPEG", exif=tags, quality=100, subsampling=0)


def bomb(side):
    """A PNG file of a few bytes that claims side x side pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def unusable(image):
    """Files that are no image, or not all of one; their names say what they are, or pretend to be."""
    files = {"letter.jpg": b"no image", "empty.png": b"", "huge.png": bomb(100_000)}
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF"):
        whole = encoded(image, kind)
        files[f"cut.{kind.lower()}"] = whole[: len(whole) // 2]
    return files


class Code:
    """A pickle that creates a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def content(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# A file that is not an image, a truncated one; kinds and sizes of images: upscale


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with a small ITER."""
    folder = tmp_path_factory.mktemp("bad")
    iter_arch.save_pretrained(small_iter(), folder / "small.safetensors")
    return folder


@pytest.fixture(scope="module")
def upscaled(folder):
    """The folder after `upscale` of every kind of file, the exit code and the output."""
    photos = folder / "photos"
    photos.mkdir()
    image = pixels(24, 32)
    floats = image.astype(np.float32) / 255
    opacity = np.linspace(0, 1, 32, dtype=np.float32)[None].repeat(24, axis=0)
    write_image(photos / "rgb.png", Photo(floats))
    write_image(photos / "gray.png", Photo(floats[..., :1].repeat(3, axis=2), is_gray=True))
    write_image(photos / "rgba.png", Photo(floats, opacity))
    write_image(photos / "deep.png", Photo(floats, bit_depth=16))
    (photos / "cmyk.jpg").write_bytes(encoded(Image.fromarray(image).convert("CMYK"), "JPEG", quality=100))
    (photos / "turned.jpg").write_bytes(rotated(image))
    for height, width in ((1, 1), (1, 2000), (2000, 1), (5, 7)):
        write_image(photos / f"{height}x{width}.png", Photo(pixels(height, width).astype(np.float32) / 255))
    for name, data in unusable(pixels(200, 200)).items():
        (photos / f"bad-{name.replace('.', '-')}").write_bytes(data)
    words = ["-i", "photos", "-o", "out", "--model", "small.safetensors", "--steps", "2"]
    return folder, *call(folder, BASICSR, "upscale", *words)


def test_upscale_names_skips_and_counts_what_is_no_image(upscaled):
    folder, code, output = upscaled
    bad = [path.name for path in (folder / "photos").iterdir() if path.name.startswith("bad-")]
    good = sorted(path.stem for path in (folder / "photos").iterdir() if path.name not in bad)
    assert code == 1
    assert "Traceback" not in output
    assert f"restored {len(good)} of {len(good) + len(bad)} images in out ({len(bad)} failed)" in output
    named = Counter(line.split(": ")[1] for line in output.splitlines() if line.startswith("not restored"))
    assert named == Counter(f"photos/{name}" for name in bad)
    assert sorted(path.stem for path in (folder / "out").iterdir()) == good


def test_upscale_restores_every_kind_as_what_it_is(upscaled):
    out = upscaled[0] / "out"
    photos = {path.stem: read_image(path) for path in out.iterdir()}
    kinds = {name: (photo.bit_depth, photo.is_gray, photo.alpha is not None) for name, photo in photos.items()}
    plain = (8, False, False)
    sizes = {f"{height}x{width}": plain for height, width in ((1, 1), (1, 2000), (2000, 1), (5, 7))}
    assert kinds == sizes | {
        "rgb": plain,
        "gray": (8, True, False),
        "rgba": (8, False, True),
        "deep": (16, False, False),
        "cmyk": plain,
        "turned": plain,
    }
    for name in ("rgb", "gray", "rgba", "deep", "cmyk", "turned"):
        assert photos[name].rgb.shape == (96, 128, 3)
    for size in sizes:
        assert photos[size].rgb.shape[:2] == tuple(4 * int(side) for side in size.split("x"))
    opacity = np.linspace(0, 1, 32, dtype=np.float32)[None].repeat(24, axis=0)
    expected = np.clip(cv2.resize(opacity, (128, 96), interpolation=cv2.INTER_CUBIC), 0, 1)
    np.testing.assert_allclose(photos["rgba"].alpha, expected, atol=2 / 255)
    # as shown, not as stored: the mean colours of the halves are those of the upright photo
    for name in ("turned", "cmyk"):
        halves = [half.mean((0, 1)) for half in (photos[name].rgb[:, :64], photos[name].rgb[:, 64:])]
        upright = [half.mean((0, 1)) for half in (photos["rgb"].rgb[:, :64], photos["rgb"].rgb[:, 64:])]
        np.testing.assert_allclose(halves, upright, atol=0.1)


# The same in `basicsr test`, with our model and with BasicSR's own


KINDS = ("plain", "gray", "deep", "cmyk", "turned", "1x1", "1x300")


def options_of_test(lq, gt, **changes):
    return {
        "name": "bad",
        "model_type": "ITERModel",
        "scale": 4,
        "num_gpu": 0,
        "datasets": {"test": {"name": "set", "type": "PairedImageDataset", "dataroot_gt": gt, "dataroot_lq": lq}},
        "network_g": {"type": "ITER", **config()},
        "path": {"pretrain_network_g": "small.safetensors"},
        "val": {"sampling": SAMPLING, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0}}},
    } | changes


@pytest.fixture(scope="module")
def pairs(folder):
    """LQ and GT of every kind, and pairs of which one half cannot be used."""
    for name in ("lq", "gt"):
        (folder / name).mkdir()

    def pair(name, lq, gt):
        (folder / "lq" / name).write_bytes(lq)
        (folder / "gt" / name).write_bytes(gt)

    lq, gt = pixels(16, 24), encoded(pixels(64, 96))
    pair("plain.png", encoded(lq), gt)
    pair("gray.png", encoded(lq[..., 0]), encoded(pixels(64, 96)[..., 0]))
    write_image(folder / "deep.png", Photo(lq.astype(np.float32) / 255, bit_depth=16))
    pair("deep.png", (folder / "deep.png").read_bytes(), gt)
    pair("cmyk.jpg", encoded(Image.fromarray(lq).convert("CMYK"), "JPEG"), encoded(pixels(64, 96), "JPEG"))
    pair("turned.jpg", rotated(lq), rotated(pixels(64, 96)))
    pair("1x1.png", encoded(pixels(1, 1)), encoded(pixels(4, 4)))
    pair("1x300.png", encoded(pixels(1, 300)), encoded(pixels(4, 1200)))
    for name, data in unusable(pixels(200, 200)).items():
        pair(f"bad-lq-{name}", data, gt)
    pair("bad-gt.png", encoded(lq), gt[: len(gt) // 2])
    pair("bad-size.png", encoded(lq), encoded(pixels(64, 92)))
    return folder


def check_test(folder, code, output, name):
    bad = sorted(path.name for path in (folder / "lq").glob("bad-*"))
    assert code == 1, output
    assert "Traceback" not in output
    reasons = [line for line in output.splitlines() if "left out: " in line]
    assert [sum(f"/{name} " in line for line in reasons) for name in bad] == [1] * len(bad) and len(reasons) == len(bad)
    assert f"basicsr test: {len(bad)} images were left out" in output
    images = (folder / f"results/{name}/visualization/set").iterdir()
    assert sorted(path.stem for path in images) == sorted(f"{kind}_{name}" for kind in KINDS)


def test_test_leaves_out_what_cannot_be_read_and_measures_the_rest(pairs):
    (pairs / "test.yml").write_text(yaml.safe_dump(options_of_test("lq", "gt")))
    code, output = call(pairs, BASICSR, "test", "-opt", "test.yml")
    check_test(pairs, code, output, "bad")
    assert f"Validation set ({len(KINDS)} images, 10 left out)" in output and "# psnr: " in output
    log = next((pairs / "results/bad").glob("*.log")).read_text()
    assert "gt/bad-size.png has 64x92 pixels, but must have 64x96, 4 times those of lq/bad-size.png" in log
    assert "gt/bad-gt.png cannot be read: it is truncated" in log
    assert "lq/bad-lq-letter.jpg cannot be read: it is not an image" in log
    # as shown, not as stored
    image = cv2.imread(str(pairs / "results/bad/visualization/set/turned_bad.png"))
    assert image.shape == (64, 96, 3)


def test_test_of_basicsrs_own_model_leaves_out_the_same(pairs):
    network = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1}
    from basicsr.archs.edsr_arch import EDSR

    torch.save({"params": EDSR(**{k: v for k, v in network.items() if k != "type"}).state_dict()}, pairs / "edsr.pth")
    opt = options_of_test("lq", "gt", model_type="SRModel", network_g=network, name="edsr")
    opt["path"] = {"pretrain_network_g": "edsr.pth"}
    del opt["val"]["sampling"]
    (pairs / "edsr.yml").write_text(yaml.safe_dump(opt))
    code, output = call(pairs, BASICSR, "test", "-opt", "edsr.yml")
    check_test(pairs, code, output, "edsr")
    assert "Validation set" in output and "# psnr: " in output
