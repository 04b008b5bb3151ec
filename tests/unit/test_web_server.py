"""What `basicsr web` serves and refuses, over HTTP, and what the command says."""

import json
import socket
import subprocess
import sys

import pytest
from photos import encoded, smooth
from PIL import Image

import iter_arch
from iter_model import commands

pytest.importorskip("gradio", reason="needs Gradio: pip install 'iter-sr[web]'")

import httpx  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from iter_model.web import files, server  # noqa: E402
from iter_model.web import visitors as web_visitors  # noqa: E402
from iter_model.web.visitors import Visitors  # noqa: E402

pytestmark = pytest.mark.long  # Gradio takes seconds to import


@pytest.fixture
def launch(web_engine, tmp_path, monkeypatch):
    """launch(**options) -> a client of the page, and the folder of its files."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setenv("GRADIO_EXAMPLES_CACHE", "")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    root = tmp_path / "root"
    root.mkdir()
    visitors = Visitors(root)
    demo = server.build(web_engine, visitors, 10_000)

    def call(**options):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        demo.launch(server_name="127.0.0.1", server_port=port, **server.launch_options(visitors), **options)
        return TestClient(demo.app, raise_server_exceptions=False), root

    yield call
    demo.close()


@pytest.fixture
def client(launch):
    return launch()


def test_with_a_password_nothing_is_there_without_it(launch):
    browser, root = launch(auth=("me", "secret"))
    (root / "mine.png").write_bytes(encoded(smooth(4, 4)))
    addresses = ("/config", f"/gradio_api/file={root}/mine.png")
    assert [browser.get(address).status_code for address in addresses] == [401, 401]
    assert browser.post("/login", data={"username": "me", "password": "wrong"}).status_code == 400
    assert browser.post("/login", data={"username": "me", "password": "secret"}).status_code == 200
    assert [browser.get(address).status_code for address in addresses] == [200, 200]


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

    # The queue lives in the server's own loop: it is asked over the network.
    network = httpx.Client(base_url=browser.app.get_blocks().local_url, timeout=240)

    def answer(path):
        file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        body = {"data": [file], "fn_index": read, "session_hash": "x"}
        assert network.post("/gradio_api/queue/join", json=body).status_code == 200
        lines = network.get("/gradio_api/queue/data?session_hash=x").text.splitlines()
        messages = [json.loads(line.removeprefix("data: ")) for line in lines if line]
        [completed] = [message for message in messages if message["msg"] == "process_completed"]
        return completed

    completed = answer(mine)
    assert completed["success"] and completed["output"]["data"][0] == "mine.png, 24 x 20"
    for path in (other, f"{root}/../other.png", "/etc/passwd", server.__file__):
        assert not answer(path)["success"]
    network.close()


def test_large_requests_are_refused_before_they_are_read(client):
    browser, _ = client
    for length, status in ((files.MAX_BYTES * 2, 413), ("many", 411)):
        headers = {"content-length": str(length), "content-type": "multipart/form-data; boundary=x"}
        assert browser.post("/gradio_api/upload", headers=headers, content=b"").status_code == status


def test_uploads_are_bounded_in_number_and_bytes(client, monkeypatch):
    browser, root = client
    pages_own = {*root.rglob("*")}
    monkeypatch.setattr(web_visitors, "MOST_UPLOADS", 3)
    monkeypatch.setattr(web_visitors, "MOST_UPLOAD_BYTES", 10_000)

    def upload(content):
        return browser.post("/gradio_api/upload", files={"files": ("a.png", content)}).status_code

    def left():
        return sorted(path.read_bytes()[:1] for path in {*root.rglob("*")} - pages_own if path.is_file())

    assert [upload(letter) for letter in (b"a", b"b", b"c")] == [200] * 3
    assert upload(b"d") == 507 and left() == [b"a", b"b", b"c"]  # those of the last minute may be wanted
    monkeypatch.setattr(web_visitors, "UPLOAD_SECONDS", -1)
    assert upload(b"d") == 200 and left() == [b"b", b"c", b"d"]
    assert upload(b"e" * 9000) == 200 and upload(b"f" * 9000) == 200
    assert left() == [b"f"]
    monkeypatch.setattr(server.Guard, "MOST_AT_ONCE", 0)
    assert upload(b"g") == 503
    assert {path for path in pages_own if path.exists()} == pages_own


def test_the_page_may_load_nothing_from_elsewhere(client):
    browser, _ = client
    page = browser.get("/")
    policy = page.headers["content-security-policy"]
    assert page.status_code == 200 and "default-src 'self'" in policy and "http" not in policy
    assert "fonts.googleapis.com" not in page.text


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


def test_a_port_in_use_is_a_line_and_2(web_engine, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        assert commands.main(["web", "--model", *web_engine.models, "--port", str(port)]) == 2
    assert f"{port}" in capsys.readouterr().err
