"""python -m iter_data.prepare: what the commands write, and how they refuse."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from second_order import write_image

from iter_data import SecondOrderDegradationDataset
from iter_data.images import list_images, read_image, to_image
from iter_data.prepare import main


def files_under(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_lmdb_gives_the_data_set_the_same_images(tmp_path):
    photos = tmp_path / "photos"
    # BasicSR cuts keys at the first dot and encodes them as ASCII
    names = ["plain.png", "größe 1.PNG".lower(), "sub/two.dots.png", "写真.png"]
    for seed, name in enumerate(names):
        write_image(photos / name, seed=seed)
    assert main(["lmdb", str(photos), str(tmp_path / "photos.lmdb")]) == 0
    lines = (tmp_path / "photos.lmdb" / "meta_info.txt").read_text().splitlines()
    assert len(lines) == 4 and "sub/two%2Edots.png (64,80,3) 1" in lines and all(line.isascii() for line in lines)
    common = {"phase": "val", "scale": 4}
    stored = SecondOrderDegradationDataset({**common, "dataroot_gt": str(tmp_path / "photos.lmdb"),
                                            "io_backend": {"type": "lmdb"}})  # fmt: skip
    on_disk = [read_image(path) for path in list_images(photos)]
    for index in range(4):
        assert any(np.array_equal(to_image(stored[index]["gt"]), image) for image in on_disk)
    assert len({stored[index]["gt"].sum().item() for index in range(4)}) == 4


def test_lmdb_values_are_the_files_themselves_and_basicsr_can_read_them(tmp_path):
    from basicsr.utils import FileClient

    write_image(tmp_path / "photos" / "a.jpg")
    assert main(["lmdb", str(tmp_path / "photos"), str(tmp_path / "a.lmdb")]) == 0
    client = FileClient("lmdb", db_paths=[str(tmp_path / "a.lmdb")], client_keys=["gt"])
    assert client.get("a", "gt") == (tmp_path / "photos" / "a.jpg").read_bytes()


def test_lmdb_may_be_named_with_a_slash_at_its_end(tmp_path):
    write_image(tmp_path / "photos" / "a.png")
    assert main(["lmdb", str(tmp_path / "photos"), f"{tmp_path / 'a.lmdb'}/"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.lmdb", "photos"]


def test_lmdb_holds_images_of_very_different_sizes(tmp_path):
    write_image(tmp_path / "photos" / "a.png", 8, 8)
    write_image(tmp_path / "photos" / "b.png", 1500, 1500)
    assert main(["lmdb", str(tmp_path / "photos"), str(tmp_path / "a.lmdb")]) == 0


def test_meta_info_lists_sizes_and_leaves_out_the_small(tmp_path):
    write_image(tmp_path / "one" / "a.png", 48, 64)
    write_image(tmp_path / "two" / "b with space.png", 100, 64)
    write_image(tmp_path / "two" / "small.png", 40, 64)
    meta = tmp_path / "meta.txt"
    assert main(["meta-info", str(tmp_path / "one"), str(tmp_path / "two"), "-o", str(meta), "--min-size", "48"]) == 0
    assert meta.read_text() == "one/a.png (48,64,3)\ntwo/b with space.png (100,64,3)\n"
    dataset = SecondOrderDegradationDataset({"phase": "val", "scale": 4, "dataroot_gt": str(tmp_path),
                                             "meta_info": str(meta)})  # fmt: skip
    assert [tuple(dataset[index]["gt"].shape) for index in range(2)] == [(3, 48, 64), (3, 100, 64)]


def test_subimages_cover_the_image_in_reading_order(tmp_path):
    image = write_image(tmp_path / "photos" / "sub" / "a.png", 100, 130)
    small = write_image(tmp_path / "photos" / "b.png", 50, 40)
    arguments = ["subimages", str(tmp_path / "photos"), str(tmp_path / "out"), "--size", "64", "--step", "48"]
    assert main(arguments) == 0
    # tops 0 and 36; lefts 0, 48 and 66
    expected = {f"sub/a_s{number:03d}.png": image[top : top + 64, left : left + 64]
                for number, (top, left) in enumerate([(t, x) for t in (0, 36) for x in (0, 48, 66)], 1)}  # fmt: skip
    expected["b_s001.png"] = small
    assert set(files_under(tmp_path / "out")) == set(expected)
    for name, square in expected.items():
        np.testing.assert_array_equal(read_image(tmp_path / "out" / name), square)


def test_degrade_writes_the_same_files_for_the_same_seed(tmp_path):
    photos = tmp_path / "photos"
    write_image(photos / "a.png", 66, 65)
    write_image(photos / "b.png")
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        assert main(["degrade", str(photos), str(tmp_path / name), "--scale", "2", "--seed", str(seed)]) == 0
    one, again, other = (files_under(tmp_path / name) for name in ("one", "again", "other"))
    assert list(one) == ["gt/a.png", "gt/b.png", "lq/a.png", "lq/b.png"]
    assert one == again
    assert one["lq/a.png"] != other["lq/a.png"] and one["gt/a.png"] == other["gt/a.png"]
    assert read_image(tmp_path / "one/gt/a.png").shape == (66, 64, 3)
    assert read_image(tmp_path / "one/lq/a.png").shape == (33, 32, 3)
    # an image's LQ does not depend on its neighbors
    (photos / "a.png").unlink()
    assert main(["degrade", str(photos), str(tmp_path / "fewer"), "--scale", "2", "--seed", "5"]) == 0
    assert files_under(tmp_path / "fewer")["lq/b.png"] == one["lq/b.png"]


def test_degrade_writes_what_the_data_set_gives_in_validation(tmp_path):
    write_image(tmp_path / "photos" / "a.png")
    main(["degrade", str(tmp_path / "photos"), str(tmp_path / "out"), "--seed", "3"])
    item = SecondOrderDegradationDataset({"phase": "val", "scale": 4, "seed": 3,
                                          "dataroot_gt": str(tmp_path / "photos")})[0]  # fmt: skip
    np.testing.assert_array_equal(to_image(item["gt"]), read_image(tmp_path / "out/gt/a.png"))
    np.testing.assert_array_equal(to_image(item["lq"]), read_image(tmp_path / "out/lq/a.png"))


def test_degrade_reads_the_degradation_of_an_option_file(tmp_path, capsys):
    write_image(tmp_path / "photos" / "a.png")
    opt = tmp_path / "train.yml"
    opt.write_text("datasets:\n  train:\n    degradation:\n      jpeg_range2: [1e0, 2]\n")  # as in a training run
    main(["degrade", str(tmp_path / "photos"), str(tmp_path / "default")])
    assert main(["degrade", str(tmp_path / "photos"), str(tmp_path / "harsh"), "--opt", str(opt)]) == 0
    assert files_under(tmp_path / "harsh")["lq/a.png"] != files_under(tmp_path / "default")["lq/a.png"]
    opt.write_text("datasets:\n  train:\n    degradation:\n      jpg_range2: [1, 2]\n")
    assert main(["degrade", str(tmp_path / "photos"), str(tmp_path / "typo"), "--opt", str(opt)]) == 2
    assert "datasets.train.degradation.jpg_range2" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["lmdb", "{}", "out.lmdb"], ["subimages", "{}", "out"], ["degrade", "{}", "out"],
                                     ["meta-info", "{}", "-o", "out.txt"]])  # fmt: skip
def test_an_unreadable_file_is_named_skipped_and_told_by_the_exit_code(tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "photos" / "good.png")
    write_image(tmp_path / "photos" / "cut.jpg")
    data = (tmp_path / "photos" / "cut.jpg").read_bytes()
    (tmp_path / "photos" / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "photos" / "text.png").write_text("not an image")
    (tmp_path / "photos" / "empty.png").touch()
    (tmp_path / "photos" / "link.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "photos" / "pipe.png")  # to read it would take forever
    assert main([part.format("photos") for part in command]) == 1
    error = capsys.readouterr().err
    assert all(f"skipped photos/{name}.png" in error for name in ("text", "empty", "link", "pipe"))
    # OpenCV 4 would fill what is missing with gray
    assert re.search(r"cut\.jpg.*: it is truncated", error)
    assert "5 files were skipped" in error and "good" not in error


def test_problems_end_with_exit_code_2_and_name_the_path(tmp_path, capsys):
    write_image(tmp_path / "photos" / "a.png")

    def refused(message, *arguments):
        assert main([str(argument) for argument in arguments]) == 2
        assert message in capsys.readouterr().err

    photos, empty = tmp_path / "photos", tmp_path / "empty"
    empty.mkdir()
    refused("does not exist", "lmdb", tmp_path / "none", tmp_path / "x.lmdb")
    refused("holds no image", "degrade", empty, tmp_path / "x")
    refused("must end in .lmdb", "lmdb", photos, tmp_path / "x")
    refused("exists already", "subimages", photos, empty)
    refused("step=500 must be", "subimages", photos, tmp_path / "x", "--step", 500)
    refused("at least 1000 pixels", "meta-info", photos, "-o", tmp_path / "x.txt", "--min-size", 1000)
    refused("is not under root", "meta-info", photos, "-o", tmp_path / "x.txt", "--root", empty)
    refused("scale=0 must be", "degrade", photos, tmp_path / "x", "--scale", 0)
    (tmp_path / "broken.yml").write_text("datasets: [")
    refused("broken.yml is not valid YAML", "degrade", photos, tmp_path / "x", "--opt", tmp_path / "broken.yml")
    (tmp_path / "twice.yml").write_text("name: a\nname: b\n")
    refused("name is given twice", "degrade", photos, tmp_path / "x", "--opt", tmp_path / "twice.yml")
    (tmp_path / "val.yml").write_text("datasets: {val: {}}")
    refused("no section datasets.train", "degrade", photos, tmp_path / "x", "--opt", tmp_path / "val.yml")
    write_image(photos / "a.jpg")
    refused("differ in their extension only", "lmdb", photos, tmp_path / "x.lmdb")
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.lmdb").exists()


def test_a_photo_too_small_to_degrade_is_skipped(tmp_path, capsys):
    write_image(tmp_path / "photos" / "a.png")
    write_image(tmp_path / "photos" / "tiny.png", 20, 64)
    assert main(["degrade", str(tmp_path / "photos"), str(tmp_path / "out")]) == 1
    assert "tiny.png has 20x64 pixels" in capsys.readouterr().err


@pytest.mark.draws
def test_the_sample_photos_are_what_their_readme_says(tmp_path):
    sample = Path(__file__).parents[2] / "datasets" / "sample"
    assert "degrade datasets/sample/gt results/sample --scale 4 --seed 45" in (sample / "README.md").read_text()
    assert main(["degrade", str(sample / "gt"), str(tmp_path / "out"), "--scale", "4", "--seed", "45"]) == 0
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        made, kept = (read_image(folder / "lq" / f"{name}.png").astype(int) for folder in (tmp_path / "out", sample))
        # another processor may round otherwise, and JPEG turns that into whole steps
        assert np.abs(made - kept).mean() < 1


def test_every_kind_of_image_is_listed_and_what_else_is_there_is_named_once(tmp_path, caplog):
    for name in ("a.jfif", "b.gif", "c.AVIF", "sub/d.jp2", "e.jpe"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("notes.txt", "sub/raw.CR2", ".hidden.txt"):
        (tmp_path / name).touch()
    assert [os.path.relpath(path, tmp_path) for path in list_images(tmp_path)] == [
        "a.jfif",
        "b.gif",
        "c.AVIF",
        "e.jpe",
        "sub/d.jp2",
    ]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: passed over 2 files without the name of an image: notes.txt, sub/raw.CR2"
    ]


def test_prepare_names_what_it_passes_over(tmp_path, caplog):
    write_image(tmp_path / "photos/a.png")
    (tmp_path / "photos/notes.txt").touch()
    assert main(["meta-info", str(tmp_path / "photos"), "-o", str(tmp_path / "list.txt")]) == 0
    assert "passed over 1 file without the name of an image: notes.txt" in caplog.text


def preview_options(folder, **changes):
    section = {"type": "SecondOrderDegradationDataset", "dataroot_gt": str(folder), "gt_size": 48, **changes}
    path = folder.parent / "train.yml"
    path.write_text(json.dumps({"scale": 4, "datasets": {"train": section}}))
    return str(path)


def test_preview_draws_gt_crops_and_what_their_degradation_makes_of_them(tmp_path, capsys):
    images = {str(tmp_path / f"photos/{name}.png"): write_image(tmp_path / f"photos/{name}.png", seed=seed)
              for seed, name in enumerate("abc")}  # fmt: skip
    opt = preview_options(tmp_path / "photos", degrade_in_worker=True, degradation={"jpeg_range2": [30, 31]})
    arguments = ["--photos", "2", "--versions", "3"]
    assert main(["preview", opt, str(tmp_path / "sheet.png"), *arguments]) == 0
    header, *photos = capsys.readouterr().out.splitlines()
    assert header.endswith("sheet.png: 2 photos, each degraded 3 times") and len(photos) == 2
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape == (32 + 2 * (48 + 8), 8 + 4 * (48 + 8), 3)
    for row, path in enumerate(photos):
        gt, *lqs = (sheet[32 + row * 56 :][:48, 8 + column * 56 :][:, :48] for column in range(4))
        crops = np.lib.stride_tricks.sliding_window_view(images[path], (48, 48), (0, 1)).transpose(0, 1, 3, 4, 2)
        assert any((crop == side).all() for crop in crops.reshape(-1, 48, 48, 3) for side in (gt, gt[:, ::-1]))
        blocks = [lq.reshape(12, 4, 12, 4, 3) for lq in lqs]
        assert all((block == block[:, :1, :, :1]).all() for block in blocks)
        assert len({lq.tobytes() for lq in lqs}) == 3
    for name, seed in (("again", "0"), ("other", "1")):
        main(["preview", opt, str(tmp_path / f"{name}.png"), *arguments, "--seed", seed])
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "sheet.png").read_bytes()
    assert (tmp_path / "other.png").read_bytes() != (tmp_path / "sheet.png").read_bytes()


def test_preview_shows_the_degradation_of_the_option_file(tmp_path):
    write_image(tmp_path / "photos/a.png")
    for name, quality in (("harsh", 1), ("mild", 95)):
        opt = preview_options(tmp_path / "photos", degradation={"jpeg_range2": [quality, quality]})
        assert main(["preview", opt, str(tmp_path / f"{name}.png")]) == 0
    assert (tmp_path / "harsh.png").read_bytes() != (tmp_path / "mild.png").read_bytes()


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"type": "PairedImageDataset"}, ["sheet.png"], "type=PairedImageDataset degrades nothing"),
        ({"gt_siz": 1}, ["sheet.png"], "datasets.train.gt_siz is not an option"),
        ({"gt_size": 96}, ["sheet.png"], "a.png has 64x80 pixels"),
        ({}, ["sheet.jpg"], "must end in .png"),
        ({}, ["sheet.png", "--photos", "0"], "photos=0 must be >= 1"),
        ({}, ["sheet.png", "--versions", "0"], "versions=0 must be >= 1"),
    ],
)
def test_preview_refuses_what_it_cannot_show(tmp_path, capsys, monkeypatch, changes, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "photos/a.png")
    assert main(["preview", preview_options(tmp_path / "photos", **changes), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()
