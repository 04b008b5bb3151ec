"""A folder with all that people have in one: restored in one command, and read by training and tests alike."""

import json
from pathlib import Path

import numpy as np
import pytest
from basicsr.data import build_dataset
from odd_photos import LOSSY, SIZE, XMP, bad_photos, good_photos, make_odd_folder, press_profile
from photos import encoded, smooth
from PIL import Image
from second_order import dataset_of, names, names_of
from upscale_stand_ins import enlarge, run

from basicsr_compat.images import SUFFIXES, UnreadableImage, decode_image, read_photo
from basicsr_compat.pipeline.data import ReadableItems


@pytest.fixture
def odd_folder(tmp_path):
    return tmp_path / "odd", make_odd_folder(tmp_path / "odd")


def test_every_photo_of_a_folder_comes_out_in_its_kind_and_with_its_metadata(bicubic_net, odd_folder, tmp_path, capsys):
    root, odd = odd_folder
    assert len(odd.good) >= 60
    assert run(root, tmp_path / "out", "--recursive", "--ext", "auto", "--quality", 97, "--json") == 1
    stdout, said = capsys.readouterr()
    facts = {str(Path(fact["input"]).relative_to(root)): fact for fact in map(json.loads, stdout.splitlines())}
    results = {name: fact["output"] for name, fact in facts.items() if "output" in fact}
    assert results.keys() == odd.good.keys()
    assert len({*results.values()}) == len(results)
    assert {name for name, fact in facts.items() if "error" in fact} == odd.refused
    assert {name for name, fact in facts.items() if "skipped" in fact} == odd.passed_over
    assert {path for path in (tmp_path / "out").rglob("*") if path.is_file()} == {*map(Path, results.values())}
    for name, expected in odd.good.items():
        assert (f"{root / name}: the first of {expected.frames} frames" in said) == (expected.frames > 1), name
        check_result(root / name, results[name], expected)


def check_result(source, result, expected):
    """The result is of the expected kind, shows the photo, and keeps what its file said of it."""
    before, after = read_photo(source), read_photo(result)
    channels = ("L" if after.is_gray else "RGB") + ("" if after.alpha is None else "A")
    assert (after.kind, channels, after.bit_depth) == (expected.kind, expected.mode, expected.bits), source
    error = np.abs(after.rgb - enlarge(before.rgb)) * 255
    # What lies under transparent pixels is filled from beside them, which the edges of holes show.
    error = error.max() if after.alpha is None else np.median(error[after.alpha > 0.5])
    assert error <= (LOSSY if expected.kind in ("jpg", "webp", "avif") else 0.51), (source, error)
    assert (before.icc_profile, before.color_chunks) == (after.icc_profile, after.color_chunks), source
    assert np.allclose(before.metadata.dpi or 0, after.metadata.dpi or 0, atol=0.1), source
    assert before.metadata.text == after.metadata.text and before.metadata.comment == after.metadata.comment
    assert tags_of(after) == tags_of(before), source
    if before.metadata.xmp:
        assert before.metadata.xmp == XMP and b"a photo" in after.metadata.xmp, source


def tags_of(photo):
    """Camera, place and maker's note of a photo's EXIF."""
    if photo.metadata.exif is None:
        return None
    tags = Image.Exif()
    tags.load(b"Exif\0\0" + photo.metadata.exif)
    return tags.get(0x010F), tags.get_ifd(0x8825), tags.get_ifd(0x8769).get(0x927C)


def test_training_and_tests_read_what_upscale_reads(odd_folder, tmp_path):
    root, odd = odd_folder
    training = dataset_of(root, pad_small_gt=True)
    below = names(training, root)
    for index in range(len(training)):
        training.sample(index, 0)
    listed = {name for name in (odd.good.keys() | odd.refused) if name.lower().endswith(SUFFIXES)}
    assert {name for name in below if not name.startswith("2024/back")} >= listed
    assert {*names_of(training.unreadable, root)} & listed == odd.refused & listed
    flat = tmp_path / "flat"
    flat.mkdir()
    for index, name in enumerate(sorted(listed)):
        (flat / f"{index:03}{Path(name).suffix}").symlink_to(root / name)
    opt = {"type": "SingleImageDataset", "name": "set", "phase": "test", "dataroot_lq": str(flat)}
    test = ReadableItems(build_dataset({**opt, "io_backend": {"type": "disk"}}))
    left_out = {sorted(listed)[int(Path(test.dataset.paths[index]).stem)] for index in range(len(test))
                if "unreadable" in test[index]}  # fmt: skip
    assert left_out == (odd.refused & listed) - {"dangling.jpg"}  # BasicSR lists no broken links


def test_one_reader_gives_the_same_pixels_or_the_same_reason(tmp_path):
    for name, data, _ in good_photos():
        photo, image = read_photo(data), decode_image(data)
        np.testing.assert_allclose(image[..., ::-1] / 255, photo.rgb, atol=0.501 / 255, err_msg=name)
    for name, data in bad_photos():
        reasons = []
        for read in (read_photo, decode_image):
            with pytest.raises(UnreadableImage) as error:
                read(data)
            reasons.append(str(error.value))
        assert reasons[0] == reasons[1], name


def test_a_cmyk_photo_goes_through_the_profile_of_its_press():
    image = Image.fromarray(smooth(*SIZE)).convert("CMYK")
    plain = read_photo(encoded(image, "JPEG", quality=97)).rgb
    through = read_photo(encoded(image, "JPEG", quality=97, icc_profile=press_profile())).rgb
    paper = Image.new("CMYK", (8, 8))
    level = read_photo(encoded(paper, "JPEG", quality=97, icc_profile=press_profile())).rgb.mean()
    assert np.abs(through - plain).max() > 0.1
    assert level == pytest.approx(1, abs=0.02)  # relative to the paper, which is what white is
