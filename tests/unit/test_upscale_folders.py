"""`basicsr upscale` of folders: which files are photos, where results lie, of which kind they are, what they keep."""

import numpy as np
import pytest
from odd_photos import camera_tags
from photos import levels, save, smooth
from PIL import Image
from upscale_stand_ins import enlarge, main, names, run

from basicsr_compat.images import Metadata, read_photo

# What is a photo, and where its result lies


def test_two_photos_of_one_name_are_both_restored_and_told_apart(bicubic_net, photo_folder, tmp_path, capsys):
    save(photo_folder / "a.jpg")
    save(photo_folder / "a.png", levels(seed=1))
    save(photo_folder / "b.png")
    assert run(photo_folder, tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["a.jpg.png", "a.png.png", "b.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "a.png.png")), enlarge(levels(seed=1)))
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and f"{photo_folder / 'a.jpg'} becomes a.jpg.png" in err


def test_what_is_no_photo_is_passed_over_and_said_once(bicubic_net, photo_folder, tmp_path, capsys):
    save(photo_folder / "a.jpg")
    for name in ("a.mov", "a.xmp", "Thumbs.db", "raw.CR2", "desktop.ini"):
        (photo_folder / name).write_bytes(b"no photo")
    assert run(photo_folder, tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["a.png"]
    listed = [str(photo_folder / name) for name in ("Thumbs.db", "a.mov", "a.xmp", "desktop.ini", "raw.CR2")]
    assert capsys.readouterr().err == f"passed over: {', '.join(listed)}\n"


def test_a_note_beside_a_photo_of_its_name_fails_alone(bicubic_net, photo_folder, tmp_path):
    save(photo_folder / "a.jpg")
    (photo_folder / "a.txt").write_bytes(b"a note")
    assert run(photo_folder, tmp_path / "out") == 1
    assert names(tmp_path / "out") == ["a.png"]


def test_subfolders_are_mirrored(bicubic_net, photo_folder):
    for path in ("a.png", "s1/0001.png", "s2/0001.png", "s2/deep/b.jpg", ".hidden/c.png"):
        (photo_folder / path).parent.mkdir(parents=True, exist_ok=True)
        save(photo_folder / path)
    (photo_folder / "s1/again").symlink_to(photo_folder)
    output = photo_folder / "results"
    for _ in range(2):  # the results of the first are no photos of the second
        assert run(photo_folder, output, "--recursive") == 0
        found = sorted(str(path.relative_to(output)) for path in output.rglob("*.png"))
        assert found == ["a.png", "s1/0001.png", "s2/0001.png", "s2/deep/b.png"]


def test_several_inputs_and_patterns(bicubic_net, photo_folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in (photo_folder / "a.png", photo_folder / "b.png", other / "a.png", other / "c.jpg"):
        save(path)
    assert (
        main("-i", photo_folder, other / "*.jpg", "-i", other / "a.png", "-o", tmp_path / "out", "--device", "cpu") == 0
    )
    assert names(tmp_path / "out") == ["a.png.png", "a.png_2.png", "b.png", "c.png"]


def test_a_broken_link_is_named_and_the_rest_restored(bicubic_net, photo_folder, tmp_path, capsys):
    save(photo_folder / "a.png")
    (photo_folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert run(photo_folder, tmp_path / "out") == 1
    assert names(tmp_path / "out") == ["a.png"]
    assert f"not restored: {photo_folder / 'gone.png'}: No such file or directory" in capsys.readouterr().err


def test_a_suffix_lets_results_lie_beside_their_photos(bicubic_net, photo_folder):
    save(photo_folder / "a.png")
    assert run(photo_folder, photo_folder, "--suffix", "_x4") == 0
    assert names(photo_folder) == ["a.png", "a_x4.png"]


def test_whole_results_are_skipped_and_others_made_again(bicubic_net, photo_folder, tmp_path, capsys):
    for name in ("a.png", "b.png", "c.png"):
        save(photo_folder / name)
    output = tmp_path / "out"
    assert run(photo_folder, output) == 0
    whole = (output / "b.png").read_bytes()
    (output / "b.png").write_bytes(whole[: len(whole) // 2])
    (output / "c.png").unlink()
    bicubic_net.calls.clear()
    assert run(photo_folder, output, "--skip-existing") == 0
    assert len(bicubic_net.calls) == 2 and (output / "b.png").read_bytes() == whole
    out, err = capsys.readouterr()
    assert err == "skipped 1 that are restored already\n"
    assert out.splitlines()[-1] == f"restored 2 of 2 images in {output}"


# Kinds of files and metadata


def test_what_a_killed_run_left_is_no_photo_and_is_cleared_away(bicubic_net, photo_folder, capsys):
    """One that was complete but for its name would become a result of its own."""
    save(photo_folder / "a.png")
    for name in ("a_x4.png.tmp-0123abcd", "b.png.tmp-0123abcd"):
        (photo_folder / name).write_bytes((photo_folder / "a.png").read_bytes())
    assert run(photo_folder, photo_folder, "--suffix", "_x4") == 0
    assert names(photo_folder) == ["a.png", "a_x4.png", "b.png.tmp-0123abcd"]  # b.png is of another run
    assert "b.png.tmp-0123abcd" in capsys.readouterr().err


def test_what_is_in_the_way_of_a_folder_is_named(bicubic_net, photo_folder, tmp_path, capsys):
    (photo_folder / "sub").mkdir()
    save(photo_folder / "sub" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("a file")
    (tmp_path / "link").symlink_to("nowhere")
    assert run(photo_folder, tmp_path / "out", "--recursive") == 2
    assert f"{tmp_path / 'out/sub'} is no folder" in capsys.readouterr().err
    assert run(photo_folder, tmp_path / "link", "--recursive") == 2
    assert f"-o {tmp_path / 'link'} is a link to nowhere" in capsys.readouterr().err


def test_a_name_that_the_suffix_makes_too_long_fails_alone(bicubic_net, photo_folder, tmp_path, capsys):
    save(photo_folder / "a.png")
    save(photo_folder / ("x" * 251 + ".png"))
    for again in ((), ("--skip-existing",)):
        assert run(photo_folder, tmp_path / "out", "--suffix", "_x4", *again) == 1
        assert names(tmp_path / "out") == ["a_x4.png"]
        assert "File name too long" in capsys.readouterr().err


@pytest.mark.parametrize(("ext", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("avif", "AVIF")])
def test_results_are_of_the_kind_that_was_asked_for(bicubic_net, photo_folder, tmp_path, ext, kind):
    pixels = smooth(24, 32)
    save(photo_folder / "a.png", pixels)
    sizes = []
    for quality in () if ext == "png" else (100, 10):
        assert run(photo_folder, tmp_path / "out", "--ext", ext, "--quality", quality) == 0
        sizes.append((tmp_path / f"out/a.{ext}").stat().st_size)
    assert sizes == sorted(sizes, reverse=True)
    assert run(photo_folder, tmp_path / "out", "--ext", ext) == 0
    with Image.open(tmp_path / f"out/a.{ext}") as image:
        assert image.format == kind
        assert np.abs(np.asarray(image).astype(int) - enlarge(pixels)).max() <= 8


def camera_photo(path):
    """A JPEG as a camera makes it: on its side, with sizes, a maker note, GPS, a thumbnail, XMP and dpi."""
    tags = camera_tags(6)
    tags.get_ifd(0x8769).update({0xA002: 32, 0xA003: 24})
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    return save(path, smooth(24, 32), exif=tags, xmp=xmp, dpi=(300, 300))


@pytest.mark.parametrize("ext", ["png", "jpg", "webp", "avif"])
def test_metadata_are_kept_and_say_what_the_result_is(bicubic_net, photo_folder, tmp_path, ext):
    camera_photo(photo_folder / "a.jpg")
    assert run(photo_folder, tmp_path / "out", "--ext", ext) == 0
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


def test_metadata_are_left_out_where_that_is_asked_for(bicubic_net, photo_folder, tmp_path):
    camera_photo(photo_folder / "a.jpg")
    assert run(photo_folder, tmp_path / "out", "--metadata", "none") == 0
    assert read_photo(tmp_path / "out/a.png").metadata == Metadata()


@pytest.mark.parametrize("exif", [b"", b"rubbish", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"])
def test_broken_metadata_never_cost_a_photo(bicubic_net, photo_folder, tmp_path, exif):
    save(photo_folder / "a.jpg", smooth(24, 32), exif=b"Exif\0\0" + exif, xmp=b"\xff\0<")
    for ext in ("png", "jpg", "webp", "avif"):
        assert run(photo_folder, tmp_path / "out", "--ext", ext) == 0
