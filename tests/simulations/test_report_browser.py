"""The page in a real browser: charts drawn, videos playing, nothing loaded, readable on a phone, in the dark, on paper.

Needs Python's ``playwright`` (without its browsers) and a Chromium: ``apt-get install chromium``, or CHROMIUM=its path.
"""

import os
import shutil
import time
from dataclasses import replace

import pytest

from client.video.rows import read_rows
from simulations.report.collect import collect
from simulations.report.page import render, write_page

playwright = pytest.importorskip("playwright.sync_api", reason="needs the python package playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: install Debian's, or set CHROMIUM to its path")
TABLE = {  # crowded on the left, as it is where nothing but the motion hides a person
    "raw": (0.96, 1.0), "greyscale": (0.955, 0.998), "downsample2x": (0.95, 0.99), "blur_weak": (0.94, 0.985),
    "difference1bit": (0.92, 0.4), "bdq": (0.91, 0.38), "anonymized": (0.94, 0.36),
}  # fmt: skip
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
SMALL = {"clip.frames": 4, "clip.size_px": 16, "networks.anonymizer_channels": 4, "networks.anonymizer_depth": 1}
PATIENCE_SECONDS = 180  # a machine may be busy


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(made_up_run, made_up_comparison, judgement, squares, tmp_path_factory):
    """A page with everything on it: two runs, one of which drew its videos, and a comparison."""
    folder = tmp_path_factory.mktemp("page")
    one = made_up_run(folder / "one", SMALL, evaluation=judgement(TABLE))
    shutil.copytree(squares.parent, one / "synthetic")
    (one / "data.csv").unlink()
    assert read_rows(one / "synthetic" / "manifest.csv")
    two = made_up_run(folder / "two", SMALL)
    write_page(folder / "page.html", render(*collect([one, two, made_up_comparison(folder / "versus")])))
    return (folder / "page.html").as_uri()


@pytest.fixture
def visit(browser, address):
    """Open the page as somebody with this screen and these wishes; whatever it complains of or loads fails the test."""
    contexts, trouble = [], []

    def open_page(**wishes):
        context = browser.new_context(**wishes)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE_SECONDS)
        page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("requestfailed", lambda request: trouble.append(f"failed: {request.url[:80]}"))
        page.on("request", lambda request: trouble.extend(_foreign(request.url)))
        page.goto(address)
        until(page, "[...document.querySelectorAll('.chart')].some((chart) => chart._fullLayout)")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


def _foreign(url):
    return [] if url.startswith(("file:", "data:")) else [f"loaded: {url[:80]}"]


def until(page, expression):
    """Wait for a truth. Playwright's own wait would evaluate text inside the page, which its policy forbids."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"still not: {expression}"
        page.wait_for_timeout(50)


def points_of(page, key):
    return page.locator(f"#{key} .scatterlayer .point").count()


def test_charts_are_drawn_with_every_point_and_label(visit):
    page = visit(viewport={"width": 1280, "height": 900})
    assert points_of(page, "scatter-0") == len(TABLE)
    labels = page.locator("#scatter-0 .annotation-text").all_text_contents()
    assert {"raw", "downsampled 2×", "one-bit difference", "anonymized", "ideal corner", "chance"} <= set(labels)
    assert page.locator("#scatter-0 .errorbar").count() >= 4
    assert page.locator("#run-1-action .scatterlayer .trace").count() == 4  # three sites and their mean
    assert page.locator("#run-1-privacy .scatterlayer .trace").count() == 5  # and chance
    assert (
        points_of(page, "run-1-rounds") == 4
    )  # two checkpoints, an attacker at one of them, one evaluation at the sites
    ticks = page.locator("#run-1-rounds .xtick text, #run-1-action .xtick text").all_text_contents()
    assert ticks
    assert all(text.isdigit() for text in ticks)
    assert points_of(page, "comparison-1-scatter") == 5
    assert points_of(page, "comparison-1-arms") == 10
    page.locator("summary", has_text="other question").click()
    page.wait_for_selector("#scatter-1 svg .point")  # was in a closed part of the page


def test_labels_lie_on_no_other_label(visit):
    page = visit(viewport={"width": 1280, "height": 900})
    boxes = [note.bounding_box() for note in page.locator("#scatter-0 .annotation-text").all()]
    for number, one in enumerate(boxes):
        for other in boxes[number + 1 :]:
            apart_x = one["x"] + one["width"] <= other["x"] + 2 or other["x"] + other["width"] <= one["x"] + 2
            apart_y = one["y"] + one["height"] <= other["y"] + 2 or other["y"] + other["height"] <= one["y"] + 2
            assert apart_x or apart_y


def test_videos_play_in_sight_and_stand_still_for_those_who_wish_so(visit):
    page = visit(viewport={"width": 1280, "height": 900})
    videos = page.locator("video")
    assert videos.count() == 8  # four of each run
    videos.first.scroll_into_view_if_needed()
    until(page, "document.querySelector('video').currentTime > 0.2")
    assert page.evaluate("[...document.querySelectorAll('video')].map((video) => video.error)") == [None] * 8
    assert page.evaluate(
        "[...document.querySelectorAll('video')].every((v) => v.muted && v.loop && !v.controls && v.playsInline && "
        "v.poster.startsWith('data:image/jpeg') && v.getAttribute('aria-label').length > 10)"
    )
    assert page.evaluate("document.querySelector('video').videoWidth") == 2 * 192 + 4
    page.locator("#cost").scroll_into_view_if_needed()
    until(page, "document.querySelector('video').paused")
    still = visit(reduced_motion="reduce")
    still.locator("video").first.scroll_into_view_if_needed()
    until(still, "document.querySelector('video').readyState >= 1")
    assert still.evaluate("[...document.querySelectorAll('video')].every((video) => video.paused)")
    still.locator("button.play").first.click()  # whoever presses the button sees it
    until(still, "document.querySelector('video').currentTime > 0.1")


def test_the_keyboard_stops_a_video_and_it_stays_stopped(visit):
    page = visit(viewport={"width": 1280, "height": 900})
    button = page.locator("button.play").first
    page.locator("video").first.scroll_into_view_if_needed()
    label = "document.querySelector('button.play').getAttribute('aria-label')"
    until(page, f"{label}.startsWith('Pause: ')")
    button.focus()
    page.keyboard.press("Enter")
    until(page, f"{label}.startsWith('Play: ')")
    assert button.inner_text() == "Play"
    assert page.evaluate("document.querySelector('video').paused")
    page.locator("#cost").scroll_into_view_if_needed()
    until(page, "[...document.querySelectorAll('video')].every((video) => video.paused)")
    page.locator("video").first.scroll_into_view_if_needed()
    until(page, "!document.querySelectorAll('video')[1].paused")
    assert page.evaluate("document.querySelector('video').paused")
    page.keyboard.press("Enter")
    until(page, "!document.querySelector('video').paused")


def test_nothing_lies_on_the_pictures(visit):
    """The browser's own controls cover half of a picture as small as these."""
    page = visit(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    button = page.locator("button.play").first
    button.scroll_into_view_if_needed()
    video = page.locator("video").first.bounding_box()
    box = button.bounding_box()
    assert box["y"] >= video["y"] + video["height"]
    assert box["height"] >= 24  # WCAG 2.5.8
    assert page.locator("video[controls]").count() == 0


def test_links_lead_somewhere_and_the_keyboard_gets_there(visit):
    page = visit()
    lost = page.evaluate(
        "[...document.querySelectorAll('a[href]')].map((a) => a.getAttribute('href'))"
        ".filter((href) => !href.startsWith('#') || !document.getElementById(href.slice(1)))"
    )
    assert lost == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the content"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#content"
    page.locator("nav a", has_text="Cost").click()
    assert page.evaluate("location.hash") == "#cost"


def test_the_page_says_what_it_shows_to_those_who_do_not_see_it(visit):
    page = visit()
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate("[...document.querySelectorAll('th')].every((th) => th.scope)")
    assert page.evaluate("[...document.querySelectorAll('table')].every((table) => table.caption.textContent)")
    assert page.evaluate(
        "[...document.querySelectorAll('.chart')].every((chart) => chart.getAttribute('role') === 'img' && "
        "chart.getAttribute('aria-label').length > 20 && chart.closest('figure').querySelector('details table'))"
    )
    assert page.locator("h1").count() == 1
    assert page.evaluate("new Set([...document.querySelectorAll('[id]')].map((one) => one.id)).size") == page.evaluate(
        "document.querySelectorAll('[id]').length"
    )


@pytest.mark.parametrize("width", [360, 768])
def test_a_narrow_screen_needs_no_sideways_scrolling(visit, width):
    page = visit(viewport={"width": width, "height": 740}, is_mobile=width < 500, has_touch=width < 500)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    page.wait_for_selector("#scatter-1 svg .point")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    rights = "[...document.querySelectorAll('.chart .main-svg')].map((svg) => svg.getBoundingClientRect().right)"
    assert max(page.evaluate(rights)) <= width


LUMINANCE = """(colour) => {
  const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_charts_stand_out_in_light_and_dark(visit, scheme):
    """WCAG AA: 4.5 to 1 for every piece of text, on the page and in the charts."""
    page = visit(color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    luminance = page.evaluate(f"({LUMINANCE})({ground!r})")
    assert (luminance < 0.1) == (scheme == "dark")
    worst = page.evaluate(
        f"""(ground) => {{
          const luminance = {LUMINANCE};
          const behind = (node) => {{
            for (let up = node; up; up = up.parentElement) {{
              const colour = getComputedStyle(up).backgroundColor;
              if (!/, 0\\)$|transparent/.test(colour)) return luminance(colour);
            }}
            return ground;
          }};
          const found = [];
          for (const node of document.querySelectorAll("body *:not(script):not(style)")) {{
            const told = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
            if (!told || !node.getClientRects().length) continue;
            const style = getComputedStyle(node);
            const [a, b] = [luminance(node.closest("svg") ? style.fill : style.color), behind(node.parentElement)];
            found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.textContent.slice(0, 40)]);
          }}
          return found.sort((one, other) => one[0] - other[0]).slice(0, 3);
        }}""",
        luminance,
    )
    assert worst[0][0] >= 4.5, worst


def test_a_change_of_scheme_redraws_the_charts(visit):
    page = visit(color_scheme="light")
    colour = "getComputedStyle(document.querySelector('#scatter-0 .xtick text')).fill"
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    until(page, f"{colour} !== {light!r}")


def test_paper_gets_light_colours_posters_and_everything_open(visit, tmp_path):
    page = visit(color_scheme="dark", viewport={"width": 1280, "height": 900})
    page.emulate_media(media="print", color_scheme="dark")
    page.wait_for_selector("#scatter-1 svg .point")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("[...document.querySelectorAll('details')].every((part) => part.open)")
    assert page.evaluate("[...document.querySelectorAll('video')].every((video) => !video.getClientRects().length)")
    assert page.evaluate("[...document.querySelectorAll('img.poster')].every((img) => img.naturalWidth && img.width)")
    fill = page.evaluate("getComputedStyle(document.querySelector('#scatter-0 .xtick text')).fill")
    assert fill == "rgb(29, 29, 31)"
    assert page.locator("#scatter-0").bounding_box()["width"] >= 600
    page.emulate_media(media="screen", color_scheme="dark")
    until(page, "!document.documentElement.dataset.theme")
    assert not page.evaluate("[...document.querySelectorAll('details')].some((part) => part.open)")
    page.pdf(path=str(tmp_path / "page.pdf"), format="A4")
    assert (tmp_path / "page.pdf").read_bytes().count(b"/Type /Page\n") >= 4


def test_a_table_of_five_questions_fits_the_paper(browser, made_up_run, judgement, tmp_path):
    made = judgement(TABLE)
    crops = ("identity (person only)", "identity (background only)", "retrieval_same_source")
    asked = {
        name: replace(row, attacks={**row.attacks, **dict.fromkeys(crops, row.attacks["identity"])})
        for name, row in made.representations.items()
    }
    run = made_up_run(tmp_path / "run", SMALL, evaluation=replace(made, representations=asked), data=False)
    write_page(tmp_path / "page.html", render(*collect([run])))
    page = browser.new_page(viewport={"width": 688, "height": 1000})  # A4 between its margins
    page.goto((tmp_path / "page.html").as_uri())
    page.emulate_media(media="print")
    until(page, "document.querySelector('table.wide')?.getClientRects().length")
    beyond = "[...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > one.clientWidth + 1).length"
    assert page.evaluate(beyond) == 0
    page.close()


def test_without_javascript_the_tables_tell_all(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert page.locator("noscript p").is_visible()
    assert page.locator(".chart").first.is_hidden()
    assert page.locator("button.play").first.is_hidden()  # the browser's own controls serve instead
    assert page.locator("video[controls]").count() == page.locator("video").count() == 8
    page.locator("#tradeoff summary").first.click()
    assert "94.0" in page.locator("#tradeoff table").first.inner_text()
    context.close()
