"""`basicsr upscale`: kinds, sizes and frames of results, what scripts are told, several devices."""

import json
import os
import re
import shlex
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import chunk, encoded, levels, png, save, smooth
from PIL import Image, ImageCms
from upscale_stand_ins import enlarge, main, names, run

from basicsr_compat.images import read_frames, read_photo
from iter_model.commands import build_parser
from iter_model.photo import devices
from iter_model.photo.canvas import OutputSize

DOCS = Path(__file__).parents[2] / "docs"


# Kinds and sizes


def test_auto_keeps_the_kind_of_each_photo(bicubic_net, photo_folder, tmp_path):
    pixels = smooth(16, 16)
    kinds = {"a.jpg": "JPEG", "b.png": "PNG", "c.webp": "WEBP", "d.tif": "TIFF", "e.avif": "AVIF", "f.bmp": "BMP"}
    for name, kind in kinds.items():
        (photo_folder / name).write_bytes(encoded(pixels, kind))
    (photo_folder / "g.png").write_bytes(encoded(pixels, "JPEG"))  # content counts, not the suffix
    assert run(photo_folder, tmp_path / "out", "--ext", "auto") == 0
    assert names(tmp_path / "out") == ["a.jpg", "b.png", "c.webp", "d.tiff", "e.avif", "f.png", "g.jpg"]


def test_what_is_too_large_for_its_kind_becomes_png(bicubic_net, photo_folder, tmp_path, capsys):
    (photo_folder / "a.webp").write_bytes(encoded(levels((1, 4200)), "WEBP"))
    assert run(photo_folder, tmp_path / "out", "--ext", "auto") == 0
    assert names(tmp_path / "out") == ["a.webp.png"] and "too large for a webp file" in capsys.readouterr().err
    bicubic_net.calls.clear()
    assert run(photo_folder, tmp_path / "out", "--ext", "auto", "--skip-existing") == 0 and not bicubic_net.calls
    assert run(photo_folder, tmp_path / "other", "--ext", "webp") == 1
    assert "16383" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (("--outscale", 1.5), (24, 36)),
        (("--outscale", 6), (96, 144)),
        (("--width", 30), (20, 30)),
        (("--height", 30), (30, 45)),
        (("--width", 30, "--height", 50), (50, 30)),
        (("--max-side", 48), (32, 48)),
        (("--max-side", 480), (64, 96)),
    ],
    ids=str,
)
def test_results_have_the_size_that_was_asked_for(bicubic_net, photo_folder, tmp_path, options, size):
    pixels = smooth(16, 24)
    save(photo_folder / "a.png", np.dstack([pixels, np.full((16, 24), 99, np.uint8)]))
    assert run(photo_folder, tmp_path / "out", *options, "--color-correction", "none") == 0
    result = np.asarray(Image.open(tmp_path / "out/a.png"))
    expected = Image.fromarray(enlarge(pixels)).resize(size[::-1], Image.Resampling.LANCZOS)
    assert result.shape == (*size, 4) and (result[..., 3] == 99).all()
    assert np.abs(result[..., :3].astype(int) - np.asarray(expected)).max() <= 2  # both are rounded twice


def test_a_result_of_gigapixels_is_refused_and_the_rest_restored(bicubic_net, photo_folder, tmp_path, capsys):
    save(photo_folder / "a.png", levels((200, 2)))
    save(photo_folder / "b.png", levels((2, 200)))
    assert run(photo_folder, tmp_path / "out", "--width", 20_000) == 1
    assert names(tmp_path / "out") == ["b.png"]
    assert "a.png: its result would have 20000x2000000 pixels, more than 2863311520" in capsys.readouterr().err


def test_one_size_at_a_time(bicubic_net, photo_folder, tmp_path, capsys):
    save(photo_folder / "a.png")
    assert run(photo_folder, tmp_path / "out", "--outscale", 2, "--max-side", 9) == 2
    assert "only one of --outscale, --max-side can be given" in capsys.readouterr().err
    assert OutputSize().of((3, 5), 4) == (12, 20)


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("gray", [False, True])
def test_tiff_keeps_depth_gray_and_metadata(bicubic_net, photo_folder, tmp_path, bits, gray):
    from basicsr_compat.images import Metadata, Photo
    from iter_model.photo.writer import write_photo

    tags = Image.Exif()
    tags[0x010F] = "Camera"
    tags.get_ifd(0x8769).update({0x927C: b"a maker's note"})
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rgb = np.random.default_rng(0).random((9, 7, 1 if gray else 3), np.float32) * np.ones((1, 1, 3), np.float32)
    metadata = Metadata(tags.tobytes().removeprefix(b"Exif\0\0"), b"<x/>", (300.0, 300.0))
    write_photo(photo_folder / "a.tif", Photo(rgb, None, bits, gray, None if gray else profile, metadata), "tiff")
    assert run(photo_folder, tmp_path / "out", "--ext", "auto") == 0
    back = read_photo(tmp_path / "out/a.tiff")
    assert (back.bit_depth, back.is_gray, back.kind) == (bits, gray, "tiff") and back.metadata.xmp == b"<x/>"
    assert back.icc_profile == (None if gray else profile)
    np.testing.assert_allclose(back.rgb, enlarge(rgb), atol=2.02 / (2 ** min(bits, 16) - 1))
    assert back.metadata.dpi == (300, 300)
    found = Image.Exif()
    found.load(b"Exif\0\0" + back.metadata.exif)
    assert found[0x010F] == "Camera" and found.get_ifd(0x8769)[0x927C] == b"a maker's note"
    if bits < 32 or gray:  # Pillow does not open 32-bit color
        with Image.open(tmp_path / "out/a.tiff") as image:
            assert image.getexif()[0x010F] == "Camera" and image.info["dpi"] == (300, 300)
            assert image.getexif().get_ifd(0x8769)[0x927C] == b"a maker's note"


# Frames


def animation(kind, count=3):
    first, *rest = (Image.fromarray(np.full((8, 12, 3), 60 * i + 40, np.uint8)) for i in range(count))
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    timed = {} if kind == "TIFF" else {"duration": [100 * (i + 1) for i in range(count)], "loop": 2}
    return encoded(first, kind, save_all=True, append_images=rest, **timed, **options)


@pytest.mark.parametrize(("kind", "ext"), [("GIF", "gif"), ("WEBP", "webp"), ("PNG", "png"), ("TIFF", "tiff")])
def test_every_frame_is_restored_with_its_delay(bicubic_net, photo_folder, tmp_path, kind, ext):
    (photo_folder / "a.img").write_bytes(animation(kind))
    assert run(photo_folder, tmp_path / "out", "--ext", "auto", "--frames", "all", "--quality", 100) == 0
    frames = list(read_frames(tmp_path / f"out/a.{ext}"))
    assert [frame.duration for frame in frames] == ([None] * 3 if kind == "TIFF" else [100, 200, 300])
    assert frames[0].loop == (None if kind == "TIFF" else 2)
    for index, frame in enumerate(frames):
        assert frame.photo.rgb.shape == (32, 48, 3)
        np.testing.assert_allclose(frame.photo.rgb, (60 * index + 40) / 255, atol=3 / 255)


def test_the_first_frame_alone_is_said(bicubic_net, photo_folder, tmp_path, capsys):
    (photo_folder / "a.gif").write_bytes(animation("GIF"))
    assert run(photo_folder, tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["a.png"]
    assert "the first of 3 frames (--frames all restores them all)" in capsys.readouterr().err
    assert run(photo_folder, tmp_path / "out", "--frames", "all", "--ext", "jpg") == 1
    assert "a jpg file holds no animation" in capsys.readouterr().err


# Color and text


def test_png_keeps_its_color_and_text_chunks(bicubic_net, photo_folder, tmp_path, capsys):
    color = [(b"gAMA", (45455).to_bytes(4, "big")), (b"cICP", b"\x0c\x0d\x00\x01"), (b"sRGB", b"\0")]
    text = [(b"tEXt", b"Title\0a cat"), (b"iTXt", b"Author\0\0\0\0\0me")]
    pixels = levels()
    data = png(pixels, 2, *(chunk(*one) for one in (*color, *text)))
    for name, content in {
        "a.png": data,
        "b.png": png(pixels.astype(np.uint16) * 257, 2, *(chunk(*c) for c in color)),
    }.items():
        (photo_folder / name).write_bytes(content)
    assert run(photo_folder, tmp_path / "out") == 0
    back = read_photo(tmp_path / "out/a.png")
    assert sorted(back.color_chunks) == sorted(color) and sorted(back.metadata.text) == sorted(text)
    assert sorted(read_photo(tmp_path / "out/b.png").color_chunks) == sorted(color)
    assert run(photo_folder, tmp_path / "none", "--metadata", "none") == 0
    plain = read_photo(tmp_path / "none/a.png")
    assert sorted(plain.color_chunks) == sorted(color) and plain.metadata.text == ()
    capsys.readouterr()
    assert run(photo_folder / "a.png", tmp_path / "out", "--ext", "jpg") == 0
    assert "text and the color space (cICP) left out: a jpg file does not hold it" in capsys.readouterr().err


def test_exif_over_65_kB_stays_where_the_format_holds_it(bicubic_net, photo_folder, tmp_path, capsys):
    tags = Image.Exif()
    tags[0x010F] = "Camera"
    tags.get_ifd(0x8769)[0x927C] = bytes(90_000)
    (photo_folder / "a.png").write_bytes(encoded(levels(), exif=tags))
    for ext in ("png", "webp", "tiff"):
        assert run(photo_folder, tmp_path / "out", "--ext", ext) == 0
        assert len(read_photo(tmp_path / f"out/a.{ext}").metadata.exif) >= 90_000
    capsys.readouterr()
    assert run(photo_folder, tmp_path / "out", "--ext", "jpg") == 0
    assert re.search(r"EXIF of 90\d\d\d bytes left out: a jpg file", capsys.readouterr().err)


def test_xmp_of_several_segments_stays_in_a_jpeg(bicubic_net, photo_folder, tmp_path, capsys):
    packet, extension = b"<x xmpNote:HasExtendedXMP='%s'/>" % (b"0A" * 16), np.random.default_rng(0).bytes(150_000)
    parts = [(offset, extension[offset : offset + 60_000]) for offset in (60_000, 0, 120_000)]  # in any order
    heads = [b"http://ns.adobe.com/xmp/extension/\0" + b"0A" * 16 + struct.pack(">II", 150_000, at) for at, _ in parts]
    bodies = [head + part for head, (_, part) in zip(heads, parts, strict=True)]
    segments = [b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body for body in bodies]
    (photo_folder / "a.jpg").write_bytes(encoded(levels(), "JPEG", xmp=packet, extra=b"".join(segments)))
    (photo_folder / "cut.jpg").write_bytes(encoded(levels(), "JPEG", xmp=packet, extra=b"".join(segments[:2])))
    assert run(photo_folder, tmp_path / "out", "--ext", "auto") == 0
    assert read_photo(tmp_path / "out/a.jpg").metadata.extended_xmp == extension
    kept = read_photo(tmp_path / "out/cut.jpg").metadata
    assert kept.xmp == packet and kept.extended_xmp is None
    capsys.readouterr()
    assert run(photo_folder / "a.jpg", tmp_path / "out", "--ext", "png") == 0
    assert "extended XMP of 150000 bytes left out: a png file does not hold it" in capsys.readouterr().err


# What scripts are told


def test_json_has_an_object_per_file(bicubic_net, photo_folder, tmp_path, capsys):
    save(photo_folder / "a.png")
    save(photo_folder / "b.png")
    (photo_folder / "c.jpg").touch()
    (photo_folder / "d.xmp").touch()
    assert run(photo_folder / "b.png", tmp_path / "out", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert run(photo_folder, tmp_path / "out", "--json", "--skip-existing") == 1
    found = {Path(one["input"]).name: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    assert found["a.png"].pop("seconds") >= 0
    source, target = photo_folder / "a.png", tmp_path / "out/a.png"
    assert found["a.png"] == {
        "input": str(source), "output": str(target), "width": 36, "height": 24, "frames": 1, "start_step": 1,
    }  # fmt: skip
    assert found["b.png"]["skipped"] == "restored already" and found["d.xmp"]["skipped"] == "no photo"
    assert "0 bytes" in found["c.jpg"]["error"]


def test_the_small_weights_say_what_they_are(bicubic_net, photo_folder, tmp_path, capsys):
    save(photo_folder / "a.png")
    assert run(photo_folder, tmp_path / "out", "--model", "iter_tiny_x4") == 0
    assert capsys.readouterr().err.count("demonstrates the method") == 1
    assert run(photo_folder, tmp_path / "out", "--model", "iter_tiny_x4", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


# Names and folders


def test_names_that_look_like_options_and_a_home(bicubic_net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "-x.jpg")
    assert main("-i", "-x.jpg", "-o=~/out") == 0
    assert names(tmp_path / "out") == ["-x.png"]


def test_a_run_in_place_can_be_repeated(bicubic_net, photo_folder):
    for name in ("a.png", "b.png"):
        save(photo_folder / name)
    (photo_folder / "b_x4.png.tmp").write_bytes(b"what a run left that was killed")
    for _ in range(2):
        assert run(photo_folder, photo_folder, "--suffix", "_x4", "--quiet") == 0
        assert sorted({*names(photo_folder)} - {"b_x4.png.tmp"}) == ["a.png", "a_x4.png", "b.png", "b_x4.png"]


def test_pixels_over_the_limit_need_a_switch(bicubic_net, photo_folder, tmp_path, capsys):
    save(photo_folder / "a.png")
    assert run(photo_folder, tmp_path / "out", "--max-pixels", 50) == 1
    assert "--max-pixels" in capsys.readouterr().err
    assert run(photo_folder, tmp_path / "out", "--max-pixels", 0) == 0


# Devices


def test_two_workers_write_the_same_files(bicubic_net, photo_folder, tmp_path):
    for index in range(6):
        save(photo_folder / f"{index}.png", levels(seed=index))
    assert run(photo_folder, tmp_path / "one") == 0
    assert run(photo_folder, tmp_path / "two", "--device", "cpu,cpu") == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_devices_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.choose_devices("cuda:0, cuda:1,cpu") == [
        torch.device("cuda:0"),
        torch.device("cuda:1"),
        torch.device("cpu"),
    ]
    assert devices.choose_device("auto") == torch.device("cuda")
    with pytest.raises(ValueError, match="--device=cuda:2 must be below cuda:2"):
        devices.choose_devices("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no Apple GPU"):
        devices.choose_device("mps")


def test_nothing_is_computed_in_float64_which_apple_gpus_lack():
    """Stands in for one: a restoration that makes a float64 tensor would fail there."""
    from small_networks import small_iter
    from torch.utils._python_dispatch import TorchDispatchMode

    from basicsr_compat.images import Photo
    from iter_model.photo.restorer import Restorer

    class NoFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            assert not isinstance(result, torch.Tensor) or result.dtype != torch.float64, function
            return result

    photo = Photo(np.random.default_rng(0).random((20, 24, 3), np.float32), np.ones((20, 24), np.float32))
    for method in ("adain", "wavelet"):
        net = small_iter()
        restorer = Restorer(
            net=net, config=net.sampling, seed=0, tile=16, batch=1, color_correction=method, color_levels=4
        )
        with NoFloat64():
            assert restorer.restore(photo).rgb.shape == (80, 96, 3)


def test_the_commands_of_the_page_are_understood():
    """docs/photos.md names options that there are."""
    commands = re.findall(r"^\$ basicsr (upscale .*)$", (DOCS / "photos.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) >= 20
    for command in commands:
        words = shlex.split(command.partition(" > ")[0])
        assert build_parser("upscale").parse_args(words).command == "upscale"
    assert os.path.exists(DOCS / "photos.md")
