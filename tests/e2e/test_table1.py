"""`benchmarks/table1.py` on a miniature of the real sets: tables, picture, cache, processes."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import call, torchrun
from photos import blurred, save
from PIL import Image
from small_networks import small_iter

import iter_arch

SCRIPT = Path(__file__).parents[2] / "benchmarks/table1.py"
WORDS = [SCRIPT, "--data", "data", "--methods", "bicubic", "small.safetensors", "nowhere.pth"]
METRICS = ["--metrics", "psnr", "niqe"]

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table1")
    iter_arch.save_pretrained(small_iter(), folder / "small.safetensors")
    for index, camera in enumerate(("Canon", "Nikon")):
        pair = folder / f"data/RealSR(V3)/{camera}/Test/4/{camera}_001"
        pair.parent.mkdir(parents=True)
        image = blurred(256, 256, seed=index)
        for suffix in ("HR", "LR4"):
            save(pair.with_name(f"{pair.name}_{suffix}.png"), image)
    (folder / "data/RealSRSet").mkdir()
    save(folder / "data/RealSRSet/dog.png", blurred(64, 64, seed=7))
    return folder


@pytest.fixture(scope="module")
def printed(folder):
    code, output = call(folder, sys.executable, *WORDS, *METRICS, "-o", "one")
    assert code == 0, output
    return output


def rows(folder, name):
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_for_each_set_with_the_papers_rows_and_what_is_left_out(folder, printed):
    text = (folder / "one/table1.md").read_text()
    assert text in printed
    assert "**RealSR**, 2 photos" in text and "**RealSRSet**, 1 photo\n" in text
    assert "|  | psnr | niqe |" in text and "|  | niqe |" in text
    assert "| ITER (paper) | 5.29 |" in text and "| bicubic (paper) | 7.98 |" in text
    assert text.count("The paper's figures for this set are not at hand.") == 1
    for left_out in ("method nowhere.pth:", "set DRealSR:", "set DPED-iphone:"):
        assert f"- {left_out}" in text


def test_means_are_those_of_the_photos(folder, printed):
    images = [row for row in rows(folder / "one", "images.csv") if (row["set"], row["method"]) == ("RealSR", "bicubic")]
    (mean,) = [r for r in rows(folder / "one", "table1.csv") if (r["set"], r["method"]) == ("RealSR", "bicubic")]
    assert float(mean["psnr"]) == pytest.approx(np.mean([float(row["psnr"]) for row in images]), abs=1e-3)
    assert len(images) == 2 and float(mean["psnr"]) > 20
    (dog,) = [row for row in rows(folder / "one", "images.csv") if (row["photo"], row["method"]) == ("dog", "bicubic")]
    assert dog["psnr"] == ""


def test_the_picture_has_a_row_for_each_photo(folder, printed):
    assert Image.open(folder / "one/table1.png").size == (3 * 192, 3 * (192 + 28))


def test_a_second_run_computes_only_what_is_new(folder, printed):
    cache = folder / "one/cache"
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    marked = next(path for path in before if path.suffix == ".json" and not path.name.startswith("process_"))
    marked.write_text(json.dumps(json.loads(marked.read_text()) | {"psnr": 99.0}))
    code, output = call(folder, sys.executable, *WORDS, "--metrics", "psnr", "niqe", "ssim", "-o", "one")
    assert code == 0, output
    assert {path for path in cache.iterdir()} == before.keys()
    assert all(path.stat().st_mtime_ns == before[path] for path in before if path.suffix == ".png")
    assert "99.0000" in {row["psnr"] for row in rows(folder / "one", "images.csv")}


def test_another_scale_is_restored_anew(folder, printed):
    code, output = call(folder, sys.executable, SCRIPT, "--data", "data", "--sets", "RealSRSet", "--methods", "bicubic",
                        "--metrics", "niqe", "--scale", "2", "-o", "one2")  # fmt: skip
    assert code == 0, output
    (image,) = (folder / "one2/cache").glob("*.png")
    assert Image.open(image).size == (128, 128) and not (folder / "one/cache" / image.name).exists()


def test_two_processes_print_the_same_table_once(folder, printed):
    words = [*torchrun(2, sys.executable), *WORDS, *METRICS, "-o", "two"]
    code, output = call(folder, *words)
    assert code == 0, output
    assert output.count("**RealSRSet**") == 1
    assert (folder / "two/table1.md").read_text() in printed
