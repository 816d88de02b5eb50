"""The HTML report as text: one file, nothing fetched, everything escaped, and it says what the other forms say."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from made_nights import HOSTILE, bad_night, golden_night, hostile_night, night

from specbatch.jobs.reports import svg
from specbatch.jobs.reports.report import render
from specbatch.jobs.reports.sections import describe
from specbatch.schemas.manifest import Manifest

NIGHTS: dict[str, Callable[[], Manifest]] = {
    "good": lambda: night(forecast_hours=6.2),
    "bad": bad_night,
    "no draft": lambda: night(k=0, price=None),
    "distribution": lambda: night(settings={"generation": {"coupling": "distribution"}}, k=3),
    "on cpu, short": lambda: night(hours=0.02, num_workers=1, device="cpu", num_rows=240),
    "of version 0.1": golden_night,
    "hostile": hostile_night,
}
VOID = {"meta", "link"}


class Page(HTMLParser):
    """Elements and texts of a page; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.texts.append(data)


def squeezed(text: str) -> str:
    """Without white space, which every form lays out in its own way."""
    return "".join(text.split())


@pytest.fixture(scope="module")
def nights() -> dict[str, Manifest]:
    return {name: make() for name, make in NIGHTS.items()}


@pytest.fixture(scope="module")
def pages(nights: dict[str, Manifest]) -> dict[str, str]:
    """Each night as a page, and all of them side by side."""
    found = {name: render([(f"out/{name}", manifest)], "html") for name, manifest in nights.items()}
    several = [(f"out/{name}", manifest) for name, manifest in nights.items()]
    return {**found, "several": render([*several, (f"out/{HOSTILE}", nights["hostile"])], "html")}


@pytest.mark.parametrize("name", [*NIGHTS, "several"])
def test_it_is_one_file_that_fetches_nothing(pages: dict[str, str], name: str) -> None:
    page = Page(pages[name])
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "img", "base", "form", "video", "audio"}
    for tag, attributes in page.tags:
        assert "style" not in attributes
        assert not any(key.startswith("on") for key in attributes)
        assert "src" not in attributes
        href = attributes.get("href")
        assert href is None or href.startswith("#") or (tag, href) == ("link", "data:,")
    assert "http://" not in pages[name]
    assert "https://" not in pages[name]
    assert "url(" not in pages[name]
    assert "@import" not in pages[name]


@pytest.mark.parametrize("name", [*NIGHTS, "several"])
def test_the_policy_allows_the_style_in_the_page_and_nothing_else(pages: dict[str, str], name: str) -> None:
    page = Page(pages[name])
    policies = [a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv")]
    (style,) = re.findall(r"<style>(.*?)</style>", pages[name], re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policies == [
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    ]
    assert [a["content"] for tag, a in page.tags if a.get("name") == "viewport"] == [
        "width=device-width, initial-scale=1"
    ]


@pytest.mark.parametrize("name", [*NIGHTS, "several"])
def test_it_can_be_heard_as_well_as_seen(pages: dict[str, str], name: str) -> None:
    page = Page(pages[name])
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes.get("role") == "img"
        for key in ("aria-labelledby", "href"):
            wanted = str(attributes.get(key) or "").replace("#", "").split()
            assert tag == "link" or set(wanted) <= set(ids)
    titles = [a["id"] for tag, a in page.tags if tag in ("title", "desc") and "id" in a]
    assert len(titles) == 2 * sum(a.get("role") == "img" for _, a in page.tags)
    scopes = [a.get("scope") for tag, a in page.tags if tag == "th"]
    assert set(scopes) <= {"col", "row"}


def test_what_is_hostile_is_text(pages: dict[str, str]) -> None:
    for name in ("hostile", "several"):
        assert "<script" not in pages[name]
        assert "\x1b" not in pages[name]
        assert "\u202e" not in pages[name]
    said = "".join(Page(pages["hostile"]).texts)
    shown = HOSTILE.replace("\u202e", "?").replace("\x1b", "?")
    assert said.count(shown) >= 8
    assert "<script>alert" in "".join(Page(pages["several"]).texts)


@pytest.mark.parametrize("name", NIGHTS)
def test_all_forms_say_the_same(nights: dict[str, Manifest], pages: dict[str, str], name: str) -> None:
    pair = (f"out/{name}", nights[name])
    report = describe(*pair)
    forms = {
        "human": render([pair], "human"),
        "markdown": re.sub(r"\\(.)", r"\1", render([pair], "markdown")),
        "html": "".join(Page(pages[name]).texts),
    }
    figures = {text for figure in report.figures for text in (figure.label, figure.value, figure.note)}
    for form, text in forms.items():
        said = squeezed(text.replace("`", ""))
        for statement in report.texts():
            if form == "html" or statement not in figures:
                assert squeezed(statement.replace("`", "")) in said, (form, statement)


def test_the_json_says_the_numbers_behind_it(nights: dict[str, Manifest]) -> None:
    manifest = nights["bad"]
    document = json.loads(render([("out/bad", manifest)], "json"))["outputs"][0]
    report = describe("out/bad", manifest)
    assert document["verdict"]["headline"] == report.verdict.headline
    assert [finding["title"] for finding in document["verdict"]["findings"]] == [
        finding.title for finding in report.verdict.findings
    ]
    assert document["counts"] == manifest.commit.counts.model_dump()
    assert document["cost"] == manifest.observed.cost.model_dump()  # type: ignore[union-attr]
    assert document["quarantined"] == ["node-2/cuda"]
    assert document["deaths"] == 3
    assert len(document["timeline"]) == len(manifest.observed.timeline)
    assert "parts" not in document
    assert document["parts_bytes"] == sum(part.bytes for part in manifest.commit.parts)


def test_equal_manifests_make_equal_pages(nights: dict[str, Manifest], pages: dict[str, str]) -> None:
    assert render([("out/bad", bad_night())], "html") == pages["bad"]
    assert len(pages["bad"]) < 400_000


def test_ten_thousand_parts_are_no_ten_thousand_lines(nights: dict[str, Manifest]) -> None:
    manifest = nights["good"]
    parts = [manifest.commit.parts[0].model_copy(update={"path": f"data/part-{i}"}) for i in range(10_000)]
    many = manifest.model_copy(update={"commit": manifest.commit.model_copy(update={"parts": parts})})
    text = render([("out", many)], "html")
    assert "10,000 parts" in text
    assert "part-9999" not in text
    assert len(text) < 400_000


def test_an_axis_is_round_and_holds_its_values() -> None:
    for maximum in (0.0, 0.3, 1.0, 7.2, 99.0, 101.0, 4800.0, 123_456.0):
        axis = svg.axis_to(maximum, str)
        assert axis.low == 0
        assert maximum <= axis.high <= max(2 * maximum, 1)
    for values in ([1.0, 1.0], [0.7, 1.0, 1.9], [0.0, 20_000.0, 36_000.0], [-0.1, 0.2], [3.0]):
        axis = svg.axis_around(values, str)
        assert axis.low <= min(values) + 1e-9
        assert axis.high >= max(values) - 1e-9
        assert len(axis.ticks) == 5


def test_steps_leave_gaps_where_nothing_is_known() -> None:
    axis = svg.Axis(0, 1, ("1", "0"))
    assert svg.steps([0.5, None, 1.0], axis).count("<path") == 2
    assert svg.steps([None, None], axis) == ""
    assert svg.layers([None, [0.25, 0.75]]).count("<path") == 2


def test_titles_of_figures_are_escaped() -> None:
    drawn = svg.figure(HOSTILE, HOSTILE, [svg.hints([HOSTILE])])
    assert "<script" not in drawn
    assert drawn.count("&lt;script&gt;") == 3


def test_of_many_workers_the_slowest_are_shown() -> None:
    text = render([("out", night(num_workers=40, hours=1.0))], "html")
    assert "Workers (run.worker): the slowest 32 of 40" in text
    assert "Memory per worker (the first 32; 8 more)" in text
    assert len(text) < 400_000
