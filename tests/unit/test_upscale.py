"""`basicsr upscale` in this process, on a stand-in for the network: what is restored, what options do."""

import dataclasses
import re
import sys

import cv2
import numpy as np
import pytest
from photos import levels, save
from PIL import Image
from upscale_stand_ins import enlarge, main, names, run

import iter_arch
from basicsr_compat.images import MAX_PIXELS, Photo, read_photo
from iter_arch import color, precision
from iter_model.commands import upscale_options
from iter_model.photo import devices, restorer
from iter_model.photo.writer import write_photo

# What is restored


def test_a_folder_of_photos_becomes_a_folder_of_png(bicubic_net, photo_folder, tmp_path, capsys):
    for name in ("a.png", "B.BMP", "c.v2.jpg", "фото 1.webp", "no suffix"):
        save(photo_folder / name, format="PNG")
    (photo_folder / "subfolder").mkdir()
    (photo_folder / ".DS_Store").write_bytes(b"litter")
    output = tmp_path / "new" / "results"
    assert run(photo_folder, output) == 0
    assert names(output) == sorted(["a.png", "B.png", "c.v2.png", "фото 1.png", "no suffix.png"])
    for path in output.iterdir():
        np.testing.assert_array_equal(np.asarray(Image.open(path)), enlarge(levels()))
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"restored 5 of 5 images in {output}"
    assert err == ""


def test_a_single_file(bicubic_net, photo_folder, tmp_path, capsys):
    assert run(save(photo_folder / "one.bmp"), tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["one.png"]
    assert capsys.readouterr().out == f"restored 1 of 1 image in {tmp_path / 'out'}\n"


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
def test_gray_alpha_and_bit_depth_are_kept(bicubic_net, photo_folder, tmp_path, bits, gray, alpha):
    rng = np.random.default_rng(0)
    top = 2**bits - 1
    rgb = (rng.integers(0, top + 1, (6, 9, 3)) / top).astype(np.float32)
    if gray:
        rgb = rgb[..., :1].repeat(3, axis=2)
    opacity = np.full((6, 9), 0.6, np.float32) if alpha else None
    write_photo(photo_folder / "a.png", Photo(rgb, opacity, bits, gray))
    assert run(photo_folder, tmp_path / "out") == 0
    result = read_photo(tmp_path / "out" / "a.png")
    assert (result.bit_depth, result.is_gray) == (bits, gray)
    np.testing.assert_allclose(result.rgb, enlarge(rgb), atol=1 / top)
    if alpha:
        np.testing.assert_allclose(result.alpha, 0.6, atol=1 / top)
    else:
        assert result.alpha is None


def test_sixteen_bits_are_more_than_eight(bicubic_net, photo_folder, tmp_path):
    ramp = np.linspace(0.5, 0.51, 54).reshape(6, 9, 1).repeat(3, axis=2).astype(np.float32)
    write_photo(photo_folder / "a.png", Photo(ramp, bit_depth=16))
    assert run(photo_folder, tmp_path / "out") == 0
    assert len(np.unique(cv2.imread(str(tmp_path / "out" / "a.png"), cv2.IMREAD_UNCHANGED))) >= 54


def test_cmyk_and_rotated_jpeg(bicubic_net, photo_folder, tmp_path):
    smooth = cv2.resize(levels((3, 4)), (32, 24), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(smooth).convert("CMYK").save(photo_folder / "cmyk.jpg", quality=100, subsampling=0)
    orientation = Image.Exif()
    orientation[0x0112] = 6
    save(photo_folder / "rotated.jpg", smooth, exif=orientation, quality=100, subsampling=0)
    assert run(photo_folder, tmp_path / "out") == 0
    for name, expected in {"cmyk": smooth, "rotated": np.rot90(smooth, -1)}.items():
        result = np.asarray(Image.open(tmp_path / "out" / f"{name}.png")).astype(int)
        assert np.abs(result - enlarge(expected)).max() < 10


def test_alpha_is_bicubic_and_stays_in_range(bicubic_net, photo_folder, tmp_path):
    opacity = np.zeros((8, 8), np.float32)
    opacity[2:6, 2:6] = 1
    write_photo(photo_folder / "a.png", Photo(np.full((8, 8, 3), 0.5, np.float32), opacity))
    assert run(photo_folder, tmp_path / "out") == 0
    expected = np.clip(cv2.resize(opacity, (32, 32), interpolation=cv2.INTER_CUBIC), 0, 1)
    np.testing.assert_allclose(read_photo(tmp_path / "out" / "a.png").alpha, expected, atol=1 / 255)


def test_color_hidden_under_transparency_does_not_reach_the_network(bicubic_net, photo_folder, tmp_path):
    rgb = np.zeros((8, 8, 3), np.float32)
    rgb[...] = (1, 0, 1)  # garbage
    opacity = np.zeros((8, 8), np.float32)
    rgb[2:6, 2:4], rgb[2:6, 4:6], opacity[2:6, 2:6] = 0.2, 0.8, 1
    write_photo(photo_folder / "a.png", Photo(rgb, opacity))
    assert run(photo_folder, tmp_path / "out") == 0
    expected = np.where(np.arange(8)[None, :, None] < 4, 0.2, 0.8) * np.ones((8, 8, 3))
    np.testing.assert_allclose(bicubic_net.calls[0]["lq"][0].permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_a_wholly_transparent_image(bicubic_net, photo_folder, tmp_path):
    write_photo(photo_folder / "a.png", Photo(levels() / np.float32(255), np.zeros((6, 9), np.float32)))
    assert run(photo_folder, tmp_path / "out") == 0
    np.testing.assert_array_equal(bicubic_net.calls[0]["lq"][0].permute(1, 2, 0).numpy(), levels() / np.float32(255))
    assert not read_photo(tmp_path / "out" / "a.png").alpha.any()


@pytest.mark.parametrize(
    ("options", "cast"), [((), 0), (("--color-correction", "adain"), 0), (("--color-correction", "none"), 0.1)], ids=str
)
def test_color_correction_takes_a_cast_away(bicubic_net, photo_folder, tmp_path, options, cast):
    pixels = levels() // 2 + 64
    save(photo_folder / "a.png", pixels)
    bicubic_net.cast = 0.1
    assert run(photo_folder, tmp_path / "out", *options) == 0
    result = read_photo(tmp_path / "out" / "a.png").rgb
    # Eq. 10 compares with the deviation of the input at its own size, which is a little larger.
    tolerance = 0.1 if "adain" in options else 1.01 / 255
    np.testing.assert_allclose(result, enlarge(pixels) / 255 + cast, atol=tolerance)
    assert result.mean() == pytest.approx(enlarge(pixels).mean() / 255 + cast, abs=0.01)


# Options, help, progress


def test_options_reach_the_network(bicubic_net, photo_folder, tmp_path):
    save(photo_folder / "a.png")
    given = "--alpha 0.3 --steps 3 --schedule linear --no-adaptive --selection halton --temperature 0.5 --no-reevaluate"
    given += " --redraw-kept --fidelity 0.2 --seed 7 --tile 64 --batch 3"
    assert run(photo_folder, tmp_path / "out", *given.split()) == 0
    assert bicubic_net.calls[0]["config"] == iter_arch.SamplingConfig(
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
    assert (bicubic_net.calls[0]["seed"], bicubic_net.calls[0]["tile"], bicubic_net.calls[0]["batch"]) == (7, 64, 3)


def test_defaults_are_those_of_the_library(bicubic_net, photo_folder, tmp_path):
    save(photo_folder / "a.png")
    assert run(photo_folder, tmp_path / "out") == 0
    assert bicubic_net.calls[0]["config"] == iter_arch.SamplingConfig()
    assert (bicubic_net.calls[0]["seed"], bicubic_net.calls[0]["tile"], bicubic_net.calls[0]["batch"]) == (0, 128, 1)
    assert run(photo_folder, tmp_path / "out", "--tile", 0) == 0
    assert bicubic_net.calls[1]["tile"] is None


def help_of(flag, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(flag)
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_help_fits_on_a_screen_and_names_every_option(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    common, whole = help_of("--help", capsys), help_of("--help-all", capsys)
    assert common == help_of("-h", capsys) and len(common.splitlines()) <= 60
    flags = set(re.findall(r"^  (?:-\w, |-\w \S+(?: \[.*\])?, )?(--[a-z-]+)", whole, re.MULTILINE))
    assert len(flags) > 35 and flags <= set(re.findall(r"--[a-z-]+", common))
    # Explained in both, and only in one.
    assert "refinement steps" in common and "refinement steps" in whole
    assert "temperature of the token draws" not in common and "temperature of the token draws" in whole


def test_help_tells_the_defaults(capsys):
    text = re.sub(r"\s+", " ", help_of("--help-all", capsys))
    for field in dataclasses.fields(iter_arch.SamplingConfig):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "(default: cosine)" in text
    shipped = dataclasses.asdict(iter_arch.load_pretrained("iter_tiny_x4").sampling)
    defaults = dataclasses.asdict(iter_arch.SamplingConfig())
    told = {name: value for name, value in shipped.items() if value != defaults[name]}
    assert told == upscale_options.SHIPPED_SAMPLING
    assert "iter_tiny_x4: " + " ".join(f"--{name} {value}" for name, value in told.items()) in text


def test_options_are_those_of_the_library():
    defaults = {field.name: field.default for field in dataclasses.fields(iter_arch.SamplingConfig)}
    assert {name: option.default for name, option in upscale_options.SAMPLING.items()} == defaults
    released = dataclasses.asdict(iter_arch.SamplingConfig.released())
    assert {
        name: value for name, value in released.items() if value != defaults[name]
    } == upscale_options.RELEASED_SAMPLING
    assert (
        upscale_options.COLOR_METHODS == tuple(color.METHODS) and upscale_options.DEFAULT_LEVELS == color.DEFAULT_LEVELS
    )
    assert upscale_options.MAX_PIXELS == MAX_PIXELS
    assert upscale_options.PRECISIONS == precision.PRECISIONS
    assert (upscale_options.DEFAULT_TILE, upscale_options.DEFAULT_BATCH) == (
        devices.DEFAULT_TILE,
        devices.DEFAULT_BATCH,
    )


def test_the_examples_of_help_run(bicubic_net, photo_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(photo_folder / "a.png")
    save(tmp_path / "old.jpg")
    found = re.findall(r"^  basicsr upscale (.*)$", help_of("--help-all", capsys), re.MULTILINE)
    assert len(found) >= 4 and all(
        words in found for words in re.findall("^  basicsr upscale (.*)$", help_of("-h", capsys), re.M)
    )
    for words in found:
        if "--maps" not in words:  # needs a network with tokens: test_upscale_control.py
            assert main(*words.split(), "--device", "cpu") == 0, words


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


def test_progress_bar_on_a_terminal_only(bicubic_net, photo_folder, tmp_path, monkeypatch, capsys):
    save(photo_folder / "a.png")
    assert run(photo_folder, tmp_path / "out") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert run(photo_folder, tmp_path / "out") == 0
    assert "1/1" in sys.stderr.text


def test_a_photo_is_restored_from_code_with_progress_and_can_be_cancelled(bicubic_net):
    one = restorer.Restorer(
        net=bicubic_net,
        config=bicubic_net.sampling,
        seed=0,
        tile=None,
        batch=1,
        color_correction="none",
        color_levels=4,
    )
    photo = Photo(levels() / np.float32(255))
    told = []
    restored = one.restore(photo, progress=lambda done, total: told.append((done, total)))
    np.testing.assert_array_equal(restored.rgb, enlarge(levels()))
    assert told == [(1, 2), (2, 2)]
    with pytest.raises(restorer.Cancelled):
        one.restore(photo, cancelled=lambda: True)
