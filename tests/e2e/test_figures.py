"""`benchmarks/figures.py`: one command for each figure of the paper, on a small network."""

import sys
from pathlib import Path

import pytest
from commands import call
from photos import blurred, save
from PIL import Image
from small_networks import small_iter

import iter_arch

SCRIPT = Path(__file__).parents[2] / "benchmarks/figures.py"
SIDE, TITLE = 256, 28

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    iter_arch.save_pretrained(small_iter(), folder / "small.safetensors")
    for index in range(2):
        (folder / "lq").mkdir(exist_ok=True)
        save(folder / f"lq/{index}.png", blurred(SIDE // 4, SIDE // 4, seed=index))
    return folder


def draw(folder, *words):
    code, output = call(folder, sys.executable, SCRIPT, *words, "-o", "out", "--model", "small.safetensors")
    assert code == 0, output
    return output


@pytest.mark.parametrize(("figure", "columns"), [("fig1", 7), ("fig6", 2), ("fig7", 4)])
def test_a_row_for_each_photo(folder, figure, columns):
    draw(folder, figure, "--real", "lq")
    assert Image.open(folder / f"out/{figure}.png").size == (columns * SIDE, 2 * (SIDE + TITLE))


@pytest.mark.parametrize(
    ("figure", "picture", "line", "size"),
    [
        ("fig8", "fig8_alpha.png", "| 1.0 |", (1400, 360)),
        ("fig9", "fig9_selection.jpg", "| halton |", (5 * SIDE, 3 * (SIDE + TITLE))),
        ("fig11", "fig11_color.jpg", "| wavelet 5 |", (4 * SIDE, 2 * (SIDE + TITLE))),
    ],
)
def test_a_table_and_a_picture(folder, figure, picture, line, size):
    assert line in draw(folder, figure, "--real", "lq", "--limit", "1")
    assert Image.open(folder / "out" / picture).size == size


def test_seconds_beside_rrdbnet_and_swinir(folder):
    output = draw(folder, "table2", "--size", "16", "--runs", "1")
    assert "| RRDBNet |" in output and "| ITER, 8 steps |" in output
    assert "paper" not in output  # its seconds are of 128x128
    assert (folder / "out/table2.md").read_text() in output
