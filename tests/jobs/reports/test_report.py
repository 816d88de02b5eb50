"""Reports: what they say of one output, what they say of several, and that they say it honestly."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from finished_output import build, make_run

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.output.manifest import build_observed
from specbatch.jobs.reports.comparison import compare
from specbatch.jobs.reports.facts import describe_speedup
from specbatch.jobs.reports.report import load_manifest, render
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import Manifest, Speedup
from specbatch.schemas.stats import PartStats

FORMATS = ("human", "json", "markdown", "csv", "html")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Manifest]]:
    """The same job without a draft, with a good one, and with one that does not know its target."""
    root = tmp_path_factory.mktemp("outputs")
    plain = build(root / "plain", k=0, tokens_per_second=150.0)
    taught = build(root / "taught", k=4, tokens_per_second=243.0, ratio=1.62)
    stranger = build(root / "stranger", k=4, tokens_per_second=106.5, ratio=0.71)
    return [(str(item.root), load_manifest(str(item.root))) for item in (plain, taught, stranger)]


def changed(manifest: Manifest, **changes: Any) -> Manifest:
    """A manifest with other observations."""
    return manifest.model_copy(update={"observed": manifest.observed.model_copy(update=changes)})


def speedup(**changes: Any) -> Speedup:
    values = {"ratio": 1.62, "low": 1.55, "high": 1.7, "num_plain_rounds": 43, "num_spec_rounds": 2000, "note": None}
    return Speedup.model_validate({"baseline": "plain decoding at the same batch", **values, **changes})


@pytest.mark.parametrize(
    ("measured", "sentence"),
    [
        (
            speedup(),
            "1.62x over plain decoding at the same batch (95 % interval 1.55 to 1.70, 43 plain rounds, prefill apart)",
        ),
        (
            speedup(ratio=0.71, low=0.68, high=0.74),
            "speculation made this job slower: 0.71x of plain decoding at the same batch "
            "(95 % interval 0.68 to 0.74, 43 plain rounds, prefill apart)",
        ),
        (
            speedup(ratio=1.02, low=0.97, high=1.08),
            "no clear difference: 1.02x against plain decoding at the same batch "
            "(95 % interval 0.97 to 1.08, 43 plain rounds, prefill apart)",
        ),
        (
            speedup(low=None, high=None, num_plain_rounds=1, note="only 1 plain round: too few for an interval"),
            "about 1.62x over plain decoding at the same batch (only 1 plain round: too few for an interval)",
        ),
        (
            speedup(ratio=0.9, low=None, high=None, num_plain_rounds=1, note="only 1 plain round"),
            "speculation seems to have made this job slower: 0.90x of plain decoding at the same batch "
            "(only 1 plain round)",
        ),
        (speedup(ratio=None, note="speculation was off"), "no speed-up measured: speculation was off"),
    ],
)
def test_the_speedup_is_told_in_one_honest_sentence(measured: Speedup, sentence: str) -> None:
    assert describe_speedup(measured) == sentence


def test_human_report_of_one_output(outputs: list[tuple[str, Manifest]]) -> None:
    name, manifest = outputs[1]
    text = render([(name, manifest)], "human")
    flowing = " ".join(text.split())
    assert "20: 19 ok, 1 error (ROW_PROMPT_NULL 1)" in flowing
    assert "243 tokens/s" in flowing
    assert (
        "1.62x over plain decoding at the same batch (95 % interval 1.62 to 1.62, 20 plain rounds, prefill apart)"
        in flowing
    )
    assert "code-pair/draft-taught, 900 k parameters" in flowing
    assert f"{name}/data/*.parquet" in text
    positions = text.split("Accepted by draft position")[1].split("Drafts accepted in a round")[0]
    assert len([line for line in positions.splitlines() if "#" in line]) == 4
    assert len(manifest.commit.acceptance.by_position) == 4
    for phase in ("propose", "score", "accept", "host", "prefill", "load", "write"):
        assert f"\n    {phase}" in text
    memory = next(line for line in text.splitlines() if "21.6 MB" in line)
    assert memory.split() == ["0", "cpu", "21.6", "MB", "3.6", "MB", "4.2", "MB", "900", "kB", "640", "MB"]


def test_seconds_shares_add_up(outputs: list[tuple[str, Manifest]]) -> None:
    text = render(outputs[1:2], "human").split("Where the time went")[1].split("Lengths")[0]
    shares = [float(line.split("%")[0].split()[-1]) for line in text.splitlines() if "%" in line]
    assert len(shares) == 7
    assert sum(shares) == pytest.approx(100, abs=0.4)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_human_report_fits_80_columns_without_escapes(outputs: list[tuple[str, Manifest]], count: int) -> None:
    renamed = [(f"out/{'long-name-' * 6}{index}", manifest) for index, (_, manifest) in enumerate(outputs[:count])]
    text = render(renamed, "human")
    assert all(len(line) <= 80 or "long-name-" in line for line in text.splitlines())
    assert text.isascii()
    assert "\x1b" not in text
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_side_by_side_says_who_was_fastest_and_by_how_much(outputs: list[tuple[str, Manifest]]) -> None:
    text = render(outputs, "human")
    flowing = " ".join(text.split())
    assert (
        "Fastest: [2] taught with 243 tokens/s, 1.62 times the speed of [1] plain, "
        "2.28 times the speed of [3] stranger." in flowing
    )
    assert "Slower: [3] stranger reached 71 % of the throughput of [1] plain (flagged below 90 %)." in flowing
    assert "Same text by contract: S is equal in all of them." in flowing
    assert "speculation made this job slower: 0.71x" in flowing
    rows = [line.split() for line in text.splitlines() if line.startswith(" [")]
    assert [row[1:6] for row in rows[:3]] == [
        ["plain", "none", "off", "150", "1.00x"],
        ["taught", "draft-taught", "4", "243", "1.62x"],
        ["stranger", "draft-taught", "4", "106", "0.71x"],
    ]
    assert [row[-1] for row in rows[:3]] == ["-", "%", "slower"]


def test_a_small_lead_is_given_in_percent(outputs: list[tuple[str, Manifest]]) -> None:
    manifest = outputs[0][1]
    faster = manifest.observed.throughput.model_copy(update={"output_tokens_per_second": 154.5})
    text = render([("a", manifest), ("b", changed(manifest, throughput=faster))], "human")
    assert "Fastest: [2] b with 154 tokens/s, 3.0 % faster than [1] a." in text


def test_only_more_than_a_tenth_less_is_a_regression(outputs: list[tuple[str, Manifest]]) -> None:
    base = outputs[1][1]
    speeds = [150.0, 135.1, 134.9, 300.0]
    manifests = [
        changed(base, throughput=base.observed.throughput.model_copy(update={"output_tokens_per_second": speed}))
        for speed in speeds
    ]
    comparison = compare(manifests)
    assert comparison.regressions == (2,)
    assert comparison.fastest == 3
    assert comparison.ratios[3] == 2.0


def test_other_jobs_are_not_called_the_same(outputs: list[tuple[str, Manifest]], tmp_path: Path) -> None:
    warm = build(tmp_path / "warm", temperature=0.7)
    text = render([outputs[0], (str(warm.root), warm.manifest)], "human")
    assert "Not the same job: S differs in generation.temperature." in text
    assert "Same text" not in text


def test_caveats_name_what_makes_the_race_unfair(outputs: list[tuple[str, Manifest]]) -> None:
    base = outputs[0][1]
    other = changed(base, hardware={"cores": 64}, execution={**base.observed.execution, "workers": 4})
    tokens = base.commit.tokens.model_copy(update={"completion": 1})
    other = other.model_copy(update={"commit": base.commit.model_copy(update={"tokens": tokens})})
    caveats = compare([base, other]).caveats
    assert caveats == (
        "the identities are equal but the numbers of output tokens are not: compare the texts",
        "the hardware was not the same",
        "the number of workers was not the same (1, 4)",
    )
    assert all(
        f"Note: {caveat}." in " ".join(render([("a", base), ("b", other)], "human").split()) for caveat in caveats
    )


def test_json_schema_is_stable(outputs: list[tuple[str, Manifest]]) -> None:
    alone = json.loads(render(outputs[:1], "json"))
    assert alone["format"] == "specbatch/report/1"
    assert alone["comparison"] is None
    document = json.loads(render(outputs, "json"))
    assert list(document) == ["format", "outputs", "comparison"]
    assert list(document["outputs"][0]) == [
        "output",
        "job_id",
        "verdict",
        "identity",
        "models",
        "counts",
        "tokens",
        "near_ties",
        "acceptance",
        "seconds",
        "lengths",
        "num_parts",
        "parts_bytes",
        "error_rate",
        "cost_per_million_tokens",
        "throughput",
        "k_share",
        "speedup",
        "timeline",
        "execution",
        "hardware",
        "versions",
        "memory",
        "attempts",
        "restarts",
        "preemptions",
        "runs",
        "forecast",
        "cost",
        "history",
        "events",
        "deaths",
        "quarantined",
        "draft_given_up",
        "store_retries",
        "skipped_files",
        "command",
        "paths",
    ]
    assert document["comparison"]["fastest"] == outputs[1][0]
    assert document["comparison"]["regressions"] == [outputs[2][0]]
    assert document["comparison"]["same_text_by_contract"] is True
    assert document["comparison"]["tokens_per_second_ratios"] == pytest.approx([1.0, 1.62, 0.71])


def test_csv_has_one_row_per_output_below_a_fixed_header(outputs: list[tuple[str, Manifest]]) -> None:
    lines = list(csv.reader(io.StringIO(render(outputs, "csv"))))
    assert " ".join(lines[0]) == (
        "output job_id identity_S plan_P target draft speculation batch_size workers device rows results ok errors "
        "prompt_tokens completion_tokens draft_tokens accepted_tokens acceptance_rate mean_accepted mean_emitted "
        "near_ties wall_seconds total_seconds output_tokens_per_second rows_per_second idle_share "
        "tokens_per_second_vs_first speedup_baseline speedup_ratio speedup_low speedup_high num_plain_rounds "
        "num_spec_rounds propose_seconds score_seconds accept_seconds host_seconds prefill_seconds load_seconds "
        "write_seconds runs attempts restarts started_at ended_at verdict problems warnings error_rate deaths "
        "preemptions quarantined skipped_files draft_given_up cut_completions device_hours price_per_device_hour cost "
        "cost_per_million_tokens forecast_wall_seconds regressions "
        "standing exit_codes cause planned_rows rows_left remaining_seconds"
    )
    assert [len(line) for line in lines] == [len(lines[0])] * 4
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    assert [row["speculation"] for row in rows] == ["off", "4", "4"]
    assert [row["speedup_ratio"] for row in rows] == ["", "1.62083", "0.710417"]
    assert [row["tokens_per_second_vs_first"] for row in rows] == ["1", "1.62", "0.71"]
    assert rows[0]["acceptance_rate"] == ""


def test_csv_fields_are_no_formulas(outputs: list[tuple[str, Manifest]]) -> None:
    assert "\n'=cmd," in render([("=cmd", outputs[0][1])], "csv")


def test_markdown_escapes_what_would_break_the_table(outputs: list[tuple[str, Manifest]]) -> None:
    text = render([("a|b\n<x>", outputs[0][1]), outputs[1]], "markdown")
    table = [line for line in text.partition("\n- ")[0].splitlines() if line.startswith("|")]
    assert r"a\|b?\<x\>" in table[2]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "- Fastest: \\[2\\] taught" in text


@pytest.mark.parametrize("format", FORMATS)
def test_escapes_from_a_manifest_never_get_out(outputs: list[tuple[str, Manifest]], format: str) -> None:
    name, manifest = outputs[1]
    target = manifest.models.target.model_copy(update={"name": "evil\x1b[2J\u202e\r\n"})
    evil = manifest.model_copy(update={"models": manifest.models.model_copy(update={"target": target})})
    evil = changed(
        evil, hardware={"cpu\x1b": "x\x1b]0;"}, execution={"speculation": "\x1b[1m"}, memory=[{"worker": "\x1b"}]
    )
    text = render([(name, evil), (name, manifest)], format) + render([(name, evil)], format)
    assert "evil" in text
    assert "\x1b" not in text
    assert "\r" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("format", FORMATS)
def test_a_job_without_any_record_of_its_runs_still_has_a_report(tmp_path: Path, format: str) -> None:
    out = build(tmp_path / "out", errors=frozenset(range(20)))
    manifest = out.manifest.model_copy(update={"observed": build_observed([], out.manifest.commit)})
    assert "no rounds were recorded" in " ".join(render([("out", manifest)], format).split()) or format == "csv"
    assert render([("a", manifest), ("b", manifest)], format)


def test_an_interrupted_run_counts_the_seconds_of_its_last_tokens(tmp_path: Path) -> None:
    """Its last part came at 1 s, but it decoded for 10 s: 1,000 tokens in 10 s are 100 a second, not 1,000."""
    stats = PartStats(num_rows=10, num_results=10, num_ok=10, num_completion_tokens=1000)
    run = make_run(1, stats, k=0)
    cut = run.model_copy(update={"outcome": "interrupted", "wall_seconds": 1.0})
    commit = build(tmp_path / "out").manifest.commit
    assert build_observed([cut], commit).throughput.output_tokens_per_second == pytest.approx(100.0)


def test_load_says_what_is_missing(tmp_path: Path) -> None:
    build(tmp_path / "unfinished", num_parts=3)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/x").touch()
    expected = {
        "unfinished": (ErrorCode.JOB_INCOMPLETE, "18 of 20 rows (3 of 4 parts); specbatch resume "),
        "foreign": (ErrorCode.JOB_OUTPUT_MISSING, "no _specbatch/job.json"),
        "nowhere": (ErrorCode.JOB_OUTPUT_MISSING, "does not exist"),
    }
    for name, (code, words) in expected.items():
        with pytest.raises(SpecbatchError) as caught:
            load_manifest(str(tmp_path / name))
        assert caught.value.code is code
        assert words in caught.value.message
        assert "\n" not in caught.value.message
    with pytest.raises(SpecbatchError) as caught:
        load_manifest("gs://bucket/out")
    assert caught.value.code is ErrorCode.JOB_URI_INVALID


def test_an_unknown_format_is_refused(outputs: list[tuple[str, Manifest]]) -> None:
    with pytest.raises(SpecbatchError) as caught:
        render(outputs, "pdf")
    assert "human, json, markdown, csv, html" in caught.value.message


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0:00"), (31.4, "0:31"), (725, "12:05"), (11229, "3:07:09"), (100_000, "1 d 3:46:40"), (-5, "0:00")],
)
def test_clock(value: float, text: str) -> None:
    assert fmt.clock(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.52, "0.52 s"), (99.4, "99.4 s"), (100.0, "1:40"), (11229.0, "3:07:09")])
def test_duration(value: float, text: str) -> None:
    assert fmt.duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2026-11-23T22:00:00+00:00", "2026-11-23T22:00:00Z"),
        ("2026-11-24T00:00:00.5+02:00", "2026-11-23T22:00:00Z"),
        ("last\x1bnight", "last?night"),
    ],
)
def test_times_are_iso_in_utc(value: str, text: str) -> None:
    assert fmt.iso(value) == text


def test_a_share_that_is_not_nothing_is_not_shown_as_nothing() -> None:
    assert [fmt.percent(share) for share in (None, 0.0, 0.0001, 0.0006, 0.712)] == [
        "-",
        "0.0 %",
        "<0.1 %",
        "0.1 %",
        "71.2 %",
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (900_000, "900 kB"), (21_600_000, "21.6 MB"), (4.2e9, "4.2 GB")]
)
def test_size(value: float, text: str) -> None:
    assert fmt.size(value) == text
