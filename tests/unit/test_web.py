"""The page of `basicsr web` without a browser: visitors, files, and what its fields do."""

import itertools
import os
import shutil
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from photos import bomb, encoded, exif, levels, save, smooth
from PIL import Image

import iter_arch
from basicsr_compat.images import UnreadableImage, read_photo

gradio = pytest.importorskip("gradio", reason="needs Gradio: pip install 'iter-sr[web]'")

from iter_model.photo.levels import picture_of  # noqa: E402
from iter_model.photo.restorer import Cancelled  # noqa: E402
from iter_model.web import actions as web_actions  # noqa: E402
from iter_model.web import brush, files, film, visitors  # noqa: E402
from iter_model.web.actions import Actions  # noqa: E402
from iter_model.web.engine import Job  # noqa: E402
from iter_model.web.visitors import Visitors  # noqa: E402

pytestmark = pytest.mark.long  # Gradio takes seconds to import


@pytest.fixture
def actions(web_engine, tmp_path):
    return Actions(web_engine, Visitors(tmp_path / "root"), [], max_pixels=10_000)


def request(key="one"):
    return SimpleNamespace(session_hash=key)


def upload(tmp_path, name="cat.png", content=None):
    folder = tmp_path / "uploads"
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(encoded(smooth(20, 24)) if content is None else content)
    return str(path)


def no_progress(done, desc, unit):
    pass


def job(stop=None, progress=lambda done, total: None):
    return Job(stop or threading.Event(), progress)


def fields(engine, **changed):
    return engine.defaults(engine.models[0])._replace(**changed)


def stroke(size=(20, 24), rows=slice(0, 8), columns=slice(0, 8)):
    """What the editor sends of a photo on which a rectangle was painted."""
    layer = np.zeros((*size, 4), np.uint8)
    layer[rows, columns] = 255
    return {"background": None, "layers": [layer], "composite": None}


# ------------------------------------------------------------------------------------------- visitors


def test_visitors_have_folders_that_nobody_can_guess(tmp_path):
    all_visitors = Visitors(tmp_path)
    one, other = all_visitors.of("a"), all_visitors.of("b")
    assert all_visitors.of("a") is one and other is not one
    assert len(one.folder.name) == len(other.folder.name) == 32 and one.folder != other.folder


def test_a_new_photo_deletes_what_came_of_the_old_one(tmp_path):
    all_visitors = Visitors(tmp_path / "root")
    old = all_visitors.take("a", tmp_path / "old/a.png")
    (tmp_path / "old").mkdir()
    old.upload.write_bytes(b"a")
    result = old.new_file("result.png")
    result.write_bytes(b"b")
    new = all_visitors.take("a", tmp_path / "new.png")
    assert not result.exists() and not (tmp_path / "old").exists()
    assert old.stop.is_set() and not new.stop.is_set() and all_visitors.of("a") is new


def test_equal_files_of_two_visitors_stay_until_both_are_gone(tmp_path):
    all_visitors = Visitors(tmp_path / "root")
    shared = save(tmp_path / "a.png")
    all_visitors.take("a", shared)
    all_visitors.take("b", shared)
    all_visitors.forget("a")
    assert shared.exists()
    all_visitors.forget("b")
    assert not shared.exists()


def test_who_does_nothing_for_an_hour_is_forgotten(tmp_path, monkeypatch):
    all_visitors = Visitors(tmp_path)
    idle = all_visitors.of("idle")
    idle.new_file("a.png").write_bytes(b"a")
    now = visitors.time.monotonic()
    monkeypatch.setattr(visitors.time, "monotonic", lambda: now + visitors.IDLE + 1)
    all_visitors.of("busy")
    assert idle.stop.is_set() and not idle.folder.exists()


def test_of_too_many_visitors_the_first_are_forgotten(tmp_path):
    all_visitors = Visitors(tmp_path)
    first, second = all_visitors.of("first"), all_visitors.of("second")
    for number in range(visitors.MOST - 2):
        all_visitors.of(str(number))
    assert all_visitors.of("first") is first
    all_visitors.of("one too many")
    assert second.stop.is_set() and not first.stop.is_set()


def test_a_visitors_files_are_bounded_in_number_and_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(visitors, "MOST_FILES", 5)
    monkeypatch.setattr(visitors, "MOST_FILE_BYTES", 1000)
    visitor = Visitors(tmp_path).of("a")

    def left(size):
        for number in range(9):
            path = visitor.new_file(f"{number}.png")
            path.write_bytes(b"a" * size)
            os.utime(path, ns=(number, number))
        found = sorted(path.name for path in visitor.folder.glob("*/*"))
        shutil.rmtree(visitor.folder)
        return found

    assert left(1) == [f"{number}.png" for number in range(3, 9)]  # five, and the one that was written last
    assert left(300) == [f"{number}.png" for number in range(5, 9)]
    assert left(5000) == [f"{number}.png" for number in range(5, 9)]  # what is shown stays
    visitor.download = visitor.new_file("result.png")
    visitor.download.write_bytes(b"a" * 5000)
    for _ in range(9):
        visitor.new_file("a.png").write_bytes(b"a")
    assert visitor.download.exists()


def test_a_visitors_photo_is_no_upload_that_may_go(tmp_path, monkeypatch):
    monkeypatch.setattr(visitors, "MOST_UPLOADS", 1)
    monkeypatch.setattr(visitors, "UPLOAD_SECONDS", -1)
    all_visitors = Visitors(tmp_path)
    mine, other = all_visitors.new_upload("mine.png"), all_visitors.new_upload("other.png")
    assert mine.write_bytes(b"a") and other.write_bytes(b"a")
    result = all_visitors.take("a", mine).new_file("result.png")
    result.write_bytes(b"b")
    assert all_visitors.has_room(1)
    assert mine.exists() and result.exists() and not other.exists() and not other.parent.exists()


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (b"letter", "not an image"),
        (bomb(4000), "too large"),
        (encoded(levels((90, 90)))[:9000], "trunc"),
    ],
)
def test_an_upload_that_cannot_be_used_is_a_line_without_paths(tmp_path, content, problem):
    path = upload(tmp_path, content=content)
    with pytest.raises(UnreadableImage, match=problem) as error:
        files.read_upload(files.Path(path), max_pixels=10_000)
    assert str(tmp_path) not in str(error.value)


def test_previews_are_small_and_results_whole(tmp_path):
    photo = read_photo(encoded(smooth(60, 3000)))
    size = files.preview_size(photo)
    assert size == (41, 2048)
    with Image.open(files.write_preview(tmp_path / "a.png", photo, size)) as image:
        assert image.size == (2048, 41)
    with Image.open(files.write_result(tmp_path / "b.png", photo)) as image:
        assert image.size == (3000, 60)


def test_a_preview_has_the_levels_of_the_photo(tmp_path):
    pixels = levels((5, 7))
    for photo in (read_photo(encoded(pixels)), read_photo(encoded(pixels))._replace(rgb=pixels)):
        assert np.array_equal(picture_of(photo, (5, 7)), pixels)
    transparent = np.dstack([pixels, pixels[..., :1]])
    assert np.array_equal(picture_of(read_photo(encoded(transparent)), (5, 7)), transparent)


# ------------------------------------------------------------------------------------------- film, brush, maps


def test_a_frame_veils_what_is_masked_and_nothing_else():
    picture = np.full((16, 24, 3), 100, np.uint8)
    kept = np.array([[True, False, True], [True, True, True], [False, False, False]])  # the third row is padding
    framed = film.frame(picture, (16, 24), kept, 8)
    changed = (framed != picture).any(2)
    assert changed[:8, 8:16].all() and changed.sum() == 64
    small = film.frame(picture[::2, ::2], (16, 24), kept, 8)
    assert np.array_equal(small, framed[::2, ::2])


def test_a_film_has_every_frame(tmp_path):
    frames = [np.full((8, 8, 3), level, np.uint8) for level in (0, 100, 200)]
    with Image.open(film.write_film(tmp_path / "film.webp", frames)) as image:
        assert image.n_frames == 3 and image.info["loop"] == 0


def test_what_is_painted_is_a_mask():
    assert brush.painted(None) is None
    assert brush.painted(stroke(rows=slice(0, 0))) is None
    mask = brush.painted(stroke())
    assert mask.sum() == 64 and mask[:8, :8].all()
    assert brush.alpha_map(mask, 0.75, 0.25).unique().tolist() == [0.25, 0.75]
    assert brush.redraw_mask(mask).shape == (1, 1, 20, 24)


# ------------------------------------------------------------------------------------------- actions


@pytest.fixture
def opened(actions, tmp_path):
    """The actions after a photo was dropped and restored."""
    actions.read(request(), upload(tmp_path, "my cat.png"))
    actions.restore(request(), no_progress, *fields(actions.engine))
    return actions


def shown(actions):
    return actions.visitors.of("one").result


def test_read_restore_download(actions, tmp_path):
    before = actions.read(request(), upload(tmp_path, "my cat.png"))
    assert before.status == "my cat.png, 24 x 20" and before.canvas.shape == (667, 800, 3)
    after = actions.restore(request(), no_progress, *fields(actions.engine, seed=3))
    assert "my cat.png, 24 x 20: restored in" in after.status and "now 96 x 80" in after.status
    file = files.Path(after.download["value"])
    assert file.name == "my cat.png"
    net, photo = actions.engine.net(actions.engine.models[0]), read_photo(encoded(smooth(20, 24)))
    lq = torch.from_numpy(photo.rgb).permute(2, 0, 1)[None]
    image = iter_arch.color.match_color(net.restore(lq, seed=3).image, lq, "wavelet")
    expected = np.rint(255 * image[0].permute(1, 2, 0).clip(0, 1).numpy())
    assert np.array_equal(np.asarray(Image.open(file)), expected)


def test_the_download_is_of_the_photos_kind_and_has_its_metadata(actions, tmp_path):
    tags = exif(6)
    tags[0x010F] = "a camera"
    actions.read(request(), upload(tmp_path, "cat.JPEG", encoded(smooth(20, 24), "JPEG", exif=tags, dpi=(72, 72))))
    after = actions.restore(request(), no_progress, *fields(actions.engine))
    with Image.open(after.download["value"]) as image:
        assert (image.format, image.size, image.info["dpi"]) == ("JPEG", (80, 96), (72, 72))
        assert {**image.getexif()}[0x010F] == "a camera" and image.getexif()[0x0112] == 1
    assert files.Path(after.download["value"]).name == "cat.jpg"


def test_another_alpha_is_restored_from_what_is_known(opened, monkeypatch):
    """E_l and the first evaluation ran for the first result."""
    photo, tokens = opened.visitors.of("one").photo, shown(opened).tokens
    [known] = opened.visitors.of("one").known.values()
    monkeypatch.setattr(known.networks.net.lq_encoder, "forward", None)
    after = opened.restore(request(), no_progress, *fields(opened.engine, alpha=0.0))
    assert "restored in" in after.status
    assert not torch.equal(shown(opened).tokens, tokens) and opened.visitors.of("one").photo is photo


def test_what_is_painted_gets_another_alpha(opened):
    engine = opened.engine
    high = fields(engine, alpha=1.0)
    opened.restore(request(), no_progress, *high)
    everywhere = shown(opened).tokens
    whole = stroke(rows=slice(None), columns=slice(None))
    after = opened.paint_alpha(request(), no_progress, whole, 1.0, *fields(engine, alpha=0.0))
    assert "alpha 1 where you painted" in after.status
    assert torch.equal(shown(opened).tokens, everywhere)
    opened.paint_alpha(request(), no_progress, stroke(), 1.0, *fields(engine, alpha=0.0))
    assert not torch.equal(shown(opened).tokens, everywhere)


def test_a_redrawn_region_changes_no_token_elsewhere(opened):
    before = shown(opened).tokens
    after = opened.redraw(request(), no_progress, stroke())
    changed = (shown(opened).tokens != before)[0].numpy()
    assert "redrawn where you painted, with seed 1" in after.status
    assert changed[:4, :4].any() and not changed[4:].any() and not changed[:, 4:].any()
    opened.redraw(request(), no_progress, stroke())
    assert shown(opened).settings.seed == 2


@pytest.mark.parametrize("action", ["paint_alpha", "redraw"])
def test_nothing_painted_is_said(opened, action):
    rest = [1.0, *fields(opened.engine)] if action == "paint_alpha" else []
    after = getattr(opened, action)(request(), no_progress, None, *rest)
    assert "Paint on the picture first." in after.status and after.download == gradio.skip()


def test_variants_have_other_seeds_and_one_becomes_the_result(opened):
    status, pictures = opened.draw_variants(request(), no_progress, 3, *fields(opened.engine, seed=5))
    assert status.startswith("3 variants") and [caption for _, caption in pictures] == ["Seed 5", "Seed 6", "Seed 7"]
    *after, seed = opened.choose(request(), SimpleNamespace(index=1), no_progress)
    assert seed == 6 and "variant with seed 6" in after[0]
    tokens, file = shown(opened).tokens, files.Path(after[2]["value"]).read_bytes()
    again = opened.restore(request(), no_progress, *fields(opened.engine, seed=6))
    assert torch.equal(shown(opened).tokens, tokens)
    assert files.Path(again.download["value"]).read_bytes() == file


def test_the_film_shows_every_step_and_ends_with_the_result(opened):
    opened.restore(request(), no_progress, *fields(opened.engine, alpha=1.0, steps=4))
    status, animation, frames = opened.film(request(), no_progress)
    assert status.startswith("All 4 steps were taken.")
    captions = [caption for _, caption in frames]
    assert [caption[:6] for caption in captions] == ["Step 4", "Step 3", "Step 2", "Step 1", "Result"]
    assert captions[0].endswith("0% of the tokens kept")
    with Image.open(animation) as image:
        assert image.n_frames == 5 and image.size == (96, 80)


def test_maps_have_captions_and_pictures(opened):
    status, pictures = opened.maps(request(), no_progress, 2)
    assert len(pictures) == 4 and pictures[0][1] == "invented: std of 2 results (levels of 255)"
    for path, _ in pictures:
        assert Image.open(path).size == (720 + 2 * 24, 720 * 80 // 96 + 3 * 44 + 28 + 2 * 24)


def test_maps_do_not_see_what_is_hidden(web_engine):
    """Colors under fully transparent pixels are no part of the photo."""
    pixels = np.dstack([smooth(20, 24), np.full((20, 24), 255, np.uint8)])
    pixels[4:12, 6:14, 3] = 0
    found = []
    for hidden in (0, 255):
        pixels[4:12, 6:14, :3] = hidden
        photo = read_photo(encoded(pixels))
        found.append(web_engine.uncertainty(photo, {}, fields(web_engine, alpha=1.0), job(), 2))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_maps_of_large_photos_are_refused(opened, monkeypatch):
    monkeypatch.setattr(web_actions, "MAPS_PIXELS", 100)
    status, _ = opened.maps(request(), no_progress, 2)
    assert "Maps are drawn of photos up to 100 pixels; this one has 480." in status


def test_a_page_in_html_is_shown_as_text(actions, tmp_path):
    opened = actions.read(request(), upload(tmp_path, "<img src=x onerror=alert(1)>.png", b"x"))
    assert "<img" not in opened.status and "&lt;img" in opened.status


def test_impossible_settings_are_a_line_in_the_page(opened):
    for wrong in ({"alpha": 7.0}, {"model": "/etc/passwd"}, {"color_correction": "rainbow"}, {"steps": 10**9}):
        after = opened.restore(request(), no_progress, *fields(opened.engine, **wrong))
        assert after.status.startswith("<strong>⚠"), wrong


def test_nothing_is_restored_where_no_photo_was_dropped(actions):
    after = actions.restore(request(), no_progress, *fields(actions.engine))
    assert after.download == gradio.skip()


def test_a_canceled_job_ends_with_the_next_batch_of_tiles(web_engine):
    stop, calls = threading.Event(), []

    def progress(done, total):
        calls.append(done)
        stop.set()

    photo = read_photo(encoded(smooth(20, 24)))
    with pytest.raises(Cancelled):
        web_engine.restore(photo, {}, fields(web_engine), job(stop, progress))
    assert len(calls) == 1


def test_only_one_job_at_a_time(web_engine):
    """The second begins when the first has ended."""
    photo = read_photo(encoded(smooth(20, 24)))
    settings, order = fields(web_engine), []

    def progress(done, total):
        order.append(threading.get_ident())
        time.sleep(0.001)  # lets the others begin, if they may

    def restore():
        web_engine.restore(photo, {}, settings, job(progress=progress))

    threads = [threading.Thread(target=restore) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([*itertools.groupby(order)]) == 3


def test_a_model_is_one_of_the_list(web_engine):
    with pytest.raises(ValueError, match="must be one of .*small.safetensors"):
        web_engine.net("hf:someone/something/a.pth")
