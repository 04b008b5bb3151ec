"""`basicsr upscale` and memory: what goes through together, how many images are held, what happens without enough."""

import gc
import threading
import tracemalloc
import weakref

import numpy as np
import pytest
import torch
from photos import encoded, levels, save
from PIL import Image
from upscale_stand_ins import enlarge, names, run

from basicsr_compat.images import read_photo
from iter_model.photo import jobs, reader
from iter_model.photo.writer import write_photo


def test_neighbours_of_equal_size_go_through_together(bicubic_net, photo_folder, tmp_path):
    for index, width in enumerate([9, 9, 9, 8, 9, 30, 30, 30]):
        save(photo_folder / f"{index}.png", levels((6, width), seed=index))
    assert run(photo_folder, tmp_path / "out", "--batch", 2, "--tile", 16) == 0
    # 2 x 16 x 16 pixels at a time: two images of 6x30, and never more than two.
    assert [tuple(call["lq"].shape) for call in bicubic_net.calls] == [
        (b, 3, 6, w) for b, w in ((2, 9), (1, 9), (1, 8), (1, 9), (2, 30), (1, 30))
    ]
    assert names(tmp_path / "out") == [f"{index}.png" for index in range(8)]
    expected = enlarge(levels((6, 30), seed=6))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "6.png")), expected)


@pytest.mark.parametrize("frames", ["first", "all"])
def test_a_photo_that_fails_is_let_go_of(bicubic_net, photo_folder, tmp_path, monkeypatch, frames):
    """Without waiting for the garbage collector, which counts objects and not their bytes."""
    pictures = [Image.fromarray(levels((6, 9), seed=seed)) for seed in (0, 1)]
    pictures[0].save(photo_folder / "a.gif", save_all=True, append_images=pictures[1:], duration=40)
    inputs = []

    def restore(lq, **options):
        inputs.append(weakref.ref(lq))
        raise MemoryError

    monkeypatch.setattr(bicubic_net, "restore", restore)
    gc.collect()
    gc.disable()
    try:
        assert run(photo_folder, tmp_path / "out", "--ext", "auto", "--frames", frames) == 1
        assert len(inputs) == 1 and inputs[0]() is None
    finally:
        gc.enable()


def test_reading_restoring_and_writing_overlap_and_few_images_are_held(
    bicubic_net, photo_folder, tmp_path, monkeypatch
):
    """Each stage waits for what only happens if the others go on beside it."""
    for index in range(8):
        save(photo_folder / f"{index}.png")
    read, restored, written = [], [], []
    third_read, second_restored = threading.Event(), threading.Event()
    plain = bicubic_net.restore

    def read_one(path, **options):
        read.append(path.stem)
        assert len(read) <= len(restored) + 1 + jobs.READ_AHEAD + 1
        if len(read) == 3:
            third_read.set()
        return read_photo(path, **options)

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
    monkeypatch.setattr(bicubic_net, "restore", restore)
    monkeypatch.setattr(jobs, "write_photo", write)
    assert run(photo_folder, tmp_path / "out") == 0
    assert read == written == [str(index) for index in range(8)]


def out_of_memory_above(bicubic_net, side, monkeypatch):
    """Let the network run out of GPU memory with tiles above this side."""
    plain = bicubic_net.restore

    def restore(lq, *, tile, **options):
        tried.append(tile)
        if (max(lq.shape[2:]) if tile is None else min(tile, max(lq.shape[2:]))) > side:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(lq, tile=tile, **options)

    tried = []
    monkeypatch.setattr(bicubic_net, "restore", restore)
    return tried


def test_out_of_memory_is_retried_with_smaller_tiles_and_said(bicubic_net, photo_folder, tmp_path, monkeypatch, capsys):
    save(photo_folder / "a.png", levels((3, 200)))
    save(photo_folder / "b.png", levels((3, 40)))
    tried = out_of_memory_above(bicubic_net, 50, monkeypatch)
    assert run(photo_folder, tmp_path / "out", "--tile", 0) == 0
    assert tried == [None, 100, 50, None]
    assert names(tmp_path / "out") == ["a.png", "b.png"]
    assert capsys.readouterr().err.splitlines() == [
        f"{photo_folder / 'a.png'}: out of GPU memory, trying again with tiles of {side} pixels" for side in (100, 50)
    ]


@pytest.mark.parametrize(("width", "tile", "tiles"), [(100, 128, [128, 50, 25, 16]), (500, 24, [24, 16])])
def test_smaller_tiles_begin_below_the_image_and_end_at_one_window(
    bicubic_net, photo_folder, tmp_path, monkeypatch, width, tile, tiles
):
    save(photo_folder / "a.png", levels((3, width)))
    tried = out_of_memory_above(bicubic_net, 16, monkeypatch)
    assert run(photo_folder, tmp_path / "out", "--tile", tile) == 0
    assert tried == tiles


def test_out_of_memory_first_halves_what_goes_through_together(
    bicubic_net, photo_folder, tmp_path, monkeypatch, capsys
):
    for name in ("a.png", "b.png"):
        save(photo_folder / name, levels((16, 100)))
    save(photo_folder / "c.png", levels((3, 40)))
    plain, tried = bicubic_net.restore, []

    def restore(lq, *, tile, batch, **options):
        tried.append((tile, batch))
        if batch * tile > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(lq, tile=tile, batch=batch, **options)

    monkeypatch.setattr(bicubic_net, "restore", restore)
    assert run(photo_folder, tmp_path / "out", "--tile", 40, "--batch", 4) == 0
    # a and b together; what goes through together stays small, the size of the tiles is each image's own.
    assert tried == [(40, 4), (40, 2), (40, 1), (20, 1), (40, 1), (20, 1)]
    said = "out of GPU memory, trying again with"
    assert capsys.readouterr().err.splitlines() == [
        f"{photo_folder / 'a.png'} and 1 more: {said} 2 tiles at a time",
        f"{photo_folder / 'a.png'} and 1 more: {said} 1 tile at a time",
        f"{photo_folder / 'a.png'} and 1 more: {said} tiles of 20 pixels",
        f"{photo_folder / 'c.png'}: {said} tiles of 20 pixels",
    ]


def test_out_of_memory_with_the_smallest_tiles_is_a_failure(bicubic_net, photo_folder, tmp_path, monkeypatch, capsys):
    save(photo_folder / "a.png", levels((3, 500)))
    save(photo_folder / "b.png", levels((3, 9)))
    tried = out_of_memory_above(bicubic_net, 9, monkeypatch)
    assert run(photo_folder, tmp_path / "out") == 1
    assert tried == [128, 64, 32, 16, 128]
    assert names(tmp_path / "out") == ["b.png"]
    assert f"not restored: {photo_folder / 'a.png'}: out of GPU memory even with tiles of 16" in capsys.readouterr().err


def test_a_large_photo_is_held_once_as_floats():
    data = encoded(Image.new("RGB", (1000, 1000)), "PNG")
    tracemalloc.start()
    read_photo(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (12 + 3 + 4) * 1000 * 1000  # floats, bytes, and what Pillow hands over


@pytest.mark.parametrize(
    ("channels", "options", "tiles"), [(32, (), [None, 128]), (33, (), [128, 128]), (32, ("--tile", 64), [64, 64])]
)
def test_a_light_network_restores_small_photos_as_one_tile(
    bicubic_net, photo_folder, tmp_path, channels, options, tiles
):
    bicubic_net.vqgan = torch.nn.Conv2d(channels, 3, 1)
    save(photo_folder / "a.png", levels((1, 256**2)))
    save(photo_folder / "b.png", levels((1, 256**2 + 1)))
    assert run(photo_folder, tmp_path / "out", *options, "--max-side", 9) == 0
    assert [call["tile"] for call in bicubic_net.calls] == tiles
