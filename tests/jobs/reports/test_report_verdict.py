"""The verdict: what went wrong is said first, with its cause and what to do; a good night says that it was good."""

from __future__ import annotations

import pytest
from made_nights import bad_night, golden_night, night

from specbatch.jobs.reports.command import reproduce
from specbatch.jobs.reports.model import Finding, Verdict
from specbatch.jobs.reports.pace import find_stall
from specbatch.jobs.reports.report import render
from specbatch.jobs.reports.verdict import judge
from specbatch.schemas.manifest import Manifest


def titles(verdict: Verdict, level: str) -> list[str]:
    return [finding.title for finding in verdict.findings if finding.level == level]


def found(verdict: Verdict, start: str) -> Finding:
    (finding,) = [finding for finding in verdict.findings if finding.title.startswith(start)]
    return finding


@pytest.fixture(scope="module")
def bad() -> Verdict:
    return judge(bad_night())


def test_a_good_night_is_called_good() -> None:
    verdict = judge(night(forecast_hours=6.2))
    assert verdict == Verdict("good", "Complete: all 96,000 rows have a completion.", ())


def test_the_causes_of_a_bad_night_stand_first(bad: Verdict) -> None:
    assert bad.level == "problem"
    assert bad.headline == ("Complete, with 4,432 error rows in 96,000 (4.6 %). 3 problems and 10 warnings.")
    assert titles(bad, "problem") == [
        "ROW_TOO_LONG: 4,120 errors",
        "1 input file left out",
        "1 device taken out of service",
    ]
    assert titles(bad, "warning") == [
        "ROW_PROMPT_NULL: 310 errors",
        "ROW_POISON: 2 errors",
        "3 workers died, 2 started again",
        "It took 2 runs",
        "1.58 times the forecast",
        "Nothing was decoded for 28:30",
        "It slowed down to 47.0 % of its first pace",
        "2 workers were slow",
        "The draft did not pay and was given up",
        "Speculation made it slower: 0.90x",
    ]
    assert titles(bad, "note") == ["1 worker taken away"]


def test_each_cause_has_its_facts_and_its_remedy(bad: Verdict) -> None:
    too_long = found(bad, "ROW_TOO_LONG")
    assert too_long.detail.startswith("4.3 % of the results: the prompt leaves no room in the target's context")
    assert "`--truncate-prompt left`" in too_long.remedy
    left_out = found(bad, "1 input file")
    assert left_out.detail == (
        "day-17.parquet (JOB_INPUT_CORRUPT): a file is damaged, or not of the kind that its name says"
    )
    assert left_out.remedy.startswith("mend or replace what was left out")
    assert found(bad, "1 device").detail == "node-2/cuda failed again and again and got no more work"
    assert found(bad, "3 workers died").detail == (
        "2 x the process was killed or crashed (a signal, or out of memory); 1 x no sign of life for 121 s"
    )
    assert found(bad, "It took 2 runs").detail == "run 1 interrupted, run 2 complete"
    assert found(bad, "1.58 times").detail == "9:30:00 in 2 runs against 6:00:00 expected, 6:54:00 at most"
    assert "workers 4 to 2" in found(bad, "It slowed down").detail
    assert "31.0 % of its tokens were accepted" in found(bad, "The draft did not pay").detail


def test_the_cause_is_at_the_top_of_every_form() -> None:
    for format in ("human", "markdown", "html"):
        text = render([("out", bad_night())], format)
        text = text[text.find("<main>") + 1 :].replace("\\_", "_")
        assert 0 < text.find("ROW_TOO_LONG") < text.find("Time by phase")
        assert text.find("ROW_TOO_LONG") < 1500
    lines = render([("out", bad_night())], "human").splitlines()
    assert next(i for i, line in enumerate(lines) if "node-2/cuda" in line) < 20


def test_a_few_bad_rows_are_a_warning_and_many_a_problem() -> None:
    assert judge(night(errors={"ROW_ENCODING": 959})).level == "warning"
    assert judge(night(errors={"ROW_ENCODING": 960})).level == "problem"
    verdict = judge(night(errors={f"CODE_{i}": 2 for i in range(9)}))
    assert "6 errors with other codes" in titles(verdict, "warning")
    assert "does not know" in found(verdict, "CODE_0").detail


def test_a_job_within_its_forecast_is_no_news() -> None:
    assert judge(night(forecast_hours=5.5)).findings == ()
    assert titles(judge(night(forecast_hours=5.0)), "warning") == ["1.20 times the forecast"]


def test_an_old_manifest_has_a_verdict() -> None:
    verdict = judge(golden_night())
    assert verdict.headline.startswith("Complete, with 4 error results in 40 (10.0 %). 1 problem")
    assert verdict.level == "problem"


def buckets(speeds: list[float]) -> list[dict[str, float]]:
    return [{"seconds": 10.0 * (i + 1), "tokens_per_second": speed} for i, speed in enumerate(speeds)]


def test_a_pause_is_not_the_tail_and_not_a_breath() -> None:
    assert find_stall(buckets([100.0] * 50)) == (0.0, 0.0)
    assert find_stall(buckets([100.0] * 45 + [1.0] * 5)) == (0.0, 0.0)
    assert find_stall(buckets([100.0] * 30 + [0.0] + [100.0] * 20)) == (0.0, 0.0)
    assert find_stall(buckets([100.0] * 30 + [0.0] * 3 + [100.0] * 20)) == (30.0, 300.0)
    assert find_stall(buckets([100.0] * 5 + [0.0] * 5)) == (0.0, 0.0)
    assert find_stall([]) == (0.0, 0.0)


def with_spec(manifest: Manifest, **sections: dict[str, object]) -> Manifest:
    spec = manifest.spec
    assert spec is not None
    changed = {name: {**spec[name], **values} for name, values in sections.items()}
    return manifest.model_copy(update={"spec": {**spec, **changed}})


def test_the_command_to_run_it_again_has_every_setting_that_was_given() -> None:
    manifest = with_spec(
        night(),
        input={"datasets": ["a b.parquet", "s3://bucket/x/"], "row_params": True, "template": "{{ x }}" * 40},
        generation={"max_new_tokens": 64, "temperature": 0.7, "stop": ["\n\n", "END"], "logit_bias": [[13, -100.0]]},
        execution={"speculation": 4, "price_per_device_hour": 2.5},
    )
    command, note = reproduce(manifest, "out")
    assert command == (
        "specbatch submit 'a b.parquet' s3://bucket/x/ --output NEW --template @template.txt --row-params "
        "--max-new-tokens 64 --temperature 0.7 --logit-bias 13:-100.0 --stop $'\\x0a\\x0a' --stop END --speculation 4 "
        "--price-per-device-hour 2.5"
    )
    assert note.startswith("template.txt holds the template of 280 characters; S is the same while")


def test_the_command_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Every option in it exists: the command line takes it as far as the dataset, which is not there."""
    import shlex

    from specbatch.jobs.cli import app as cli

    manifest = with_spec(
        night(), generation={"temperature": 0.7, "logprobs": True}, execution={"row_errors_ok": True, "workers": 2}
    )
    words = shlex.split(reproduce(with_spec(manifest, input={"datasets": ["no-such-file.parquet"]}), "out")[0])
    assert cli.run([*words[1:], "--dry-run"]) == 2
    assert "JOB_INPUT_MISSING" in capsys.readouterr().err


def test_an_old_manifest_names_the_file_with_the_settings() -> None:
    assert reproduce(golden_night(), "out/") == ("", "the settings stand in out/_specbatch/job.json")


def with_observed(manifest: Manifest, **changes: object) -> Manifest:
    return manifest.model_copy(update={"observed": manifest.observed.model_copy(update=changes)})


def test_a_job_of_no_rows_is_not_said_to_have_completions() -> None:
    base = night()
    none = base.commit.counts.model_copy(update={"rows": 0, "results": 0, "ok": 0})
    empty = base.model_copy(update={"commit": base.commit.model_copy(update={"counts": none})})
    assert judge(empty).headline == "Complete: the dataset has no rows."


def test_one_slow_worker_is_named() -> None:
    workers = [dict(item) for item in night().observed.throughput.per_worker]
    workers[2]["tokens_per_active_second"] *= 0.4
    throughput = night().observed.throughput.model_copy(update={"per_worker": workers})
    finding = found(judge(with_observed(night(), throughput=throughput)), "One worker was slow")
    assert "worker 1.2 on node-1" in finding.detail
    for seconds, others in ((30.0, 20_000.0), (50.0, 50.0)):  # it had hardly begun, or all of them had
        for item in workers:
            item["active_seconds"] = others
        workers[2]["active_seconds"] = seconds
        assert judge(with_observed(night(), throughput=throughput)).findings == ()


def test_a_draft_that_lost_touch_is_told_by_its_acceptance() -> None:
    timeline = [dict(bucket) for bucket in night().observed.timeline]
    for bucket in timeline[len(timeline) // 2 :]:
        bucket["acceptance"] = 0.2
    finding = found(judge(with_observed(night(), timeline=timeline)), "Acceptance fell from 7")
    assert finding.title.endswith("to 20.0 %")


def test_other_machines_and_a_bad_store_are_told() -> None:
    base = night(interrupted_after=0.4)
    assert titles(judge(base), "note") == []
    for key, value, level in (("host", "elsewhere", "note"), ("device", "cpu", "warning")):
        workers = [{**item, key: value} if item["epoch"] == 2 else item for item in base.observed.throughput.per_worker]
        moved = base.observed.throughput.model_copy(update={"per_worker": workers})
        assert any(
            title.startswith("Run 2 was on ") for title in titles(judge(with_observed(base, throughput=moved)), level)
        )
    assert "store was asked again 40 times" in " ".join(titles(judge(with_observed(base, store_retries=40)), "warning"))
    seconds = base.commit.seconds.model_copy(update={"write": 1e9})
    slow = base.model_copy(update={"commit": base.commit.model_copy(update={"seconds": seconds})})
    assert any("writing parts took" in title for title in titles(judge(slow), "warning"))


def test_many_deaths_are_a_problem() -> None:
    assert titles(judge(night(crashes=7, restarts=7)), "problem") == []
    assert titles(judge(night(crashes=8, restarts=8)), "problem") == ["8 workers died, 8 started again"]


def test_the_forecast_of_a_resumed_job_says_that_all_runs_count() -> None:
    text = render([("out", night(forecast_hours=5.0, interrupted_after=0.4))], "human")
    assert "of 2 runs: starts, and rows that were decoded twice, count in all of them" in " ".join(text.split())
    assert "output tokens" in text.split("Forecast and actual")[1].split("\n\n")[0]
