"""The test sets of Table 1: miniatures of their authors' folders, and `prepare realsr` and its like."""

from pathlib import Path

import numpy as np
import pytest
from second_order import write_image

from iter_data.images import read_image
from iter_data.prepare import main
from iter_data.real_sets import SETS, find_set, open_set


def realsr(root):
    """RealSR's two cameras with both halves and three scales; the LQ are as large as the GT."""
    for camera in ("Canon", "Nikon"):
        for half, count in (("Train", 2), ("Test", 1)):
            for scale in (2, 3, 4):
                for number in range(1, count + 1):
                    place = root / f"RealSR(V3)/{camera}/{half}/{scale}/{camera}_{number:03d}"
                    write_image(Path(f"{place}_HR.png"), 64, 80, seed=number)
                    write_image(Path(f"{place}_LR{scale}.png"), 64, 80, seed=number)


def drealsr(root):
    for half, count in (("Train", 2), ("Test", 1)):
        for number in range(count):
            folder = root / f"DRealSR/{half}_x4"
            write_image(folder / f"{half.lower()}_HR/panasonic_{number}_x1.png", 64, 80)
            write_image(folder / f"{half.lower()}_LR/panasonic_{number}_x4.png", 16, 20)


def dped(root):
    write_image(root / "dped/iphone/test_data/patches/iphone/0.jpg", 24, 24)
    write_image(root / "dped/iphone/test_data/patches/canon/0.jpg", 24, 24)
    write_image(root / "dped/iphone/training_data/iphone/0.jpg", 24, 24)


def realsrset(root):
    write_image(root / "RealSRSet/dog.png", 20, 24)
    write_image(root / "RealSRSet/oldphoto2.jpg", 20, 24)


MAKERS = {"RealSR": realsr, "DRealSR": drealsr, "DPED-iphone": dped, "RealSRSet": realsrset}
EXPECTED = {
    "RealSR": ["Canon/Test/4/Canon_001_LR4", "Nikon/Test/4/Nikon_001_LR4"],
    "DRealSR": ["Test_x4/test_LR/panasonic_0_x4"],
    "DPED-iphone": ["iphone/test_data/patches/iphone/0"],
    "RealSRSet": ["dog", "oldphoto2"],
}


@pytest.mark.parametrize("name", SETS)
def test_the_test_photos_are_found_in_the_authors_folders(tmp_path, name):
    MAKERS[name](tmp_path)
    found = list(open_set(name, find_set(name, tmp_path)))
    assert [stem for stem, _, _ in found] == EXPECTED[name]
    item = found[0][1][found[0][2]]
    if SETS[name].options is None:
        assert "gt" not in item
    else:
        assert item["lq"].shape == (3, 16, 20) and item["gt"].shape == (3, 64, 80)


@pytest.mark.parametrize("name", SETS)
def test_prepare_writes_pngs_that_are_the_same_set(tmp_path, name, capsys):
    MAKERS[name](tmp_path)
    source, made = find_set(name, tmp_path), tmp_path / "made" / name
    assert main([name.lower(), str(source), str(made)]) == 0
    assert f"{len(EXPECTED[name])} photos of {name}" in capsys.readouterr().out
    assert find_set(name, tmp_path / "made") == made
    before, after = list(open_set(name, source)), list(open_set(name, made))
    assert [stem for stem, _, _ in after] == EXPECTED[name]
    for (_, one, i), (_, other, j) in zip(before, after, strict=True):
        for key in {"lq", "gt"} & one[i].keys():
            np.testing.assert_array_equal(one[i][key], other[j][key])
    assert main([name.lower(), str(source), str(made)]) == 2


def test_another_scale_is_another_folder(tmp_path):
    realsr(tmp_path)
    found = list(open_set("RealSR", find_set("RealSR", tmp_path), scale=2))
    assert [stem for stem, _, _ in found] == ["Canon/Test/2/Canon_001_LR2", "Nikon/Test/2/Nikon_001_LR2"]
    assert found[0][1][0]["lq"].shape == (3, 32, 40)


def test_a_folder_of_photos_alone_is_a_set_without_gt_too(tmp_path):
    write_image(tmp_path / "DPED-iphone/7.png", 20, 24)
    assert [stem for stem, _, _ in open_set("DPED-iphone", tmp_path / "DPED-iphone")] == ["7"]
    assert find_set("RealSRSet", tmp_path) is None


def test_a_photo_that_cannot_be_read_is_named_and_left_out(tmp_path, capsys):
    realsrset(tmp_path)
    (tmp_path / "RealSRSet/bad.png").write_bytes(b"no image")
    assert main(["realsrset", str(tmp_path / "RealSRSet"), str(tmp_path / "made")]) == 1
    assert "bad.png cannot be read" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "made/lq").iterdir()) == ["dog.png", "oldphoto2.png"]
    assert read_image(tmp_path / "made/lq/dog.png").shape == (20, 24, 3)
