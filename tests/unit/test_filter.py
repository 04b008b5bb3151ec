"""python -m iter_data.prepare filter: which photos are no ground truth, and what the report says."""

import csv

import cv2
import numpy as np
import pytest

from iter_data import SecondOrderDegradationDataset
from iter_data.filtering import Thresholds, measure
from iter_data.images import read_image
from iter_data.prepare import main


def texture(side=256):
    """A structure without blocks and with sharp edges: disks of random gray, without noise."""
    random = np.random.default_rng(0)
    image = np.full((side, side, 3), 128, np.uint8)
    for _ in range(400):
        x, y, radius, gray = (int(value) for value in random.integers((0, 0, 3, 20), (side, side, 20, 236)))
        cv2.circle(image, (x, y), radius, (gray, gray, gray), -1, cv2.LINE_AA)
    return image


def jpeg(image, quality):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def flat(image):
    return np.concatenate([np.full((len(image) * 9, image.shape[1], 3), 90, np.uint8), image])


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (lambda image: image, []),
        (lambda image: jpeg(image, 95), []),
        (lambda image: cv2.GaussianBlur(image, (0, 0), 2.5), ["blurred"]),
        (lambda image: jpeg(image, 10), ["blocked"]),
        (lambda image: jpeg(image, 10)[3:, 5:], ["blocked"]),
        (lambda image: flat(image[:96]), ["flat"]),
        (lambda image: image[:200], ["tiny"]),
        (lambda image: np.full_like(image[:5, :5], 7), ["tiny", "blurred", "flat"]),
    ],
    ids=["good", "good JPEG", "blurred", "JPEG", "cropped JPEG", "flat", "tiny", "5x5"],
)
def test_what_is_wrong_with_a_photo_is_found(change, reasons):
    found = measure(change(texture()))
    assert list(Thresholds(min_size=240).reasons(found)) == reasons, found


def test_a_background_out_of_focus_does_not_make_a_photo_blurred():
    image = texture(512)
    image[:, :400] = cv2.GaussianBlur(image, (0, 0), 6)[:, :400]
    assert list(Thresholds().reasons(measure(image))) == []


def test_measures_are_what_they_are_said_to_be():
    image = np.zeros((64, 64, 3), np.uint8)
    image[::2, :32] = 8  # rows that differ: the Laplacian is +-16 inside, and half of the tiles are flat
    found = measure(image)
    assert (found.height, found.width, found.flatness) == (64, 64, 0.5)
    assert found.sharpness == pytest.approx(cv2.Laplacian(image[..., 0].astype(np.float32), cv2.CV_32F).var())
    steps = np.tile(np.repeat(np.arange(0, 80, 10, dtype=np.uint8), 8), (64, 1))
    assert measure(cv2.merge([steps] * 3)).blocking == 1  # in one direction only


def test_filter_lists_the_good_photos_and_reports_all(tmp_path, capsys):
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    cv2.imwrite(str(photos / "sub/good one.png"), texture())
    cv2.imwrite(str(photos / "soft.png"), cv2.GaussianBlur(texture(), (0, 0), 4))
    cv2.imwrite(str(photos / "small.png"), texture()[:100])
    (photos / "text.png").write_text("not an image")
    meta, report = tmp_path / "meta.txt", tmp_path / "report.csv"
    assert main(["filter", str(photos), "-o", str(meta), "--report", str(report)]) == 1
    said = capsys.readouterr()
    assert "1 of 4 images (1 tiny, 1 blurred)" in said.out and "text.png" in said.err
    assert meta.read_text() == "sub/good one.png (256,256,3)\n"
    rows = {row["photo"]: row for row in csv.DictReader(report.read_text().splitlines())}
    assert {name: row["dropped"] for name, row in rows.items()} == {
        "sub/good one.png": "", "soft.png": "blurred", "small.png": "tiny"}  # fmt: skip
    found = measure(read_image(photos / "soft.png"))
    assert rows["soft.png"]["height"] == "256" and rows["soft.png"]["sharpness"] == f"{found.sharpness:.3f}"
    dataset = SecondOrderDegradationDataset({"phase": "val", "scale": 4, "dataroot_gt": str(photos),
                                             "meta_info": str(meta)})  # fmt: skip
    assert [path.removeprefix(f"{photos}/") for path in dataset.paths] == ["sub/good one.png"]


@pytest.mark.parametrize(
    ("threshold", "kept"),
    [("--min-size=300", 0), ("--min-sharpness=1e9", 0), ("--max-flatness=-1", 0), ("--max-blocking=0", 0), ("", 1)],
)
def test_every_threshold_can_be_set(tmp_path, capsys, threshold, kept):
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos/a.png"), texture())
    arguments = ["filter", str(tmp_path / "photos"), "-o", str(tmp_path / "meta.txt"), *filter(None, [threshold])]
    assert main(arguments) == (0 if kept else 2)
    assert kept or "none of the 1 images" in capsys.readouterr().err
    assert (tmp_path / "meta.txt").exists() == bool(kept)
