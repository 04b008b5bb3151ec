"""`basicsr upscale`: alpha maps, variants, redrawn regions and maps, on a small network with random weights."""

import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from upscale_stand_ins import names, run

import iter_arch
from iter_arch.color import match_color


@pytest.fixture
def model(small_weights):
    return small_weights


@pytest.fixture
def small_photo(photo_folder):
    """21x30: no multiple of a token."""
    path = photo_folder / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 30, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def upscale(model, tmp_path):
    def command(source, output="out", *options):
        return run(source, tmp_path / output, "--model", model, "--precision", "float32", "--alpha", 0.6, *options)

    return command


def pixels(path):
    return np.asarray(Image.open(path))


def gray(path, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return path


def tokens(path):
    return np.array(json.loads(path.read_text())["tokens"])


def test_a_constant_map_of_any_kind_is_the_number(upscale, small_photo, tmp_path):
    level = 153  # 0.6 of 255
    upscale(small_photo, "number")
    for name, array in (("a.png", np.full((5, 9), level)), ("b.jpg", np.full((84, 120, 3), level))):
        assert upscale(small_photo, f"by_{name[0]}", "--alpha-map", gray(tmp_path / name, array)) == 0
        assert (pixels(tmp_path / f"by_{name[0]}/a.png") == pixels(tmp_path / "number/a.png")).all()


def test_black_keeps_and_white_redraws(upscale, small_photo, tmp_path):
    gray(tmp_path / "step.png", np.repeat([[0, 255]], 4, 0))
    upscale(small_photo, "map", "--alpha-map", tmp_path / "step.png", "--save-tokens")
    upscale(small_photo, "kept", "--alpha", 0, "--save-tokens")
    found, kept = (tokens(tmp_path / name / "a.json") for name in ("map", "kept"))
    # 15 of 30 pixels are seven and a half tokens.
    assert (found[:, :7] == kept[:, :7]).all() and (found[:, 8:15] != kept[:, 8:15]).mean() > 0.3


def test_a_folder_of_maps_has_one_for_each_photo(upscale, small_photo, tmp_path, capsys):
    small_photo.with_name("b.png").write_bytes(small_photo.read_bytes())
    maps = tmp_path / "maps"
    maps.mkdir()
    gray(maps / "a.bmp", [[0]])
    assert upscale(small_photo.parent, "out", "--alpha-map", maps) == 2
    assert "--alpha-map" in (error := capsys.readouterr().err) and "holds no image named b" in error
    assert not (tmp_path / "out").exists() or not names(tmp_path / "out")
    gray(maps / "b.png", [[255]])
    assert upscale(small_photo.parent, "out", "--alpha-map", maps) == 0
    upscale(small_photo, "zero", "--alpha", 0)
    assert (pixels(tmp_path / "out/a.png") == pixels(tmp_path / "zero/a.png")).all()
    assert (pixels(tmp_path / "out/b.png") != pixels(tmp_path / "zero/a.png")).any()


def test_variants_are_the_results_of_their_seeds(upscale, small_photo, tmp_path):
    assert upscale(small_photo, "many", "--variants", 3, "--seed", 4) == 0
    assert names(tmp_path / "many") == ["a_seed4.png", "a_seed5.png", "a_seed6.png"]
    upscale(small_photo, "one", "--seed", 5)
    assert (pixels(tmp_path / "many/a_seed5.png") == pixels(tmp_path / "one/a.png")).all()
    assert (pixels(tmp_path / "many/a_seed4.png") != pixels(tmp_path / "one/a.png")).any()


def test_redraw_changes_tokens_in_the_mask_alone(upscale, small_photo, tmp_path):
    upscale(small_photo, "first", "--save-tokens")
    gray(tmp_path / "mask.png", np.repeat([[0, 0, 255]], 3, 0))
    options = "--redraw", tmp_path / "mask.png", "--from", tmp_path / "first/a.json"
    assert upscale(small_photo, "again", *options, "--seed", 9, "--save-tokens") == 0
    before, after = (tokens(tmp_path / name / "a.json") for name in ("first", "again"))
    assert (after[:, :10] == before[:, :10]).all() and (after[:, 10:15] != before[:, 10:15]).mean() > 0.3
    gray(tmp_path / "mask.png", [[0]])
    upscale(small_photo, "same", *options, "--seed", 9)
    assert (pixels(tmp_path / "same/a.png") == pixels(tmp_path / "first/a.png")).all()


def test_what_is_saved_is_the_result_of_restore(upscale, small_photo, tmp_path, model):
    upscale(small_photo, "out", "--save-tokens", "--seed", 3)
    net = iter_arch.load_pretrained(model)
    lq = torch.from_numpy(pixels(small_photo).copy()).permute(2, 0, 1)[None].float() / 255
    restored = net.restore(lq, alpha=0.6, seed=3)
    assert (tokens(tmp_path / "out/a.json") == restored.tokens[0].numpy()).all()
    expected = (255 * match_color(restored.image, lq)[0].permute(1, 2, 0)).round().numpy()
    assert np.abs(pixels(tmp_path / "out/a.png") - expected).max() <= 1


def test_a_photo_with_transparency_keeps_it(upscale, photo_folder, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (16, 20, 4), np.uint8)
    Image.fromarray(array).save(photo_folder / "t.png")
    upscale(photo_folder, "plain")
    assert upscale(photo_folder, "variant", "--variants", 1) == 0
    found = pixels(tmp_path / "variant/t_seed0.png")
    assert found.shape == (64, 80, 4) and np.abs(found.astype(int) - pixels(tmp_path / "plain/t.png")).max() <= 1


def test_maps_are_a_picture_of_five_panels(upscale, small_photo, tmp_path):
    assert upscale(small_photo, "out", "--maps", tmp_path / "maps", "--samples", 2) == 0
    assert names(tmp_path / "maps") == ["a.png"] and names(tmp_path / "out") == ["a.png"]
    picture = pixels(tmp_path / "maps/a.png").astype(int)
    assert picture.shape[1] == 5 * 372 + 12
    # The photo, then four maps whose scales run from dark violet to yellow.
    scale = picture[40 + round(360 * 21 / 30) + 7]
    ends = scale[[12 + 372 + 2, 12 + 372 + 357]]
    assert ends[0][2] > ends[0][1] and ends[1][1] > 200 > 100 > ends[1][2]


def test_maps_do_not_overwrite_results(upscale, small_photo, tmp_path, capsys):
    assert upscale(small_photo, "out", "--maps", tmp_path / "out") == 2
    assert "must be another folder than -o" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--variants", 0), "--variants=0 must be at least 1"),
        (("--maps", "m", "--samples", 0), "--samples=0 must be at least 1"),
        (("--redraw", "m.png"), "--redraw MASK and --from RESULT.json go together"),
        (("--from", "m.json"), "--redraw MASK and --from RESULT.json go together"),
        (("--alpha-map", "nowhere.png"), "--alpha-map nowhere.png does not exist"),
        (("--redraw", "m.png", "--from", "nowhere.json"), "nowhere.json"),
    ],
    ids=str,
)
def test_impossible_options_are_wrong_usage(upscale, small_photo, capsys, options, said):
    assert upscale(small_photo, "out", *options) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: b"\xff\xfe", "not JSON"),
        (lambda c: b"[" * 100_000, "not JSON"),
        (lambda c: [], "format must be"),
        (lambda c: c | {"format": "other"}, "format must be"),
        (lambda c: c | {"seed": -1}, "seed must be"),
        (lambda c: c | {"seed": True}, "seed must be"),
        (lambda c: c | {"model": 3}, "model must be"),
        (lambda c: c | {"size": [21]}, "size must be"),
        (lambda c: c | {"size": [21, 10**30]}, "size must be"),
        (lambda c: c | {"tokens": [[1, 2], [3]]}, "tokens must be"),
        (lambda c: c | {"tokens": [[1.5]]}, "tokens must be"),
        (lambda c: c | {"tokens": [[10**30]]}, "tokens must be"),
        (lambda c: c | {"tokens": []}, "tokens must be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "change",
)
def test_a_file_of_tokens_is_checked(upscale, small_photo, tmp_path, capsys, change, said):
    content = {"format": "iter-tokens-1", "seed": 0, "model": "x", "size": [21, 30], "tokens": [[0] * 16] * 16}
    changed = change(content)
    (tmp_path / "t.json").write_bytes(changed if isinstance(changed, bytes) else json.dumps(changed).encode())
    options = "--redraw", gray(tmp_path / "m.png", [[255]]), "--from", tmp_path / "t.json"
    assert upscale(small_photo, "out", *options) == 2
    assert said in (error := capsys.readouterr().err) and "t.json" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": [21, 31]}, "size=[21, 31] must be that of the photo, [21, 30]"),
        ({"model": "00"}, "model is another one than --model"),
        ({"tokens": [[0] * 8] * 16}, "tokens have shape (1, 16, 8); they must have (1, 16, 16)"),
        ({"tokens": [[32] * 16] * 16}, "tokens are from 32 to 32; they must be in [0, 32)"),
    ],
    ids=str,
)
def test_tokens_of_another_photo_or_model_are_refused(upscale, small_photo, tmp_path, capsys, change, said):
    upscale(small_photo, "first", "--save-tokens")
    path = tmp_path / "first/a.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    options = "--redraw", gray(tmp_path / "m.png", [[255]]), "--from", path
    assert upscale(small_photo, "out", *options) == 1
    assert said in capsys.readouterr().err


def test_a_photo_that_fails_stops_no_others(upscale, small_photo, tmp_path, capsys):
    small_photo.with_name("broken.png").write_bytes(b"no image")
    assert upscale(small_photo.parent, "out", "--variants", 1) == 1
    assert names(tmp_path / "out") == ["a_seed0.png"] and "broken.png" in capsys.readouterr().err


# As every other run: devices, json, limits, memory, notices, sizes


def facts(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_scripts_are_told_of_every_result_and_what_lies_beside_it(upscale, small_photo, tmp_path, capsys):
    maps = tmp_path / "maps"
    options = "--variants", 2, "--seed", 3, "--save-tokens", "--maps", maps, "--samples", 1, "--json"
    assert upscale(small_photo, "out", *options) == 0
    out, found = tmp_path / "out", facts(capsys)
    assert [(one["seed"], one["width"], one["height"]) for one in found] == [(3, 120, 84), (4, 120, 84)]
    assert all(one["input"] == str(small_photo) and one["seconds"] > 0 for one in found)
    for one in found:
        name = f"a_seed{one['seed']}"
        assert [one["output"], one["tokens"], one["maps"]] == [
            str(path) for path in (out / f"{name}.png", out / f"{name}.json", maps / f"{name}.png")
        ]
        assert all((tmp_path / one[key]).is_file() for key in ("output", "tokens", "maps"))
        assert json.loads((out / f"{name}.json").read_text())["seed"] == one["seed"]


def test_variants_are_read_and_prepared_once(upscale, small_photo, monkeypatch):
    from iter_model.photo import reader

    prepared, read, prepare, read_photo = [], [], iter_arch.ITER.prepare, reader.read_photo
    monkeypatch.setattr(iter_arch.ITER, "prepare", lambda net, lq, **o: prepared.append(0) or prepare(net, lq, **o))
    monkeypatch.setattr(reader, "read_photo", lambda path, **o: read.append(path) or read_photo(path, **o))
    assert upscale(small_photo, "out", "--variants", 3) == 0
    assert len(prepared) == 1 and read == [small_photo]


def test_the_limit_of_pixels_holds(upscale, small_photo, tmp_path, capsys):
    assert upscale(small_photo, "out", "--variants", 2, "--max-pixels", 100) == 1
    assert capsys.readouterr().err.count("not restored") == 1 and not names(tmp_path / "out")
    options = "--alpha-map", gray(tmp_path / "map.png", np.zeros((40, 40))), "--max-pixels", 1000
    assert upscale(small_photo, "out", *options) == 1
    assert "map.png" in capsys.readouterr().err


def test_every_device_restores_and_the_results_are_those_of_one(upscale, small_photo, tmp_path, monkeypatch):
    used, restore = set(), iter_arch.ITER.restore
    both = threading.Barrier(2)

    def restore_noted(net, *args, **options):
        if net not in used:
            used.add(net)
            if len(used) > 1:  # of the second run, in which neither device may restore all photos
                both.wait(timeout=100)
        return restore(net, *args, **options)

    monkeypatch.setattr(iter_arch.ITER, "restore", restore_noted)
    for seed in range(1, 4):
        small_photo.with_name(f"b{seed}.png").write_bytes(small_photo.read_bytes())
    options = "--variants", 2, "--save-tokens"
    assert upscale(small_photo.parent, "one", *options) == 0 and len(used) == 1
    assert upscale(small_photo.parent, "two", *options, "--device", "cpu,cpu") == 0 and len(used) == 3
    for name in names(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_out_of_memory_is_retried_with_smaller_tiles(upscale, photo_folder, tmp_path, monkeypatch, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)).save(photo_folder / "a.png")
    prepare = iter_arch.ITER.prepare

    def prepare_small(net, lq, *, tile, **options):
        if tile is None or tile > 16:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return prepare(net, lq, tile=tile, **options)

    monkeypatch.setattr(iter_arch.ITER, "prepare", prepare_small)
    options = "--save-tokens", "--maps", tmp_path / "maps", "--samples", 1
    assert upscale(photo_folder, "out", *options) == 0
    assert "a.png: out of GPU memory, trying again with tiles of" in capsys.readouterr().err
    monkeypatch.undo()
    assert upscale(photo_folder, "tiled", "--save-tokens", "--tile", 20) == 0
    assert (tokens(tmp_path / "out/a.json") == tokens(tmp_path / "tiled/a.json")).all()


def test_what_is_left_out_is_said_and_sizes_are_heeded(upscale, photo_folder, tmp_path, capsys):
    frames = [Image.fromarray(np.full((12, 16, 3), level, np.uint8)) for level in (0, 99, 200)]
    frames[0].save(photo_folder / "a.gif", save_all=True, append_images=frames[1:])
    assert upscale(photo_folder, "out", "--variants", 1, "--outscale", 1.5) == 0
    assert "the first of 3 frames" in capsys.readouterr().err
    assert pixels(tmp_path / "out/a_seed0.png").shape[:2] == (18, 24)
    assert upscale(photo_folder, "out", "--variants", 1, "--frames", "all") == 2


def test_photos_of_one_name_have_tokens_and_maps_of_their_own(upscale, small_photo, tmp_path):
    gray(small_photo.with_name("a.jpg"), np.zeros((16, 24, 3)))
    maps = tmp_path / "maps"
    options = "--ext", "auto", "--save-tokens", "--maps", maps, "--samples", 1
    assert upscale(small_photo.parent, "out", *options) == 0
    assert names(tmp_path / "out") == ["a.jpg", "a.jpg.json", "a.png", "a.png.json"]
    assert names(maps) == ["a.jpg.png", "a.png.png"]
    sizes = [json.loads((tmp_path / f"out/{name}.json").read_text())["size"] for name in ("a.jpg", "a.png")]
    assert sizes == [[16, 24], [21, 30]]


def test_photos_of_one_name_have_alpha_maps_of_their_own(upscale, small_photo, tmp_path, capsys):
    small_photo.with_name("a.webp").write_bytes(small_photo.read_bytes())  # what it is counts
    maps = tmp_path / "maps"
    maps.mkdir()
    gray(maps / "a.png", [[0]])
    gray(maps / "a.bmp", [[0]])
    assert upscale(small_photo.parent, "out", "--alpha-map", maps) == 2
    assert "holds a.bmp, a.png; name that of a.webp a.webp.png" in capsys.readouterr().err
    gray(maps / "a.webp.png", [[255]])
    assert upscale(small_photo.parent, "out", "--alpha-map", maps, "--save-tokens") == 0
    upscale(small_photo, "zero", "--alpha", 0, "--save-tokens")
    kept, *found = (tokens(tmp_path / name) for name in ("zero/a.json", "out/a.png.json", "out/a.webp.json"))
    assert (found[0] == kept).all() and (found[1] != kept).any()


def test_results_that_are_there_are_skipped_if_what_lies_beside_them_is(upscale, small_photo, tmp_path, capsys):
    upscale(small_photo, "out", "--variants", 2, "--save-tokens")
    (tmp_path / "out/a_seed1.json").unlink()
    capsys.readouterr()
    assert upscale(small_photo, "out", "--variants", 3, "--save-tokens", "--skip-existing", "--json") == 0
    assert [one.get("skipped", one.get("seed")) for one in facts(capsys)] == ["restored already", 1, 2]


@pytest.mark.parametrize("kind", ["maps", "alpha_map", "note"])
def test_no_file_of_the_user_is_overwritten(upscale, small_photo, tmp_path, capsys, kind):
    masks = tmp_path / "masks"
    masks.mkdir()
    gray(masks / "a.png", [[255]])
    note = small_photo.with_name("a.json")
    note.write_text("{}")
    output, options = {
        "maps": ("out", ("--maps", small_photo.parent)),
        "alpha_map": ("masks", ("--alpha-map", masks)),
        "note": (small_photo.parent, ("--save-tokens", "--ext", "jpg")),
    }[kind]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    assert upscale(small_photo.parent, output, *options) == 2
    assert ("a.json: format must be" if kind == "note" else "would overwrite the input") in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
