"""The page of ``--preview``: made only when asked, and working in a real browser with nothing loaded from outside."""

import contextlib
import io
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from client.video.encode import write_video
from fedspact import main

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
SMALL = {"networks.anonymizer": "motion", "networks.anonymizer_channels": 4, "networks.anonymizer_depth": 1,
         "clip.size_px": 16, "clip.frames": 4, "clip.stride_frames": 2}  # fmt: skip
PATIENCE_SECONDS = 120


@pytest.fixture(scope="module")
def made(tmp_path_factory, write_model):
    """A folder with the input, the model, and what one command with --preview and one without leave."""
    folder = tmp_path_factory.mktemp("preview")
    write_model(folder / "m.safetensors", quiet=False)
    frames = np.zeros((12, 64, 96, 3), np.uint8)
    for t, frame in enumerate(frames):
        frame[:, 8 * t : 8 * t + 8] = 255  # where the bar stands says which frame is shown
    write_video(folder / "<in>.mp4", frames, 25, crf=1)
    words = ["anonymize", str(folder / "<in>.mp4"), "--model", str(folder / "m.safetensors")]
    assert main([*words, "-o", str(folder / "plain.mp4")]) == 0
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main([*words, "-o", str(folder / "out.mp4"), "--preview"]) == 0
    assert f"preview: {folder / 'out.mp4.preview.html'}\n" in said.getvalue()
    return folder, words


def test_the_page_is_made_only_when_asked_and_says_what_it_holds(made, capsys):
    folder, words = made
    assert [path.name for path in folder.glob("*.html")] == ["out.mp4.preview.html"]
    text = (folder / "out.mp4.preview.html").read_text()
    assert "This page contains raw video." in text
    assert "&lt;in&gt;.mp4" in text
    assert 'data-first="2"' in text  # the frames before have no predecessor: they are black
    assert "<in>.mp4" not in text
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert main([*words, "-o", "-", "--preview"]) == 2
    assert "standard output" in capsys.readouterr().err
    assert main([*words, "-o", str(folder / "out.mp4"), "--preview"]) == 2
    assert "--force" in capsys.readouterr().err


@pytest.fixture(scope="module")
def page(made):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the python package playwright")
    if not CHROMIUM:
        pytest.skip("no Chromium here: install Debian's, or set CHROMIUM to its path")
    trouble = []
    with playwright.sync_playwright() as running:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = running.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: _foreign(request.url, trouble))
        page.goto((made[0] / "out.mp4.preview.html").as_uri())
        until(page, "document.querySelector('video').readyState >= 2")
        yield page
        browser.close()
    assert trouble == []


def _foreign(url, trouble):
    if not url.startswith(("file:", "data:")):
        trouble.append(f"loaded: {url[:80]}")


def until(page, expression):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"still not: {expression}"
        page.wait_for_timeout(50)


def number(text):
    return f"document.querySelector('.number').textContent === '{text}'"


def pixel(page, x, y=0.5):
    """Brightness at a share of the canvas's width, seen on a screenshot: a page of file: may not read its canvas."""
    picture = Image.open(io.BytesIO(page.locator("canvas").screenshot())).convert("L")
    return picture.getpixel((int(x * picture.width), int(y * picture.height)))


def test_it_opens_on_the_first_frame_that_is_not_black(page):
    until(page, number("3 / 12"))


def test_frames_are_stepped_one_by_one_and_the_raw_half_shows_that_frame(page):
    page.locator(".frame").fill("4")
    until(page, number("5 / 12"))
    page.locator(".forth").click()
    until(page, number("6 / 12"))
    page.locator("canvas").focus()
    page.keyboard.press("ArrowRight")
    until(page, number("7 / 12"))
    page.wait_for_timeout(200)
    assert pixel(page, (6 * 8 + 4) / 192) > 180  # the bar of frame 7, in the left half
    assert pixel(page, (5 * 8 + 4) / 192) < 80
    page.locator(".back").click()
    until(page, number("6 / 12"))


def test_the_slider_moves_the_border_and_zoom_enlarges(page):
    page.locator(".frame").fill("6")
    until(page, number("7 / 12"))
    assert page.locator(".split").is_disabled()
    page.locator(".over").check()
    page.locator(".split").fill("100")
    page.wait_for_timeout(200)
    assert pixel(page, (6 * 8 + 4) / 96) > 180  # raw everywhere
    page.locator(".zoom").fill("4")
    page.wait_for_timeout(200)
    assert pixel(page, 0.6) > 180  # 8 px of 96 have become a third of the picture
    assert pixel(page, 0.8) > 180
    page.locator(".split").fill("0")
    page.locator(".zoom").fill("1")
    page.locator(".over").uncheck()


def test_it_plays_and_pauses(page):
    page.locator(".play").click()
    until(page, "document.querySelector('video').currentTime > 0.05 && !document.querySelector('video').paused")
    page.locator(".play").click()
    until(page, "document.querySelector('video').paused")
    until(page, "document.querySelector('.play').textContent === 'Play'")  # its event comes a moment later
