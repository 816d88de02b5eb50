"""Several nights: what is flagged as worse, what is noise, what cannot be compared."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from finished_output import build
from made_nights import bad_night, golden_night, night

from specbatch.jobs.cli import app as cli
from specbatch.jobs.reports.comparison import METRICS, Delta, compare
from specbatch.jobs.reports.report import render
from specbatch.schemas.manifest import Manifest


def delta(first: Manifest, second: Manifest, key: str) -> Delta:
    place = [metric.key for metric in METRICS].index(key)
    return compare([first, second]).deltas[1][place]


def slower(share: float, **changes: object) -> Manifest:
    return night(seed=3, worker_tokens_per_second=1200 * share, hours=6.0 / share, **changes)  # type: ignore[arg-type]


def test_a_night_of_the_same_kind_is_no_regression() -> None:
    comparison = compare([night(), night(seed=2), night(seed=3, inputs="b")])
    assert comparison.regressions == ()
    assert comparison.is_comparable == (True, True, True)
    assert "inputs" in comparison.differences


def test_less_throughput_is_flagged_from_a_tenth() -> None:
    assert compare([night(), slower(0.93)]).regressions == ()
    comparison = compare([night(), slower(0.8)])
    assert comparison.regressions == (1,)
    assert delta(night(), slower(0.8), "output_tokens_per_second").standing == "worse"
    assert delta(slower(0.8), night(), "output_tokens_per_second").standing == "better"
    text = " ".join(render([("a", night()), ("b", slower(0.8))], "human").split())
    assert "Slower: [2] b reached 80 % of the throughput of [1] a (flagged below 90 %)." in text


def test_a_difference_within_the_measured_noise_is_not_flagged() -> None:
    """A night that goes to a third of its pace half-way varies more by itself than the two nights differ."""
    rough = night(seed=4, slow_to=0.3)
    first = night(seed=5, slow_to=0.3, worker_tokens_per_second=1600.0)
    found = delta(first, rough, "output_tokens_per_second")
    assert found.change is not None
    assert found.noise is not None
    assert found.change < -0.1
    assert found.noise > -found.change
    assert found.standing == "noise"
    assert compare([first, rough]).regressions == ()
    assert "within the measured noise of +-" in " ".join(render([("a", first), ("b", rough)], "human").split())


def test_acceptance_errors_and_cost_have_thresholds_of_their_own() -> None:
    base = night(errors={"ROW_TOO_LONG": 96})
    assert delta(base, night(acceptance=0.67), "acceptance_rate").standing == "same"
    assert delta(base, night(acceptance=0.5), "acceptance_rate").standing == "worse"
    assert delta(base, night(errors={"ROW_TOO_LONG": 480}), "error_rate").standing == "same"
    assert delta(base, night(errors={"ROW_TOO_LONG": 960}), "error_rate").standing == "worse"
    assert delta(base, night(price=3.0), "cost_per_million_tokens").standing == "worse"
    assert delta(base, night(price=2.0), "cost_per_million_tokens").standing == "better"
    assert delta(base, night(price=None), "cost_per_million_tokens").standing == "unknown"
    assert delta(base, night(k=0), "acceptance_rate").standing == "unknown"


def test_few_rows_make_much_noise() -> None:
    """Two errors among forty rows against none: more than half a point, but no more than chance."""
    few = night(num_rows=48)
    assert delta(few, night(num_rows=48, errors={"ROW_ENCODING": 2}), "error_rate").standing == "noise"


def test_other_models_or_settings_are_not_compared() -> None:
    base = night()
    warm = bad_night(settings={"generation": {"temperature": 0.7}})
    comparison = compare([base, warm])
    assert comparison.is_comparable == (True, False)
    assert comparison.regressions == ()
    for format in ("human", "markdown", "html"):
        text = " ".join(render([("a", base), ("b", warm)], format).replace("\\", "").split())
        assert "Not comparable with [1] a: [2] b; models, prompts or sampling differ" in text
        assert "S differs in generation.temperature" in text
    changes = json.loads(render([("a", base), ("b", warm)], "json"))["comparison"]["changes"]
    assert {change["standing"] for change in changes} == {"not comparable"}


def test_several_nights_in_every_form() -> None:
    nights = [("mon", night()), ("tue", slower(0.8)), ("wed", night(seed=9, inputs="c")), ("old", golden_night())]
    document = json.loads(render(nights, "json"))["comparison"]
    assert document["regressions"] == ["tue"]
    assert document["comparable"] == [True, True, True, False]
    assert [item["figure"] for item in document["thresholds"]] == [metric.key for metric in METRICS]
    rows = list(csv.DictReader(io.StringIO(render(nights, "csv"))))
    assert [row["regressions"] for row in rows] == ["", "output_tokens_per_second cost_per_million_tokens", "", ""]
    page = render(nights, "html")
    assert page.count('class="dot bad"') == 2
    assert "flagged as worse" in page
    for format in ("human", "markdown"):
        assert re.search(r"-(19|20)\.\d %", render(nights, format))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("outputs")
    build(root / "first", tokens_per_second=200.0)
    build(root / "second", tokens_per_second=100.0)
    return str(root / "first"), str(root / "second")


def test_the_exit_code_tells_of_a_regression_only_if_asked(
    outputs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = outputs
    assert cli.run(["report", first, second]) == 0
    assert cli.run(["report", second, first, "--fail-on-regression"]) == 0
    capsys.readouterr()
    assert cli.run(["report", first, second, "--fail-on-regression", "--format", "csv"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("output,job_id")
    assert said.err == f"worse than {first}: {second}\n"
    assert cli.run(["report", first, "--fail-on-regression"]) == 2


def test_the_page_goes_to_stdout_or_to_a_file(
    outputs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = outputs
    assert cli.run(["report", first, "--format", "html"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("<!doctype html>")
    assert cli.run(["report", first, "--html", str(tmp_path / "a.html")]) == 0
    said = capsys.readouterr()
    assert (tmp_path / "a.html").read_text() == page
    assert said.out.startswith("specbatch report")
    assert said.err == f"wrote {tmp_path / 'a.html'}\n"
    assert cli.run(["report", first, second, "--html", str(tmp_path / "b.html"), "--format", "json"]) == 0
    assert "2 nights side by side" in (tmp_path / "b.html").read_text()
    capsys.readouterr()
    assert cli.run(["report", first, "--html", str(tmp_path / "no/such/folder.html")]) == 2
    assert "JOB_OUTPUT_UNWRITABLE" in capsys.readouterr().err
