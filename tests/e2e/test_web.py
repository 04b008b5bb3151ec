"""`basicsr web` as typed, in a real browser."""

import json
import os
import signal
import socket
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from browser import PATIENCE, WebPage, chromium
from commands import BASICSR, call
from PIL import Image

pytest.importorskip("gradio", reason="needs Gradio: pip install 'iter-sr[web]'")
pytestmark = [pytest.mark.browser, pytest.mark.long]

SAMPLES = Path(__file__).parents[2] / "datasets/sample/lq"


class Server:
    """`basicsr web` in a process of its own."""

    def __init__(self, folder, *words):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/"
        self.log = folder / "log.txt"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(folder)}
        command = [BASICSR, "web", "--port", str(port), *words]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A background job of a shell ignores it, and so would the server.
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
            )
        end = time.monotonic() + PATIENCE
        while f"open {self.address}" not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.2)

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("web"))
    yield server
    assert server.end() == 0
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def driver():
    driver = chromium()
    yield driver
    driver.quit()


@pytest.fixture
def page(server, driver):
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    return WebPage(driver, server.address)


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """Where pictures of the page go; ITER_SCREENSHOTS=docs makes those of docs/web.md anew."""
    return Path(os.environ.get("ITER_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))


def upscaled(photo, folder, *options):
    """The pixels of what `basicsr upscale` makes of a photo."""
    code, output = call(folder, BASICSR, "upscale", "-i", photo, "-o", folder / "results", *options)
    assert code == 0, output
    [result] = (folder / "results").iterdir()
    return np.asarray(Image.open(result))


def test_a_photo_is_restored_adjusted_and_downloaded_as_upscale_does_it(page, tmp_path):
    page.drop(SAMPLES / "chelsea.png")
    first = page.result()
    assert page.says("chelsea.png, 96 x 64: restored in")
    page.move("alpha", 30)
    second = page.result(other_than=first)
    assert page.pixels(first).shape == (256, 384, 3)
    assert not np.array_equal(page.pixels(first), page.pixels(second))
    (tmp_path / "downloads").mkdir()
    file = page.download(tmp_path / "downloads")
    assert file.name == "chelsea.png"
    assert np.array_equal(Image.open(file), upscaled(SAMPLES / "chelsea.png", tmp_path, "--alpha", "0.5"))


def test_what_is_painted_is_redrawn_and_nothing_else(page, shots):
    page.drop(SAMPLES / "chelsea.png")
    before = page.result()
    page.paint("left")
    page.click("#redraw")
    after = page.result(other_than=before)
    assert "redrawn where you painted, with seed 1" in page.status
    difference = np.abs(page.pixels(before).astype(int) - page.pixels(after)).max(2)
    # The decoder normalizes over a whole tile: pixels elsewhere move by some levels, though no token does.
    assert difference[:, :192].max() > 12 and difference[:, 290:].max() <= 8
    page.screenshot(shots / "web.jpg", bottom="#redraw")


def test_what_is_painted_gets_another_alpha(page):
    page.drop(SAMPLES / "chelsea.png")
    before = page.result()
    page.paint("left")
    page.click("#paint")
    after = page.result(other_than=before)
    assert "alpha 1 where you painted" in page.status
    assert (page.pixels(before) != page.pixels(after)).any()


def test_a_variant_becomes_the_result(page):
    page.drop(SAMPLES / "coffee.png")
    before = page.result()
    page.open("Variants")
    page.click("#draw")
    page.wait(lambda: len(page.find("#gallery img")) == 4)
    page.click("#gallery button:has(img)", 2)
    page.result(other_than=before)
    assert "variant with seed 2" in page.status
    assert page.find("#seed input")[0].get_attribute("value") == "2"


def test_steps_and_maps_are_shown(page, shots):
    page.drop(SAMPLES / "chelsea.png")
    before = page.result()
    page.move("alpha", 30)
    page.result(other_than=before)
    page.open("Steps")
    page.click("#make_film")
    page.wait(lambda: page.find("#film img"))
    assert len(page.wait(lambda: page.find("#frames img"))) > 2
    page.screenshot(shots / "web_steps.jpg", top="#make_film", bottom="#frames")
    page.open("Maps")
    page.move("samples", -2)
    page.click("#make_maps")
    page.wait(lambda: len(page.find("#maps img")) == 4)
    page.screenshot(shots / "web_maps.jpg", top="#make_maps", bottom="#maps")


def test_a_file_that_is_no_photo_is_named_and_the_next_one_restored(page, tmp_path):
    letter = tmp_path / "letter.jpg"
    letter.write_text("no photo")
    page.drop(letter)
    page.says("letter.jpg cannot be used: it is not an image")
    assert not page.find("#download:enabled")
    page.drop(SAMPLES / "coffee.png")
    page.result()
    page.says("coffee.png")


def test_cancel_stops_computing(server, page, tmp_path):
    large = tmp_path / "large.png"
    Image.open(SAMPLES / "lake.jpg").resize((1024, 768)).save(large)
    page.drop(large)
    page.says("large.png, 1024 x 768")
    page.wait(lambda: "Restoring" in page.find("#slider")[0].text)
    page.click("#cancel")
    page.says("Canceled.")
    time.sleep(3)  # the batch of tiles that is on its way is still finished
    before = server.cpu_seconds()
    time.sleep(3)
    assert server.cpu_seconds() - before < 0.5
    page.drop(SAMPLES / "chelsea.png")
    page.result()


def test_two_visitors_have_a_photo_each(server, page, tmp_path):
    other = WebPage(chromium(), server.address)
    try:
        page.drop(SAMPLES / "chelsea.png")
        other.drop(SAMPLES / "coffee.png")
        mine, theirs = page.result(), other.result()
        assert page.says("restored in").startswith("chelsea.png")
        assert other.says("restored in").startswith("coffee.png")
        page.move("alpha", 10)
        page.result(other_than=mine)
        assert other.result() == theirs and other.status.startswith("coffee.png")
        assert mine.split("/")[-3] != theirs.split("/")[-3]
    finally:
        other.driver.quit()


def test_who_leaves_leaves_nothing_behind(server, page):
    other = WebPage(chromium(), server.address)
    try:
        other.drop(SAMPLES / "rocket.png")
        theirs = Path(other.result().partition("/file=")[2])
        assert theirs.is_file()
    finally:
        other.driver.quit()
    page.wait(lambda: not theirs.exists())


def test_the_page_loads_nothing_from_elsewhere(server, page):
    page.click("#examples button")
    page.result()
    messages = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    requests = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert len(requests) > 10
    assert [url for url in requests if not url.startswith((server.address, "data:", "blob:"))] == []


def test_on_a_narrow_screen_nothing_is_cut_off(page, shots):
    page.resize(400, 800)
    page.drop(SAMPLES / "chelsea.png")
    page.result()
    too_wide = "return document.documentElement.scrollWidth - window.innerWidth"
    assert page.driver.execute_script(too_wide) <= 0
    places = {name: page.find(f"#{name}")[0].rect["y"] for name in ("photo", "slider", "alpha", "start")}
    assert sorted(places, key=places.get) == ["photo", "slider", "alpha", "start"]
    page.screenshot(shots / "web_narrow.jpg", bottom="#start")
