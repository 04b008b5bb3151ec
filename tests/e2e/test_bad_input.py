"""Bad input, row by row: what a command prints, its exit code, and what is on disk afterwards.

Commands that run are processes of their own, shared by tests; those that must refuse to start run in this process.
Three rows are elsewhere: checkpoints in test_bad_checkpoints.py, out of GPU memory in unit/test_upscale_memory.py,
a folder that vanishes in unit/test_unreadable_files.py.
"""

import os
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
import yaml
from bad_input import TRAINING, options_of_test, train_with
from basicsr.archs.edsr_arch import EDSR as EDSRNetwork
from basicsr.data import build_dataset
from commands import BASICSR, call, torchrun
from option_files import EDSR
from photos import encoded, rotated, smooth, unusable
from PIL import Image

from basicsr_compat.images import Photo, read_photo
from basicsr_compat.pipeline.data import ReadableItems
from iter_model import commands
from iter_model.photo.writer import write_photo

# A file that is not an image, a truncated one; kinds and sizes of images: upscale


@pytest.fixture(scope="module")
def upscaled(small_iter_folder):
    """The folder after `upscale` of every kind of file, the exit code and the output."""
    photos = small_iter_folder / "photos"
    photos.mkdir()
    image = smooth(24, 32)
    floats = image.astype(np.float32) / 255
    opacity = np.linspace(0, 1, 32, dtype=np.float32)[None].repeat(24, axis=0)
    write_photo(photos / "rgb.png", Photo(floats))
    write_photo(photos / "gray.png", Photo(floats[..., :1].repeat(3, axis=2), is_gray=True))
    write_photo(photos / "rgba.png", Photo(floats, opacity))
    write_photo(photos / "deep.png", Photo(floats, bit_depth=16))
    (photos / "cmyk.jpg").write_bytes(encoded(Image.fromarray(image).convert("CMYK"), "JPEG", quality=100))
    (photos / "turned.jpg").write_bytes(rotated(image))
    for height, width in ((1, 1), (1, 2000), (2000, 1), (5, 7)):
        write_photo(photos / f"{height}x{width}.png", Photo(smooth(height, width).astype(np.float32) / 255))
    for name, data in unusable(smooth(200, 200)).items():
        (photos / f"bad-{name.replace('.', '-')}").write_bytes(data)
    words = ["-i", "photos", "-o", "out", "--model", "small.safetensors", "--steps", "2"]
    return small_iter_folder, *call(small_iter_folder, BASICSR, "upscale", *words)


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
    photos = {path.stem: read_photo(path) for path in out.iterdir()}
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
    # as shown, not as stored: the mean colors of the halves are those of the upright photo
    for name in ("turned", "cmyk"):
        halves = [half.mean((0, 1)) for half in (photos[name].rgb[:, :64], photos[name].rgb[:, 64:])]
        upright = [half.mean((0, 1)) for half in (photos["rgb"].rgb[:, :64], photos["rgb"].rgb[:, 64:])]
        np.testing.assert_allclose(halves, upright, atol=0.1)


# The same in `basicsr test`, with our model and with BasicSR's own


KINDS = ("plain", "gray", "deep", "cmyk", "turned", "1x1", "1x300")


@pytest.fixture(scope="module")
def pairs(small_iter_folder):
    """LQ and GT of every kind, and pairs of which one half cannot be used."""
    for name in ("lq", "gt"):
        (small_iter_folder / name).mkdir()

    def pair(name, lq, gt):
        (small_iter_folder / "lq" / name).write_bytes(lq)
        (small_iter_folder / "gt" / name).write_bytes(gt)

    lq, gt = smooth(16, 24), encoded(smooth(64, 96))
    pair("plain.png", encoded(lq), gt)
    pair("gray.png", encoded(lq[..., 0]), encoded(smooth(64, 96)[..., 0]))
    write_photo(small_iter_folder / "deep.png", Photo(lq.astype(np.float32) / 255, bit_depth=16))
    pair("deep.png", (small_iter_folder / "deep.png").read_bytes(), gt)
    pair("cmyk.jpg", encoded(Image.fromarray(lq).convert("CMYK"), "JPEG"), encoded(smooth(64, 96), "JPEG"))
    pair("turned.jpg", rotated(lq), rotated(smooth(64, 96)))
    pair("1x1.png", encoded(smooth(1, 1)), encoded(smooth(4, 4)))
    pair("1x300.png", encoded(smooth(1, 300)), encoded(smooth(4, 1200)))
    for name, data in unusable(smooth(200, 200)).items():
        pair(f"bad-lq-{name}", data, gt)
    pair("bad-gt.png", encoded(lq), gt[: len(gt) // 2])
    pair("bad-size.png", encoded(lq), encoded(smooth(64, 92)))
    return small_iter_folder


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
    weights = EDSRNetwork(**{key: value for key, value in EDSR.items() if key != "type"}).state_dict()
    torch.save({"params": weights}, pairs / "edsr.pth")
    opt = options_of_test("lq", "gt", model_type="SRModel", network_g=EDSR, name="edsr")
    opt["path"] = {"pretrain_network_g": "edsr.pth"}
    del opt["val"]["sampling"]
    (pairs / "edsr.yml").write_text(yaml.safe_dump(opt))
    code, output = call(pairs, BASICSR, "test", "-opt", "edsr.yml")
    check_test(pairs, code, output, "edsr")
    assert "Validation set" in output and "# psnr: " in output


# The same in a training run: replaced; on two ranks, either of which may meet them


def test_training_names_an_unreadable_photo_once_replaces_it_and_counts(training_photos):
    folder = training_photos
    (folder / "train.yml").write_text(yaml.safe_dump(TRAINING))
    # two epochs of four iterations on each rank
    words = ["-opt", "train.yml", "--launcher", "pytorch", "--force_yml", "train:total_iter=8"]
    code, output = call(folder, *torchrun(2), "train", *words)
    assert code == 0, output
    for name in ("letter.jpg", "cut.png", "cut.jpeg", "empty.png"):
        assert output.count(f"train/{name} cannot be read and is replaced by another image") in (1, 2)  # ranks
    log = next((folder / "experiments/run").glob("*.log")).read_text()
    assert (
        "4 of 8 training images could not be read and were replaced: "
        "train/cut.jpeg, train/cut.png, train/empty.png, train/letter.jpg" in log
    )
    assert (folder / "experiments/run/models/net_g_latest.pth").is_file()


# Refused before anything is made


@pytest.mark.parametrize(
    ("where", "value", "messages"),
    [
        ("datasets.train.gt_sise", 48, ["datasets.train.gt_sise", "'gt_size'"]),
        ("datasets.train.degradation", {"jpeg_rang": [1, 2]}, ["train.degradation.jpeg_rang", "'jpeg_range'"]),
        ("datasets.train.dataroot_gt", "nowhere", ["'nowhere' does not exist", "datasets/README.md"]),
        ("datasets.train.dataroot_gt", "nothing", ["'nothing'", "no image", "datasets/README.md"]),
        ("datasets.train.dataroot_gt", "photo", ["photo/a.png has 40x64 pixels", "crop of 48", "pad_small_gt"]),
    ],
)
def test_options_and_data_that_cannot_do_are_refused(training_photos, refused, where, value, messages):
    message = refused(*train_with(training_photos, where, value))
    assert all(text in message for text in messages), message


def test_an_unknown_option_of_our_models_is_refused(training_photos, refused):
    opt = options_of_test("photo", "photo")
    opt["val"]["sampling"] = {"alhpa": 0.5}
    (training_photos / "changed.yml").write_text(yaml.safe_dump(opt))
    message = refused("test", "-opt", "changed.yml")
    assert "val.sampling.alhpa" in message and "'alpha'" in message


def test_upscale_refuses_a_missing_and_an_empty_folder(training_photos, refused):
    assert "-i nowhere does not exist; give an image or a folder" in refused("upscale", "-i", "nowhere", "-o", "x")
    assert "-i nothing holds no photos; expected images in it" in refused("upscale", "-i", "nothing", "-o", "x")


# Names of files


def test_images_of_any_name_are_restored_into_the_folder(small_iter_folder, tmp_path, capfd, monkeypatch):
    names = [b"--model.png", b"a\nb.png", b"\xff.png", "фото.png".encode(), b"...x.png", b" .png", b"%s {0}.png"]
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / os.fsdecode(name)).write_bytes(encoded(smooth(8, 8)))
    (tmp_path / "in/\udcfe\n\x1b[2J.txt").write_bytes(b"no image")
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"old")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/--model.png").symlink_to(secret)
    monkeypatch.chdir(tmp_path)
    weights = str(small_iter_folder / "small.safetensors")
    code = commands.main(["upscale", "-i", "in", "-o", "out", "--model", weights, "--steps", "1"])
    out, err = capfd.readouterr()
    assert code == 1 and "restored 6 of 7 images in out (1 failed)" in out
    start = "not restored: in/\\udcfe\\n\\x1b[2J.txt: it is not an image of a known kind"
    assert err.startswith(start) and err.count("\n") == 1
    expected = {name for name in names if not name.startswith(b".")}
    assert {os.fsencode(path.name) for path in (tmp_path / "out").iterdir()} == expected
    assert secret.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "secret.png"}


def test_a_test_set_with_a_name_of_broken_utf8(small_iter_folder, tmp_path):
    for name in ("lq", "gt"):
        (tmp_path / name).mkdir()
    for name in (b"a.png", b"\xff\n.png"):
        (tmp_path / "lq" / os.fsdecode(name)).write_bytes(encoded(smooth(8, 8)))
        (tmp_path / "gt" / os.fsdecode(name)).write_bytes(encoded(smooth(32, 32)))
    opt = {"type": "PairedImageDataset", "phase": "test", "name": "set", "scale": 4, "io_backend": {"type": "disk"}}
    opt |= {"dataroot_lq": str(tmp_path / "lq"), "dataroot_gt": str(tmp_path / "gt")}
    items = ReadableItems(build_dataset(opt))
    items = [items[index] for index in range(2)]
    assert "lq" in items[0] and "a name that cannot be printed: rename it" in items[1]["unreadable"]
