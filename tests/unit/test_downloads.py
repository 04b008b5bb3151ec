"""Downloads of weights from a server on this machine: slow, broken off, other bytes, missing, redirected."""

import hashlib
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from iter_arch.pretrained import download
from iter_arch.pretrained.download import Remote, fetch
from iter_model import commands

CONTENT = bytes(range(256)) * 1024
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class _Files(BaseHTTPRequestHandler):
    """/whole, /drip, /broken (a quarter at a time), /broken-whole (ignores ranges), /stuck, /moved; no others."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        name = self.path.lstrip("/")
        if name == "moved":
            self.send_response(302)
            self.send_header("Location", "/whole")
            self.end_headers()
            return
        if name not in ("whole", "drip", "broken", "broken-whole", "stuck"):
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and name != "broken-whole" else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        if name == "stuck":
            return
        quarter = len(CONTENT) // 4
        first_time = self.server.asked.count((self.path, None)) == 1 and not asked
        end = start + quarter if name == "broken" or (name == "broken-whole" and first_time) else len(CONTENT)
        for at in range(start, end, quarter):
            self.wfile.write(CONTENT[at : min(at + quarter, end)])
            time.sleep(0.05 if name == "drip" else 0)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The server; the cache and the current folder are empty."""
    monkeypatch.setenv("ITER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def remote(site, name, sha256=SHA256):
    return Remote(f"{name}.pth", f"http://127.0.0.1:{site.server_port}/{name}", sha256)


@pytest.mark.parametrize("name", ["whole", "drip", "moved"])
def test_a_file_comes_whole(site, tmp_path, name):
    assert fetch(remote(site, name)).read_bytes() == CONTENT
    assert os.listdir(tmp_path / "cache") == [f"{name}.pth"]
    asked = len(site.asked)
    fetch(remote(site, name))
    assert len(site.asked) == asked  # the cache has it


def test_a_transfer_that_breaks_off_is_continued_where_it_ended(site):
    assert fetch(remote(site, "broken")).read_bytes() == CONTENT
    quarter = len(CONTENT) // 4
    assert [asked for _, asked in site.asked] == [None, *(f"bytes={n * quarter}-" for n in (1, 2, 3))]


def test_a_server_that_cannot_continue_sends_all_of_it_again(site):
    assert fetch(remote(site, "broken-whole")).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "sha256", "reason"),
    [("whole", "0" * 64, "has SHA-256"), ("missing", None, "404"), ("stuck", None, "ended after 0 of 262144 bytes")],
)
def test_a_download_that_fails_says_why_and_leaves_nothing(site, tmp_path, name, sha256, reason):
    with pytest.raises(FileNotFoundError, match=reason) as caught:
        fetch(remote(site, name, sha256))
    assert f"put it at {tmp_path}/here/experiments/pretrained_models/{name}.pth" in str(caught.value)
    assert "cannot write" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["here"] and os.listdir(tmp_path / "here") == []


def test_ctrl_c_leaves_nothing(site, tmp_path, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_receive", stopped)
    with pytest.raises(KeyboardInterrupt):
        fetch(remote(site, "whole"))
    assert not [file for _, _, files in os.walk(tmp_path) for file in files]


def test_the_command_lists_downloads_and_finds(site, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        download, "REMOTES", {"released_x4": remote(site, "whole"), "released_x2": remote(site, "gone")}
    )
    assert commands.main(["weights", "path", "released_x4"]) == 1
    assert "get it with `basicsr weights download released_x4`" in capsys.readouterr().err
    assert commands.main(["weights", "download", "released_x4", "released_x2"]) == 1
    printed = capsys.readouterr()
    path = f"{tmp_path}/cache/whole.pth"
    assert printed.out == f"{path}\n" and "gone.pth is missing" in printed.err
    assert commands.main(["weights", "path", "released_x4", "iter_tiny_x4"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == path
    assert commands.main(["weights", "list"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["released_x4"] == path and lines["released_x2"] == "not downloaded"
    assert lines["iter_tiny_x4"].endswith("weights/iter_tiny_x4.safetensors")
