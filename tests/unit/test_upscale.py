"""`basicsr upscale` in this process, on a stand-in for the network: what becomes of every photo, and every message."""

import dataclasses
import re
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from photos import levels, save, smooth
from pickles import Code
from PIL import Image
from torch import nn
from torch.nn import functional as F

import iter_arch
from basicsr_compat.images import Metadata, Photo, read_photo
from iter_arch import color, precision
from iter_model import commands
from iter_model.commands import upscale
from iter_model.photo import jobs, reader, restorer
from iter_model.photo.writer import WRITERS, write_photo


class BicubicNet(nn.Module):
    """Stands in for ITER where the outcome must be known: it enlarges bicubically."""

    scale = 4
    multiple = 16
    sampling = iter_arch.SamplingConfig()

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls = []

    def restore(self, lq, *, config, seed, tile, batch):
        self.calls.append({"lq": lq, "config": config, "seed": seed, "tile": tile, "batch": batch})
        image = F.interpolate(lq, scale_factor=self.scale, mode="bicubic").clamp(0, 1)
        tokens, start_step = torch.zeros(1, 1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
        return iter_arch.Restored(image, tokens, start_step, torch.ones(1, 1, 1))


@pytest.fixture
def net(monkeypatch):
    net = BicubicNet()
    monkeypatch.setattr(iter_arch, "load_pretrained", lambda name: net)
    return net


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def enlarge(pixels):
    """(h, w, 3) uint8 or float in [0, 1] -> (4h, 4w, 3) of the same kind, as `BicubicNet` does it."""
    top = 255 if pixels.dtype == np.uint8 else 1
    lq = torch.from_numpy(pixels.astype(np.float32) / top).permute(2, 0, 1)[None]
    image = F.interpolate(lq, scale_factor=4, mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0).numpy()
    return np.rint(top * image).astype(np.uint8) if top > 1 else image


def main(*arguments):
    return commands.main(["upscale", *map(str, arguments)])


def run(source, output, *arguments):
    return main("-i", source, "-o", output, "--device", "cpu", *arguments)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# What is restored


def test_a_folder_of_photos_becomes_a_folder_of_png(net, photos, tmp_path, capsys):
    for name in ("a.png", "B.BMP", "c.v2.jpg", "фото 1.webp", "no suffix"):
        save(photos / name, format="PNG")
    (photos / "subfolder").mkdir()
    (photos / ".DS_Store").write_bytes(b"litter")
    output = tmp_path / "new" / "results"
    assert run(photos, output) == 0
    assert names(output) == sorted(["a.png", "B.png", "c.v2.png", "фото 1.png", "no suffix.png"])
    for path in output.iterdir():
        np.testing.assert_array_equal(np.asarray(Image.open(path)), enlarge(levels()))
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"restored 5 of 5 images in {output}"
    assert err == ""


def test_a_single_file(net, photos, tmp_path, capsys):
    assert run(save(photos / "one.bmp"), tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["one.png"]
    assert capsys.readouterr().out == f"restored 1 of 1 image in {tmp_path / 'out'}\n"


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
def test_gray_alpha_and_bit_depth_are_kept(net, photos, tmp_path, bits, gray, alpha):
    rng = np.random.default_rng(0)
    top = 2**bits - 1
    rgb = (rng.integers(0, top + 1, (6, 9, 3)) / top).astype(np.float32)
    if gray:
        rgb = rgb[..., :1].repeat(3, axis=2)
    opacity = np.full((6, 9), 0.6, np.float32) if alpha else None
    write_photo(photos / "a.png", Photo(rgb, opacity, bits, gray))
    assert run(photos, tmp_path / "out") == 0
    result = read_photo(tmp_path / "out" / "a.png")
    assert (result.bit_depth, result.is_gray) == (bits, gray)
    np.testing.assert_allclose(result.rgb, enlarge(rgb), atol=1 / top)
    if alpha:
        np.testing.assert_allclose(result.alpha, 0.6, atol=1 / top)
    else:
        assert result.alpha is None


def test_sixteen_bits_are_more_than_eight(net, photos, tmp_path):
    ramp = np.linspace(0.5, 0.51, 54).reshape(6, 9, 1).repeat(3, axis=2).astype(np.float32)
    write_photo(photos / "a.png", Photo(ramp, bit_depth=16))
    assert run(photos, tmp_path / "out") == 0
    assert len(np.unique(cv2.imread(str(tmp_path / "out" / "a.png"), cv2.IMREAD_UNCHANGED))) >= 54


def test_cmyk_and_rotated_jpeg(net, photos, tmp_path):
    smooth = cv2.resize(levels((3, 4)), (32, 24), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(smooth).convert("CMYK").save(photos / "cmyk.jpg", quality=100, subsampling=0)
    orientation = Image.Exif()
    orientation[0x0112] = 6
    save(photos / "rotated.jpg", smooth, exif=orientation, quality=100, subsampling=0)
    assert run(photos, tmp_path / "out") == 0
    for name, expected in {"cmyk": smooth, "rotated": np.rot90(smooth, -1)}.items():
        result = np.asarray(Image.open(tmp_path / "out" / f"{name}.png")).astype(int)
        assert np.abs(result - enlarge(expected)).max() < 10


def test_alpha_is_bicubic_and_stays_in_range(net, photos, tmp_path):
    opacity = np.zeros((8, 8), np.float32)
    opacity[2:6, 2:6] = 1
    write_photo(photos / "a.png", Photo(np.full((8, 8, 3), 0.5, np.float32), opacity))
    assert run(photos, tmp_path / "out") == 0
    expected = np.clip(cv2.resize(opacity, (32, 32), interpolation=cv2.INTER_CUBIC), 0, 1)
    np.testing.assert_allclose(read_photo(tmp_path / "out" / "a.png").alpha, expected, atol=1 / 255)


def test_colour_hidden_under_transparency_does_not_reach_the_network(net, photos, tmp_path):
    rgb = np.zeros((8, 8, 3), np.float32)
    rgb[...] = (1, 0, 1)  # garbage
    opacity = np.zeros((8, 8), np.float32)
    rgb[2:6, 2:4], rgb[2:6, 4:6], opacity[2:6, 2:6] = 0.2, 0.8, 1
    write_photo(photos / "a.png", Photo(rgb, opacity))
    assert run(photos, tmp_path / "out") == 0
    expected = np.where(np.arange(8)[None, :, None] < 4, 0.2, 0.8) * np.ones((8, 8, 3))
    np.testing.assert_allclose(net.calls[0]["lq"][0].permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_a_wholly_transparent_image(net, photos, tmp_path):
    write_photo(photos / "a.png", Photo(levels() / np.float32(255), np.zeros((6, 9), np.float32)))
    assert run(photos, tmp_path / "out") == 0
    np.testing.assert_array_equal(net.calls[0]["lq"][0].permute(1, 2, 0).numpy(), levels() / np.float32(255))
    assert not read_photo(tmp_path / "out" / "a.png").alpha.any()


@pytest.mark.parametrize(
    ("options", "cast"), [((), 0), (("--color-correction", "adain"), 0), (("--color-correction", "none"), 0.1)], ids=str
)
def test_color_correction_takes_a_cast_away(net, photos, tmp_path, monkeypatch, options, cast):
    pixels = levels() // 2 + 64
    save(photos / "a.png", pixels)
    plain = net.restore
    monkeypatch.setattr(net, "restore", lambda lq, **k: plain(lq, **k)._replace(image=plain(lq, **k).image + 0.1))
    assert run(photos, tmp_path / "out", *options) == 0
    result = read_photo(tmp_path / "out" / "a.png").rgb
    # Eq. 10 compares with the deviation of the input at its own size, which is a little larger.
    tolerance = 0.1 if "adain" in options else 1.01 / 255
    np.testing.assert_allclose(result, enlarge(pixels) / 255 + cast, atol=tolerance)
    assert result.mean() == pytest.approx(enlarge(pixels).mean() / 255 + cast, abs=0.01)


def test_neighbours_of_equal_size_go_through_together(net, photos, tmp_path):
    for index, width in enumerate([9, 9, 9, 8, 9, 30, 30, 30]):
        save(photos / f"{index}.png", levels((6, width), seed=index))
    assert run(photos, tmp_path / "out", "--batch", 2, "--tile", 16) == 0
    # 2 x 16 x 16 pixels at a time: two images of 6x30, and never more than two.
    assert [tuple(call["lq"].shape) for call in net.calls] == [
        (b, 3, 6, w) for b, w in ((2, 9), (1, 9), (1, 8), (1, 9), (2, 30), (1, 30))
    ]
    assert names(tmp_path / "out") == [f"{index}.png" for index in range(8)]
    expected = enlarge(levels((6, 30), seed=6))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "6.png")), expected)


def test_options_reach_the_network(net, photos, tmp_path):
    save(photos / "a.png")
    given = "--alpha 0.3 --steps 3 --schedule linear --no-adaptive --selection halton --temperature 0.5 --no-reevaluate"
    given += " --redraw-kept --fidelity 0.2 --seed 7 --tile 64 --batch 3"
    assert run(photos, tmp_path / "out", *given.split()) == 0
    assert net.calls[0]["config"] == iter_arch.SamplingConfig(
        steps=3,
        alpha=0.3,
        schedule="linear",
        adaptive=False,
        selection="halton",
        temperature=0.5,
        reevaluate=False,
        redraw_kept=True,
        fidelity=0.2,
    )
    assert (net.calls[0]["seed"], net.calls[0]["tile"], net.calls[0]["batch"]) == (7, 64, 3)


def test_defaults_are_those_of_the_library(net, photos, tmp_path):
    save(photos / "a.png")
    assert run(photos, tmp_path / "out") == 0
    assert net.calls[0]["config"] == iter_arch.SamplingConfig()
    assert (net.calls[0]["seed"], net.calls[0]["tile"], net.calls[0]["batch"]) == (0, 128, 1)
    assert run(photos, tmp_path / "out", "--tile", 0) == 0
    assert net.calls[1]["tile"] is None


def test_help_names_every_option_and_its_default(capsys):
    with pytest.raises(SystemExit):
        main("--help")
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for field in dataclasses.fields(iter_arch.SamplingConfig):
        assert f"--{field.name.replace('_', '-')}" in text
    for option in (
        "-i",
        "-o",
        "--model",
        "--seed",
        "--tile",
        "--batch",
        "--device",
        "--color-correction",
        "--color-levels",
        "default: cosine",
    ):
        assert option in text


def test_bad_files_are_named_counted_and_skipped(net, photos, tmp_path, capsys):
    save(photos / "a.png")
    save(photos / "z.png")
    whole = save(photos / "cut.jpg", levels((64, 64))).read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").touch()
    (photos / "letter.jpg").write_text("no image")
    (photos / "notes.txt").write_text("no image either")
    output = tmp_path / "out"
    assert run(photos, output) == 1
    assert names(output) == ["a.png", "z.png"]
    out, err = capsys.readouterr()
    assert out == f"restored 2 of 6 images in {output} (4 failed)\n"
    lines = err.splitlines()
    assert [Path(line.split(": ")[1]).name for line in lines] == ["cut.jpg", "empty.png", "letter.jpg", "notes.txt"]
    assert "truncated" in lines[0] and "0 bytes" in lines[1] and "not an image" in lines[2]


def test_one_failure_of_the_network_or_the_disk_does_not_stop_the_rest(net, photos, tmp_path, monkeypatch, capsys):
    for name in ("a.png", "b.png", "c.png", "d.png"):
        save(photos / name)
    plain = net.restore

    def restore(lq, **options):
        if not net.calls:
            net.calls.append(None)
            raise RuntimeError("broken kernel")
        return plain(lq, **options)

    def write(path, photo, *options):
        if path.stem == "b":
            raise OSError(28, "No space left on device")
        if path.stem == "d":
            raise MemoryError
        write_photo(path, photo, *options)

    monkeypatch.setattr(net, "restore", restore)
    monkeypatch.setattr(jobs, "write_photo", write)
    assert run(photos, tmp_path / "out") == 1
    assert names(tmp_path / "out") == ["c.png"]
    err = capsys.readouterr().err
    assert f"{photos / 'a.png'}: broken kernel" in err
    assert f"{photos / 'b.png'}: [Errno 28] No space left on device" in err
    assert f"{photos / 'd.png'}: MemoryError" in err


def test_of_images_that_went_through_together_only_the_broken_one_fails(net, photos, tmp_path, monkeypatch, capsys):
    for index in range(4):
        save(photos / f"{index}.png", np.full((6, 9, 3), 50 * index, np.uint8))
    plain = net.restore

    def restore(lq, **options):
        if (lq.mean((1, 2, 3)) * 255).round().eq(100).any():
            raise RuntimeError("broken kernel")
        return plain(lq, **options)

    monkeypatch.setattr(net, "restore", restore)
    assert run(photos, tmp_path / "out", "--batch", 4) == 1
    assert names(tmp_path / "out") == ["0.png", "1.png", "3.png"]
    assert capsys.readouterr().err == f"not restored: {photos / '2.png'}: broken kernel\n"


def test_messages_come_in_the_order_of_the_files(net, photos, tmp_path, monkeypatch, capsys):
    for name in "acdf":
        save(photos / f"{name}.png")
    for name in "be":
        (photos / f"{name}.png").touch()

    def write(path, photo, *options):
        time.sleep(0.02)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs, "write_photo", write)
    assert run(photos, tmp_path / "out") == 1
    lines = capsys.readouterr().err.splitlines()
    assert [Path(line.split(": ")[1]).stem for line in lines] == list("abcdef")


def test_reading_restoring_and_writing_overlap_and_few_images_are_held(net, photos, tmp_path, monkeypatch):
    """Each stage waits for what only happens if the others go on beside it."""
    for index in range(8):
        save(photos / f"{index}.png")
    read, restored, written = [], [], []
    third_read, second_restored = threading.Event(), threading.Event()
    plain = net.restore

    def read_one(path):
        read.append(path.stem)
        assert len(read) <= len(restored) + 1 + jobs.READ_AHEAD + 1
        if len(read) == 3:
            third_read.set()
        return read_photo(path)

    def restore(lq, **options):
        assert third_read.wait(10)
        assert len(restored) - len(written) <= 2
        restored.append(None)
        if len(restored) == 2:
            second_restored.set()
        return plain(lq, **options)

    def write(path, photo, *options):
        assert second_restored.wait(10)
        write_photo(path, photo, *options)
        written.append(path.stem)

    monkeypatch.setattr(reader, "read_photo", read_one)
    monkeypatch.setattr(net, "restore", restore)
    monkeypatch.setattr(jobs, "write_photo", write)
    assert run(photos, tmp_path / "out") == 0
    assert read == written == [str(index) for index in range(8)]


# Folders


def test_two_photos_of_one_name_are_both_restored_and_told_apart(net, photos, tmp_path, capsys):
    save(photos / "a.jpg")
    save(photos / "a.png", levels(seed=1))
    save(photos / "b.png")
    assert run(photos, tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["a.jpg.png", "a.png.png", "b.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "a.png.png")), enlarge(levels(seed=1)))
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and f"{photos / 'a.jpg'} becomes a.jpg.png" in err


def test_what_is_no_photo_is_passed_over_and_said_once(net, photos, tmp_path, capsys):
    save(photos / "a.jpg")
    for name in ("a.mov", "a.xmp", "Thumbs.db", "raw.CR2", "desktop.ini"):
        (photos / name).write_bytes(b"no photo")
    assert run(photos, tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["a.png"]
    listed = [str(photos / name) for name in ("Thumbs.db", "a.mov", "a.xmp", "desktop.ini", "raw.CR2")]
    assert capsys.readouterr().err == f"passed over: {', '.join(listed)}\n"


def test_a_note_beside_a_photo_of_its_name_fails_alone(net, photos, tmp_path):
    save(photos / "a.jpg")
    (photos / "a.txt").write_bytes(b"a note")
    assert run(photos, tmp_path / "out") == 1
    assert names(tmp_path / "out") == ["a.png"]


def test_subfolders_are_mirrored(net, photos):
    for path in ("a.png", "s1/0001.png", "s2/0001.png", "s2/deep/b.jpg", ".hidden/c.png"):
        (photos / path).parent.mkdir(parents=True, exist_ok=True)
        save(photos / path)
    (photos / "s1/again").symlink_to(photos)
    output = photos / "results"
    for _ in range(2):  # the results of the first are no photos of the second
        assert run(photos, output, "--recursive") == 0
        found = sorted(str(path.relative_to(output)) for path in output.rglob("*.png"))
        assert found == ["a.png", "s1/0001.png", "s2/0001.png", "s2/deep/b.png"]


def test_several_inputs_and_patterns(net, photos, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in (photos / "a.png", photos / "b.png", other / "a.png", other / "c.jpg"):
        save(path)
    assert main("-i", photos, other / "*.jpg", "-i", other / "a.png", "-o", tmp_path / "out", "--device", "cpu") == 0
    assert names(tmp_path / "out") == ["a.png.png", "a.png_2.png", "b.png", "c.png"]


def test_a_broken_link_is_named_and_the_rest_restored(net, photos, tmp_path, capsys):
    save(photos / "a.png")
    (photos / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert run(photos, tmp_path / "out") == 1
    assert names(tmp_path / "out") == ["a.png"]
    assert f"not restored: {photos / 'gone.png'}: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(("ext", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("avif", "AVIF")])
def test_results_are_of_the_kind_that_was_asked_for(net, photos, tmp_path, ext, kind):
    pixels = smooth(24, 32)
    save(photos / "a.png", pixels)
    sizes = []
    for quality in () if ext == "png" else (100, 10):
        assert run(photos, tmp_path / "out", "--ext", ext, "--quality", quality) == 0
        sizes.append((tmp_path / f"out/a.{ext}").stat().st_size)
    assert sizes == sorted(sizes, reverse=True)
    assert run(photos, tmp_path / "out", "--ext", ext) == 0
    with Image.open(tmp_path / f"out/a.{ext}") as image:
        assert image.format == kind
        assert np.abs(np.asarray(image).astype(int) - enlarge(pixels)).max() <= 8


def camera_photo(path):
    """A JPEG as a camera makes it: on its side, with sizes, a maker note, GPS, a thumbnail, XMP and dpi."""
    tags = Image.Exif()
    tags[0x0112], tags[0x010F] = 6, "Camera"
    tags.get_ifd(0x8769).update({0xA002: 32, 0xA003: 24, 0x927C: b"a maker's note"})
    tags.get_ifd(0x8825).update({1: "N"})
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    return save(path, smooth(24, 32), exif=tags, xmp=xmp, dpi=(300, 300))


@pytest.mark.parametrize("ext", ["png", "jpg", "webp", "avif"])
def test_metadata_are_kept_and_say_what_the_result_is(net, photos, tmp_path, ext):
    camera_photo(photos / "a.jpg")
    assert run(photos, tmp_path / "out", "--ext", ext) == 0
    with Image.open(tmp_path / f"out/a.{ext}") as image:
        assert image.size == (4 * 24, 4 * 32)
        tags = image.getexif()
        assert (tags[0x0112], tags[0x010F]) == (1, "Camera")
        details = tags.get_ifd(0x8769)
        assert (details[0xA002], details[0xA003], details[0x927C]) == (4 * 24, 4 * 32, b"a maker's note")
        assert tags.get_ifd(0x8825)[1] == "N"
        xmp = image.info.get("xmp") or image.info["XML:com.adobe.xmp"].encode()
        assert b'tiff:Orientation="1"' in xmp
        if ext in ("png", "jpg"):
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    again = read_photo(tmp_path / f"out/a.{ext}")
    assert again.rgb.shape == (4 * 32, 4 * 24, 3) and again.metadata.exif and again.metadata.xmp == xmp


def test_metadata_are_left_out_where_that_is_asked_for(net, photos, tmp_path):
    camera_photo(photos / "a.jpg")
    assert run(photos, tmp_path / "out", "--metadata", "none") == 0
    assert read_photo(tmp_path / "out/a.png").metadata == Metadata()


@pytest.mark.parametrize("exif", [b"", b"rubbish", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"])
def test_broken_metadata_never_cost_a_photo(net, photos, tmp_path, exif):
    save(photos / "a.jpg", smooth(24, 32), exif=b"Exif\0\0" + exif, xmp=b"\xff\0<")
    for ext in ("png", "jpg", "webp", "avif"):
        assert run(photos, tmp_path / "out", "--ext", ext) == 0


def test_a_suffix_lets_results_lie_beside_their_photos(net, photos):
    save(photos / "a.png")
    assert run(photos, photos, "--suffix", "_x4") == 0
    assert names(photos) == ["a.png", "a_x4.png"]


def test_whole_results_are_skipped_and_others_made_again(net, photos, tmp_path, capsys):
    for name in ("a.png", "b.png", "c.png"):
        save(photos / name)
    output = tmp_path / "out"
    assert run(photos, output) == 0
    whole = (output / "b.png").read_bytes()
    (output / "b.png").write_bytes(whole[: len(whole) // 2])
    (output / "c.png").unlink()
    net.calls.clear()
    assert run(photos, output, "--skip-existing") == 0
    assert len(net.calls) == 2 and (output / "b.png").read_bytes() == whole
    out, err = capsys.readouterr()
    assert err == "skipped 1 that are restored already\n"
    assert out.splitlines()[-1] == f"restored 2 of 2 images in {output}"


def test_a_folder_that_cannot_be_written_is_found_out_first(net, photos, tmp_path, monkeypatch, capsys):
    save(photos / "a.png")

    def refused(**options):
        raise PermissionError(13, "Permission denied", str(options["dir"]))

    monkeypatch.setattr(upscale.tempfile, "TemporaryFile", refused)
    assert run(photos, tmp_path / "out") == 2
    assert net.calls == [] and "Permission denied" in capsys.readouterr().err


# Wrong usage: exit status 2, nothing written


def fails(capsys, output, *arguments):
    """The message of a run that must refuse to start."""
    before = names(output) if output.is_dir() else output.exists()
    assert main("-o", output, *arguments) == 2
    assert (names(output) if output.is_dir() else output.exists()) == before
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("basicsr upscale: error: ") and err.count("\n") == 1
    return err


def test_missing_and_empty_input(net, photos, tmp_path, capsys):
    output = tmp_path / "out"
    message = fails(capsys, output, "-i", tmp_path / "gone")
    assert f"{tmp_path / 'gone'} does not exist" in message
    message = fails(capsys, output, "-i", photos)
    assert str(photos) in message and "expected images" in message and "--recursive" in message


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--alpha", "1.5", "--alpha=1.5 must be a number in [0, 1]"),
        ("--alpha", "nan", "--alpha=nan must be a number in [0, 1]"),
        ("--steps", "0", "--steps=0 must be a whole number from 1 to 1000"),
        ("--temperature", "0", "--temperature=0.0 must be a number > 0"),
        ("--selection", "best", "--selection='best' must be one of evaluator, confidence, halton"),
        ("--schedule", "sine", "--schedule='sine'"),
        ("--seed", "-1", "--seed=-1 must be in"),
        ("--tile", "-1", "--tile=-1 must be 0"),
        ("--tile", "15", "at least 16"),
        ("--batch", "0", "--batch=0 must be at least 1"),
        ("--quality", "90", "--quality=90 must be from 1 to 100, and --ext"),
    ],
)
def test_values_out_of_range(net, photos, tmp_path, capsys, option, value, rule):
    save(photos / "a.png")
    assert rule in fails(capsys, tmp_path / "out", "-i", photos, f"{option}={value}")


def test_values_of_a_wrong_kind(photos, tmp_path, capsys):
    for wrong in (("--steps", "many"), ("--device", "tpu"), ("--unknown",)):
        with pytest.raises(SystemExit) as caught:
            main("-i", photos, "-o", tmp_path / "out", *wrong)
        assert caught.value.code == 2
        assert wrong[0] in capsys.readouterr().err


def test_unknown_and_broken_models(photos, tmp_path, capsys):
    save(photos / "a.png")
    assert "no_such_model" in fails(capsys, tmp_path / "out", "-i", photos, "--model", "no_such_model")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    assert str(broken) in fails(capsys, tmp_path / "out", "-i", photos, "--model", broken)


def test_code_in_a_model_file_is_not_run(photos, tmp_path, capsys):
    save(photos / "a.png")
    torch.save({"params": {"weight": Code(str(tmp_path / "proof"))}}, tmp_path / "model.pth")
    assert run(photos, tmp_path / "out", "--model", tmp_path / "model.pth") == 2
    err = capsys.readouterr().err
    assert err.startswith("basicsr upscale: error: ") and str(tmp_path / "model.pth") in err
    assert names(tmp_path) == ["model.pth", "photos"]


def test_cuda_without_a_gpu(net, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    save(photos / "a.png")
    assert "--device=cpu" in fails(capsys, tmp_path / "out", "-i", photos, "--device", "cuda")
    assert main("-i", photos, "-o", tmp_path / "out", "--device", "auto") == 0


def test_an_input_is_never_overwritten(net, photos, tmp_path, capsys):
    source = save(photos / "a.png")
    before = source.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(photos)
    for given, output in ((photos, photos), (source, photos), (photos, link)):
        assert f"overwrite the input {source}" in fails(capsys, output, "-i", given)
    assert source.read_bytes() == before
    save(photos / "b.jpg")
    assert run(photos / "b.jpg", photos) == 0
    assert names(photos) == ["a.png", "b.jpg", "b.png"]


def test_output_that_is_no_folder(net, photos, tmp_path, capsys):
    save(photos / "a.png")
    file = tmp_path / "file"
    file.touch()
    assert f"{file} is a file" in fails(capsys, file, "-i", photos)
    assert "looks like a file" in fails(capsys, tmp_path / "result.png", "-i", photos)
    assert str(file) in fails(capsys, file / "below", "-i", photos)


def out_of_memory_above(net, side, monkeypatch):
    """Let the network run out of GPU memory with tiles above this side."""
    plain = net.restore

    def restore(lq, *, tile, **options):
        tried.append(tile)
        if (max(lq.shape[2:]) if tile is None else min(tile, max(lq.shape[2:]))) > side:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(lq, tile=tile, **options)

    tried = []
    monkeypatch.setattr(net, "restore", restore)
    return tried


def test_out_of_memory_is_retried_with_smaller_tiles_and_said(net, photos, tmp_path, monkeypatch, capsys):
    save(photos / "a.png", levels((3, 200)))
    save(photos / "b.png", levels((3, 40)))
    tried = out_of_memory_above(net, 50, monkeypatch)
    assert run(photos, tmp_path / "out", "--tile", 0) == 0
    assert tried == [None, 100, 50, None]
    assert names(tmp_path / "out") == ["a.png", "b.png"]
    assert capsys.readouterr().err.splitlines() == [
        f"{photos / 'a.png'}: out of GPU memory, trying again with tiles of {side} pixels" for side in (100, 50)
    ]


@pytest.mark.parametrize(("width", "tile", "tiles"), [(100, 128, [128, 50, 25, 16]), (500, 24, [24, 16])])
def test_smaller_tiles_begin_below_the_image_and_end_at_one_window(
    net, photos, tmp_path, monkeypatch, width, tile, tiles
):
    save(photos / "a.png", levels((3, width)))
    tried = out_of_memory_above(net, 16, monkeypatch)
    assert run(photos, tmp_path / "out", "--tile", tile) == 0
    assert tried == tiles


def test_out_of_memory_first_halves_what_goes_through_together(net, photos, tmp_path, monkeypatch, capsys):
    for name in ("a.png", "b.png"):
        save(photos / name, levels((16, 100)))
    save(photos / "c.png", levels((3, 40)))
    plain, tried = net.restore, []

    def restore(lq, *, tile, batch, **options):
        tried.append((tile, batch))
        if batch * tile > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(lq, tile=tile, batch=batch, **options)

    monkeypatch.setattr(net, "restore", restore)
    assert run(photos, tmp_path / "out", "--tile", 40, "--batch", 4) == 0
    # a and b together; what goes through together stays small, the size of the tiles is each image's own.
    assert tried == [(40, 4), (40, 2), (40, 1), (20, 1), (40, 1), (20, 1)]
    said = "out of GPU memory, trying again with"
    assert capsys.readouterr().err.splitlines() == [
        f"{photos / 'a.png'} and 1 more: {said} 2 tiles at a time",
        f"{photos / 'a.png'} and 1 more: {said} 1 tile at a time",
        f"{photos / 'a.png'} and 1 more: {said} tiles of 20 pixels",
        f"{photos / 'c.png'}: {said} tiles of 20 pixels",
    ]


def test_out_of_memory_with_the_smallest_tiles_is_a_failure(net, photos, tmp_path, monkeypatch, capsys):
    save(photos / "a.png", levels((3, 500)))
    save(photos / "b.png", levels((3, 9)))
    tried = out_of_memory_above(net, 9, monkeypatch)
    assert run(photos, tmp_path / "out") == 1
    assert tried == [128, 64, 32, 16, 128]
    assert names(tmp_path / "out") == ["b.png"]
    assert f"not restored: {photos / 'a.png'}: out of GPU memory even with tiles of 16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "during"), [(reader, "read_photo"), (jobs, "write_photo"), (iter_arch, "load_pretrained")]
)
def test_interruption_leaves_whole_files_only(net, photos, tmp_path, monkeypatch, capsys, module, during):
    for name in ("a.png", "b.png"):
        save(photos / name)
    plain = getattr(module, during)

    def interrupted(path, *arguments):
        if during == "load_pretrained" or Path(path).stem == "b":
            raise KeyboardInterrupt
        return plain(path, *arguments)

    monkeypatch.setattr(module, during, interrupted)
    output = tmp_path / "out"
    assert run(photos, output) == 130
    if during != "load_pretrained":
        assert names(output) == ["a.png"]
    assert "interrupted" in capsys.readouterr().err


class Terminal:
    """A stderr that is a terminal."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_progress_bar_on_a_terminal_only(net, photos, tmp_path, monkeypatch, capsys):
    save(photos / "a.png")
    assert run(photos, tmp_path / "out") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert run(photos, tmp_path / "out") == 0
    assert "1/1" in sys.stderr.text


# What help says without PyTorch is what the library has


def test_options_are_those_of_the_library():
    defaults = {field.name: field.default for field in dataclasses.fields(iter_arch.SamplingConfig)}
    assert {name: option.default for name, option in upscale.SAMPLING.items()} == defaults
    released = dataclasses.asdict(iter_arch.SamplingConfig.released())
    assert {name: value for name, value in released.items() if value != defaults[name]} == upscale.RELEASED_SAMPLING
    assert upscale.COLOR_METHODS == tuple(color.METHODS) and upscale.DEFAULT_LEVELS == color.DEFAULT_LEVELS
    assert upscale.PRECISIONS == precision.PRECISIONS
    assert upscale.EXTENSIONS == tuple(WRITERS)
    assert (upscale.DEFAULT_TILE, upscale.DEFAULT_BATCH) == (restorer.DEFAULT_TILE, restorer.DEFAULT_BATCH)


def test_the_examples_of_help_run(net, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(photos / "a.png")
    save(tmp_path / "old.jpg")
    with pytest.raises(SystemExit):
        main("--help")
    found = re.findall(r"^  basicsr upscale (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(found) >= 4
    for words in found:
        assert main(*words.split(), "--device", "cpu") == 0, words
