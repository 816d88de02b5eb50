"""The HTML report in a real browser, without a screen. Where none is found these tests say so and are left out."""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from finished_output import build, make_run
from made_nights import bad_night, golden_night, hostile_night, night

from specbatch.jobs.output.ledger import Ledger
from specbatch.jobs.reports.reading import load_night
from specbatch.jobs.reports.report import render
from specbatch.jobs.running.run_log import Fact, RunLog
from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.log_lines import LogSettings
from specbatch.schemas.stats import PartStats
from specbatch.storage.store import open_store

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
HAS_PLAYWRIGHT = importlib.util.find_spec("playwright") is not None

pytestmark = [
    pytest.mark.skipif(not HAS_PLAYWRIGHT, reason="no browser tests: the Python package playwright is not installed"),
    pytest.mark.skipif(
        BROWSER is None, reason="no browser tests: no chromium found (Debian: apt-get install chromium)"
    ),
]

NAMES = ("good", "bad", "plain", "old", "hostile", "several")
WIDTHS = (360, 768, 1280)

CONTRAST = """() => {
  const channel = c => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || element.namespaceURI !== 'http://www.w3.org/1999/xhtml') continue;
    if (!element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(rgb(style.color)), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push({text: text.slice(0, 40), size: parseFloat(style.fontSize), contrast});
  }
  return found;
}"""

FIGURES = """() => Array.from(document.querySelectorAll('svg.plot')).map(svg => {
  const box = svg.getBoundingClientRect();
  return {left: box.left, right: box.right, height: box.height, width: box.width};
})"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    nights = {
        "good": night(forecast_hours=6.2),
        "bad": bad_night(),
        "plain": night(k=0, price=None),
        "old": golden_night(),
        "hostile": hostile_night(),
    }
    texts = {name: render([(f"s3://bucket/out/{name}", manifest)], "html") for name, manifest in nights.items()}
    several = [(f"s3://bucket/out/{name}", manifest) for name, manifest in nights.items()]
    texts["several"] = render(several, "html")
    for name, text in texts.items():
        (root / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: root / f"{name}.html" for name in texts}


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a night that was stopped in mid-job, whose only message is long and has no place to break."""
    output = build(tmp_path_factory.mktemp("unfinished") / "out", num_parts=3)
    ledger = Ledger(open_store(str(output.root)))
    stats = sum((part.stats for part in output.parts), PartStats())
    ledger.write_run(make_run(1, stats, k=4, tokens_per_second=20.0, outcome="failed"))
    words = f"the output s3://{'a' * 60}/{'b' * 90} cannot be written: AccessDenied; give the role s3:PutObject"
    code = ErrorCode.JOB_OUTPUT_UNWRITABLE
    log = RunLog(lambda: "2026-11-23T10:00:09.000+00:00")
    log.begin("job", 1, LogSettings())
    log.add(Fact("error", "job_failed", f"{code.value}: {words}", code=code.value))
    log.flush(lambda name, text: ledger.write_log(1, name, text))
    manifest, ending = load_night(str(output.root))
    file = output.root / "report.html"
    file.write_text(render([(str(output.root), manifest)], "html", endings=[ending]), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()


def show(page: Page, file: Path, *, width: int = 1280, scheme: Any = "light") -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(file.as_uri())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_fetched_and_nothing_complained_of(page: Page, files: dict[str, Path], name: str) -> None:
    requests: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    show(page, files[name])
    page.wait_for_timeout(50)
    assert [url for url in requests if not url.startswith("data:")] == [files[name].as_uri()]
    assert said == []
    assert page.evaluate("document.scripts.length") == 0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_scrolls_sideways(page: Page, files: dict[str, Path], name: str, width: int) -> None:
    show(page, files[name], width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for figure in page.evaluate(FIGURES):
        assert figure["width"] > 100
        assert figure["left"] >= 0
        assert figure["right"] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_all_text_can_be_read(page: Page, files: dict[str, Path], name: str, scheme: str) -> None:
    for width in (360, 1280):
        show(page, files[name], width=width, scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
        texts = page.evaluate(CONTRAST)
        assert len(texts) > 40
        assert [text for text in texts if text["contrast"] < 4.5] == []
        assert [text for text in texts if text["size"] < 12] == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_night_that_did_not_end_can_be_read_on_a_phone(page: Page, unfinished: Path, width: int, scheme: str) -> None:
    show(page, unfinished, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    texts = page.evaluate(CONTRAST)
    assert len(texts) > 10
    assert [text for text in texts if text["contrast"] < 4.5 or text["size"] < 12] == []
    assert "AccessDenied" in page.inner_text("body")


def test_dark_is_dark_and_light_is_light(page: Page, files: dict[str, Path]) -> None:
    found = {}
    for scheme in ("light", "dark"):
        show(page, files["good"], scheme=scheme)
        found[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert found == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_the_picture_is_not_blank(page: Page, files: dict[str, Path], name: str, scheme: str) -> None:
    show(page, files[name], scheme=scheme)
    picture = page.screenshot()
    page.set_content("")
    assert len(picture) > 10 * len(page.screenshot())
    assert len(set(decode_png(picture))) > 60


@pytest.mark.parametrize("name", NAMES)
def test_it_prints_whole(page: Page, files: dict[str, Path], name: str) -> None:
    show(page, files[name], scheme="dark")
    pdf = page.pdf(format="A4", margin={"top": "15mm", "bottom": "15mm", "left": "12mm", "right": "12mm"})
    assert pdf.startswith(b"%PDF")
    num_pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert 1 <= num_pages <= 12
    # The width that A4 leaves, in CSS pixels, and the least height of a page.
    page.set_viewport_size({"width": 703, "height": 1009})
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 703
    for figure in page.evaluate(FIGURES):
        assert figure["right"] <= 703
        assert 20 < figure["height"] < 900
    assert [text for text in page.evaluate(CONTRAST) if text["contrast"] < 4.5] == []


def test_what_is_hostile_is_shown_as_text(page: Page, files: dict[str, Path]) -> None:
    show(page, files["hostile"])
    assert "<script>alert('x')</script>" in page.inner_text("body")
    assert page.title().endswith("specbatch report")


def test_the_verdict_is_seen_without_scrolling(page: Page, files: dict[str, Path]) -> None:
    for width in (360, 1280):
        show(page, files["bad"], width=width)
        box = page.locator(".headline").bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < 400


def decode_png(data: bytes) -> bytes:
    """The bytes of the rows of a picture, filters not undone: enough to tell blank from drawn."""
    assert data.startswith(b"\x89PNG")
    place, packed = 8, b""
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        if data[place + 4 : place + 8] == b"IDAT":
            packed += data[place + 8 : place + 8 + length]
        place += 12 + length
    return zlib.decompress(packed)
