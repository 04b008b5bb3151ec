"""The page of `basicsr web` without a browser: visitors, files, what the server refuses, what the command says."""

import itertools
import json
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from photos import bomb, encoded, levels, save, smooth
from PIL import Image
from small_networks import small_iter

import iter_arch
from basicsr_compat.images import UnreadableImage, read_photo
from iter_arch import save_pretrained
from iter_model import commands

gradio = pytest.importorskip("gradio", reason="needs Gradio: pip install 'iter-sr[web]'")

from fastapi.testclient import TestClient  # noqa: E402

from iter_model.photo.restorer import Cancelled  # noqa: E402
from iter_model.web import files, server, visitors  # noqa: E402
from iter_model.web.actions import Actions  # noqa: E402
from iter_model.web.engine import Engine  # noqa: E402
from iter_model.web.visitors import Visitors  # noqa: E402

pytestmark = pytest.mark.long  # Gradio takes seconds to import


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_pretrained(small_iter(), path)
    return str(path)


@pytest.fixture
def engine(weights):
    return Engine([weights], torch.device("cpu"))


@pytest.fixture
def actions(engine, tmp_path):
    return Actions(engine, Visitors(tmp_path / "root"), [], max_pixels=10_000)


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


# ------------------------------------------------------------------------------------------- actions


def test_read_restore_download(actions, engine, tmp_path):
    before = actions.read(request(), upload(tmp_path, "my cat.png"))
    assert before.status == "my cat.png, 24 x 20"
    fields = engine.defaults(engine.models[0])._replace(seed=3)
    shown = actions.restore(request(), no_progress, *fields)
    assert "my cat.png, 24 x 20: restored in" in shown.status and "now 96 x 80" in shown.status
    file = files.Path(shown.download["value"])
    assert file.name == "my cat.png"
    net = iter_arch.load_pretrained(engine.models[0])
    assert np.asarray(Image.open(file)).shape == (80, 96, 3)
    assert net.scale == 4


def test_a_page_in_html_is_shown_as_text(actions, tmp_path):
    shown = actions.read(request(), upload(tmp_path, "<img src=x onerror=alert(1)>.png", b"x"))
    assert "<img" not in shown.status and "&lt;img" in shown.status


def test_impossible_settings_are_a_line_in_the_page(actions, engine, tmp_path):
    actions.read(request(), upload(tmp_path))
    fields = engine.defaults(engine.models[0])
    for wrong in ({"alpha": 7.0}, {"model": "/etc/passwd"}, {"color_correction": "rainbow"}, {"steps": 10**9}):
        shown = actions.restore(request(), no_progress, *fields._replace(**wrong))
        assert shown.status.startswith("<strong>⚠"), wrong


def test_nothing_is_restored_where_no_photo_was_dropped(actions, engine):
    shown = actions.restore(request(), no_progress, *engine.defaults(engine.models[0]))
    assert shown.download == gradio.skip()


def test_a_canceled_job_ends_with_the_next_batch_of_tiles(engine):
    stop, calls = threading.Event(), []

    def progress(done, total):
        calls.append(done)
        stop.set()

    photo = read_photo(encoded(smooth(20, 24)))
    with pytest.raises(Cancelled):
        engine.restore(photo, engine.defaults(engine.models[0]), stop, progress)
    assert len(calls) == 1


def test_only_one_job_at_a_time(engine):
    """The second begins when the first has ended."""
    photo = read_photo(encoded(smooth(20, 24)))
    settings = engine.defaults(engine.models[0])
    order = []

    def job():
        def progress(done, total):
            order.append(threading.get_ident())
            time.sleep(0.001)  # lets the others begin, if they may

        engine.restore(photo, settings, threading.Event(), progress)

    threads = [threading.Thread(target=job) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([*itertools.groupby(order)]) == 3


def test_a_model_is_one_of_the_list(engine):
    with pytest.raises(ValueError, match="must be one of .*small.safetensors"):
        engine.net("hf:someone/something/a.pth")


# ------------------------------------------------------------------------------------------- server


@pytest.fixture
def client(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setenv("GRADIO_EXAMPLES_CACHE", "")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    root = tmp_path / "root"
    root.mkdir()
    demo = server.build(engine, root, 10_000)
    options = server.launch_options()
    demo.launch(server_name="127.0.0.1", server_port=free_port(), **options)
    yield TestClient(demo.app, raise_server_exceptions=False), root
    demo.close()


def free_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_no_file_but_those_of_the_page_can_be_fetched(client):
    browser, root = client
    (root / "mine").mkdir()
    (root / "mine/a.png").write_bytes(encoded(smooth(4, 4)))
    assert browser.get(f"/gradio_api/file={root}/mine/a.png").status_code == 200
    outside = [
        "/etc/passwd",
        f"{root}/../secret.txt",
        f"{root}/mine/../../secret.txt",
        server.__file__,
        iter_arch.__file__,
        "setup.py",
        "README.md",
        str(root),
        f"{root}/mine",
        "file:///etc/passwd",
        "http://127.0.0.1/a.png",
        "https://example.org/a.png",
    ]
    (root.parent / "secret.txt").write_text("secret")
    for path in outside:
        for address in (f"/gradio_api/file={path}", f"/file={path}", f"/gradio_api/file={path.replace('/', '%2F')}"):
            response = browser.get(address)
            assert response.status_code in (403, 404), (address, response.status_code)


def test_an_action_takes_no_path_outside_of_the_uploads(client, tmp_path):
    """Whatever path a visitor names instead of an upload, the page does not read it."""
    browser, root = client
    config = browser.get("/config").json()
    [read] = [d["id"] for d in config["dependencies"] if any(target[1] == "change" for target in d["targets"])]
    mine, other = root / "mine.png", tmp_path / "other.png"
    for path in (mine, other):
        path.write_bytes(encoded(smooth(20, 24)))

    def answer(path):
        file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        body = {"data": [file], "fn_index": read, "session_hash": "x"}
        assert browser.post("/gradio_api/queue/join", json=body).status_code == 200
        lines = browser.get("/gradio_api/queue/data?session_hash=x").text.splitlines()
        messages = [json.loads(line.removeprefix("data: ")) for line in lines if line]
        [completed] = [message for message in messages if message["msg"] == "process_completed"]
        return completed

    completed = answer(mine)
    assert completed["success"] and completed["output"]["data"][0] == "mine.png, 24 x 20"
    for path in (other, f"{root}/../other.png", "/etc/passwd", server.__file__):
        assert not answer(path)["success"]


def test_large_requests_are_refused_before_they_are_read(client):
    browser, _ = client
    for length, status in ((files.MAX_BYTES * 2, 413), ("many", 411)):
        headers = {"content-length": str(length), "content-type": "multipart/form-data; boundary=x"}
        assert browser.post("/gradio_api/upload", headers=headers, content=b"").status_code == status


def test_the_page_may_load_nothing_from_elsewhere(client):
    browser, _ = client
    page = browser.get("/")
    policy = page.headers["content-security-policy"]
    assert page.status_code == 200 and "default-src 'self'" in policy and "http" not in policy
    assert "fonts.googleapis.com" not in page.text


# ------------------------------------------------------------------------------------------- the command

WITHOUT_GRADIO = """
import sys
sys.modules["gradio"] = None
from iter_model import commands
sys.exit(commands.main(["web"]))
"""


def test_without_gradio_a_line_says_what_brings_it(tmp_path):
    result = subprocess.run([sys.executable, "-c", WITHOUT_GRADIO], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, "basicsr web needs Gradio: pip install 'iter-sr[web]'\n")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--auth", "me"], "--auth must be USER:PASSWORD"),
        (["--max-pixels", "0"], "--max-pixels=0 must be at least 1"),
        (["--model", "nowhere.pth"], "model='nowhere.pth' is neither a file nor one of the known weights"),
        (["--port", "70000"], "--port=70000 must be from 1 to 65535"),
    ],
)
def test_wrong_options_are_a_line_and_2(words, problem, capsys):
    assert commands.main(["web", *words]) == 2
    assert f"basicsr web: error: {problem}" in capsys.readouterr().err


def test_a_port_in_use_is_a_line_and_2(weights, capsys, monkeypatch):
    import socket

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        assert commands.main(["web", "--model", weights, "--port", str(port)]) == 2
    assert f"{port}" in capsys.readouterr().err
