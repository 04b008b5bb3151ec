"""The page of `basicsr web` in a real browser, for the tests: what a visitor does, and what a visitor sees."""

import base64
import io
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# A busy machine computes slowly; a test that succeeds does not wait for it.
PATIENCE = 240


def chromium():
    """A headless Chromium; skips the test where there is none, or nothing that drives it."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs Selenium: pip install 'iter-sr[test]'")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1400"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


class WebPage:
    """The page at an address, and the fields on it."""

    def __init__(self, driver, address):
        self.driver = driver
        driver.get(address)
        self.wait(lambda: self.find("#photo input[type=file]") and self.status is not None)

    def find(self, selector):
        """The elements of a CSS selector."""
        return self.driver.find_elements("css selector", selector)

    def click(self, selector, index=0):
        """Press one of the elements of a CSS selector."""
        element = self.find(selector)[index]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def wait(self, condition, seconds=PATIENCE):
        """What ``condition`` gives as soon as it gives anything."""
        from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(self.driver, seconds, 0.1, ignored_exceptions=[StaleElementReferenceException])
        try:
            return waiting.until(lambda driver: condition())
        except TimeoutException:
            raise AssertionError(f"not within {seconds} s; the status line says {self.status!r}") from None

    @property
    def status(self):
        """What the status line says; None before it is there."""
        return next((element.text for element in self.find("#status")), None)

    def drop(self, path):
        """Drop a file on the page."""
        for button in self.find("#photo button[aria-label='Clear'], #photo button[title='Clear']"):
            button.click()
        self.wait(lambda: self.find("#photo input[type=file]"))[0].send_keys(str(path))

    def says(self, text):
        """Wait until the status line says this."""
        return self.wait(lambda: text in (self.status or "") and self.status)

    def result(self, other_than=None):
        """Wait for a restored picture, another than ``other_than``: the address of its file."""

        def address():
            shown = [image.get_attribute("src") for image in self.find("#slider img")]
            return next((src for src in shown if src.endswith("/after.png") and src != other_than), None)

        return self.wait(address)

    def pixels(self, address):
        """The pixels (H, W, 3) of a picture that the page shows, fetched as the page would."""
        script = """
            const [address, done] = arguments;
            fetch(address).then((r) => r.blob()).then((b) => {
              const reader = new FileReader();
              reader.onload = () => done(reader.result.split(",")[1]);
              reader.readAsDataURL(b);
            });"""
        content = base64.b64decode(self.driver.execute_async_script(script, address))
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

    def move(self, slider, presses):
        """Move a slider by a key that is held down, to the right or, below 0, to the left."""
        from selenium.webdriver import ActionChains, Keys

        [handle] = self.find(f"#{slider} input[type=range]")
        key = Keys.ARROW_RIGHT if presses > 0 else Keys.ARROW_LEFT
        self.driver.execute_script("arguments[0].focus()", handle)
        held = ActionChains(self.driver)
        for _ in range(abs(presses)):
            held.key_down(key)
        held.key_up(key).perform()

    def open(self, tab):
        """Open a tab by its name."""
        [button] = [button for button in self.find("button[role=tab]") if button.text == tab]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def paint(self, side):
        """Draw a stroke on the left or the right of what the brush paints on."""
        from selenium.webdriver import ActionChains

        self.open("Brush")
        undo = "#canvas button[aria-label='Undo']"
        canvas = self.wait(lambda: self.find("#canvas canvas"))[0]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        time.sleep(1)  # the picture is laid out
        start = {"left": -110, "right": 90}[side]
        stroke = ActionChains(self.driver).move_to_element_with_offset(canvas, start, 0).click_and_hold()
        stroke.move_by_offset(20, 10).move_by_offset(10, -10).release().perform()
        self.wait(lambda: self.find(f"{undo}:enabled"))

    def download(self, folder):
        """Press the download button: the file that comes into the empty ``folder``."""
        behavior = {"behavior": "allow", "downloadPath": str(folder)}
        self.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behavior)
        self.click("#download")

        def whole():
            files = [path for path in Path(folder).iterdir() if path.suffix != ".crdownload" and path.name[0] != "."]
            return files and files[0].stat().st_size and files[0]

        return self.wait(whole)

    def resize(self, width, height):
        """The size of the page, smaller than the window may be."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        time.sleep(0.5)

    def screenshot(self, path, top="body", bottom=None):
        """A picture of the page, as wide as it is, from an element to the end of another, as a JPEG file."""
        width, height = self.driver.execute_script(
            "return [window.innerWidth, document.querySelector('.gradio-container').scrollHeight]"
        )
        self.resize(width, height + 400)
        self.driver.execute_script("window.scrollTo(0, 0)")
        time.sleep(2)  # pictures are laid out again
        first = self.find(top)[0].rect
        last = self.find(bottom)[0].rect if bottom else {"y": 0, "height": height}
        left, right = (0, width) if top == "body" else (first["x"] - 8, first["x"] + first["width"] + 8)
        box = left, first["y"] - 8, right, last["y"] + last["height"] + 8
        whole = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        whole.crop((max(0, box[0]), max(0, box[1]), min(width, box[2]), min(whole.height, box[3]))).save(
            path, quality=85
        )
