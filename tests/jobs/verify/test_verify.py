"""``verify`` finds each single lie in an output, and finds nothing in an honest one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_output import Output, build, edit_manifest, rewrite_part

from specbatch.jobs.verify.verify import render_verify, verify_output
from specbatch.schemas.errors import ErrorCode, SpecbatchError, VerifyExit
from specbatch.schemas.plan import Segment, Shard
from specbatch.storage.planfile import encode_plan


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return build(tmp_path / "out")


@pytest.mark.parametrize("k", [0, 1, 4])
def test_an_honest_output_is_sound(tmp_path: Path, k: int) -> None:
    out = build(tmp_path / "out", k=k)
    report = verify_output(str(out.root))
    assert report.problems == ()
    assert (report.state, report.exit_code) == ("sound", VerifyExit.SOUND)
    assert report.checked == {
        "parts": 4,
        "parts_planned": 4,
        "rows": 20,
        "rows_planned": 20,
        "results": 20,
        "ok": 19,
        "errors": 1,
        "completion_tokens": out.manifest.commit.tokens.completion,
        "bytes": sum(part.record.bytes for part in out.parts),
        "amendments": 0,
    }
    assert "every input row is there exactly once" in render_verify(report)


@pytest.mark.parametrize("logprobs", [False, True])
def test_samples_are_rows_of_their_own(tmp_path: Path, logprobs: bool) -> None:
    out = build(tmp_path / "out", num_samples=3, logprobs=logprobs)
    report = verify_output(str(out.root))
    assert report.problems == ()
    counts = out.manifest.commit.counts
    assert (counts.rows, counts.results, counts.ok, counts.errors) == (20, 60, 57, 3)
    assert {name: report.checked[name] for name in ("rows", "results", "ok", "errors")} == {
        "rows": 20,
        "results": 60,
        "ok": 57,
        "errors": 3,
    }
    assert "60 results: 57 ok, 3 errors" in render_verify(report)
    assert "exactly once with all its samples" in render_verify(report)


def test_rows_are_named_across_batches_of_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that ends in the middle of a row's samples."""
    monkeypatch.setattr("specbatch.jobs.verify.rows._BATCH_ROWS", 4)
    out = build(tmp_path / "out", num_samples=3)
    assert verify_output(str(out.root)).problems == ()
    edit_column(out, "row_seed", put(10, 1))
    (problem,) = verify_output(str(out.root)).problems
    assert "row_seed does not follow" in problem
    assert "(row 9)" in problem, "the eleventh result of the part that begins with row 6"


SAMPLE_LIES: dict[str, tuple[Callable[[Output], None], str]] = {
    "a sample twice": (lambda o: edit_column(o, "sample_index", put(1, 0)), "sample_index is not the planned one"),
    "samples swapped": (lambda o: edit_column(o, "row_seed", swap), "row_seed does not follow"),
    "a sample too few": (lambda o: take_rows(o, *range(17)), "holds 17 rows; 18 are planned"),
    "logprobs too few": (lambda o: edit_column(o, "logprobs", put(0, [])), "logprobs are not one for each token"),
    "no logprobs": (lambda o: edit_column(o, "logprobs", put(0, None)), "an ok row without logprobs"),
    "error with logprobs": (lambda o: edit_column(o, "logprobs", put(9, [-1.0]), 0), "an error row with logprobs"),
    "unlikely likelihood": (lambda o: edit_column(o, "logprobs", raise_first), "a logprob above 0"),
    "no number": (lambda o: edit_column(o, "logprobs", spoil_first), "a logprob above 0"),
    "column missing": (lambda o: drop_column(o, "logprobs"), "has 0 columns logprobs"),
}


def raise_first(values: list[Any]) -> None:
    values[0][0] = 0.5


def spoil_first(values: list[Any]) -> None:
    values[0][0] = float("nan")


def drop_column(output: Output, name: str) -> None:
    rewrite_part(output, 1, pq.read_table(output.part_path(1)).drop_columns([name]))


@pytest.mark.parametrize("name", SAMPLE_LIES)
def test_every_lie_about_samples_and_logprobs_is_caught(tmp_path: Path, name: str) -> None:
    out = build(tmp_path / "out", num_samples=3, logprobs=True)
    lie, expected = SAMPLE_LIES[name]
    lie(out)
    report = verify_output(str(out.root))
    assert report.state == "not sound"
    assert any(expected in problem for problem in report.problems), report.problems


def test_logprobs_that_nobody_asked_for(tmp_path: Path) -> None:
    out = build(tmp_path / "out")
    table = pq.read_table(out.part_path(1))
    rewrite_part(out, 1, table.append_column("logprobs", pa.nulls(table.num_rows, pa.list_(pa.float32()))))
    assert "did not ask for" in " ".join(verify_output(str(out.root)).problems)


def test_an_output_of_errors_only_is_sound(tmp_path: Path) -> None:
    out = build(tmp_path / "out", errors=frozenset(range(20)))
    assert verify_output(str(out.root)).problems == ()


def test_an_output_in_the_making_is_incomplete(tmp_path: Path) -> None:
    out = build(tmp_path / "out", num_parts=2)
    report = verify_output(str(out.root))
    assert (report.state, report.exit_code) == ("incomplete", VerifyExit.INCOMPLETE)
    assert "2 of 4 parts exist" in report.problems[0]
    assert "`specbatch resume` finishes the job" in render_verify(report)


def test_a_manifest_without_success_is_incomplete(output: Output) -> None:
    (output.root / "_SUCCESS").unlink()
    report = verify_output(str(output.root))
    assert report.state == "incomplete"
    assert "_SUCCESS is not" in report.problems[0]


def test_what_is_unsound_stays_unsound_before_the_manifest(tmp_path: Path) -> None:
    out = build(tmp_path / "out", num_parts=2)
    flip_byte(out)
    assert verify_output(str(out.root)).state == "not sound"


# --- one lie each: the name says which, the text is what the verdict must name ---------------------------------


def edit_column(output: Output, column: str, change: Callable[[list[Any]], None], shard: int = 1) -> None:
    """Changes one column of one part and gives it a fitting digest in the manifest: only its rows can give it away."""
    table = pq.read_table(output.part_path(shard))
    values = table.column(column).to_pylist()
    change(values)
    index = table.schema.get_field_index(column)
    field = table.schema.field(index)
    rewrite_part(output, shard, table.set_column(index, field, pa.array(values, field.type)))


def edit_footer(output: Output, change: Callable[[dict[str, Any]], None]) -> None:
    path = output.part_path(1)
    footer = json.loads(pq.read_metadata(path).metadata[b"specbatch"])
    change(footer)
    rewrite_part(output, 1, pq.read_table(path), footer)


def put(index: int, value: Any) -> Callable[[list[Any]], None]:
    def change(values: list[Any]) -> None:
        values[index] = value

    return change


def swap(values: list[Any]) -> None:
    values[0], values[1] = values[1], values[0]


def flip_byte(output: Output) -> None:
    path = output.part_path(1)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def swap_parts(output: Output) -> None:
    first, second = output.part_path(0), output.part_path(1)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def take_rows(output: Output, *rows: int) -> None:
    rewrite_part(output, 1, pq.read_table(output.part_path(1)).take(list(rows)))


def edit_job(output: Output, change: Callable[[dict[str, Any]], None]) -> None:
    path = output.root / "_specbatch/job.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def edit_plan(output: Output, change: Callable[[list[Shard]], None]) -> None:
    shards = list(output.shards)
    change(shards)
    output.plan_path.write_bytes(encode_plan(shards))


def recut(shards: list[Shard]) -> None:
    """Moves the border between the last two shards by one row; the rows are still 0..N-1."""
    before, last = shards[-2].segments[-1], shards[-1].segments[0]
    moved = Segment(before.path, 1000, before.footer_sha256, before.row_start, before.row_stop - 1, before.first_row_id)
    begun = Segment(last.path, 1000, last.footer_sha256, last.row_start - 1, last.row_stop, last.first_row_id - 1)
    shards[-2] = Shard(shards[-2].index, (*shards[-2].segments[:-1], moved))
    shards[-1] = Shard(shards[-1].index, (begun, *shards[-1].segments[1:]))


def replace_by_link(output: Output, path: Path) -> None:
    elsewhere = output.root.parent / f"elsewhere-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def replace_by_pipe(output: Output) -> None:
    output.part_path(1).unlink()
    os.mkfifo(output.part_path(1))


def store_extension(output: Output) -> None:
    table = pq.read_table(output.part_path(1))
    field = pa.field("x", pa.int64(), metadata={"ARROW:extension:name": "arrow.bool8", "ARROW:extension:metadata": ""})
    rewrite_part(output, 1, table.append_column(field, pa.array([0] * table.num_rows)))


LIES: dict[str, tuple[Callable[[Output], object], str]] = {
    "flipped byte": (flip_byte, "sha256"),
    "part cut short": (lambda o: o.part_path(1).write_bytes(o.part_path(1).read_bytes()[:-9]), "not a whole Parquet"),
    "empty part": (lambda o: o.part_path(1).write_bytes(b""), "not a whole Parquet"),
    "missing part": (lambda o: o.part_path(2).unlink(), "is missing"),
    "extra part": (
        lambda o: shutil.copy(o.part_path(0), o.root / "data/part-000009-0123456789abcdef.parquet"),
        "not part of this job",
    ),
    "foreign folder": (lambda o: (o.root / "data/more").mkdir(), "not part of this job"),
    "parts swapped": (swap_parts, "row_id is not the planned one"),
    "part is a link": (lambda o: replace_by_link(o, o.part_path(1)), "is a symbolic link"),
    "data is a link": (lambda o: replace_by_link(o, o.root / "data"), "is a symbolic link"),
    "part is a pipe": (replace_by_pipe, "not a regular file"),
    "manifest is a link": (lambda o: replace_by_link(o, o.root / "manifest.json"), "is a symbolic link"),
    "rows swapped": (lambda o: take_rows(o, 1, 0, 2, 3, 4, 5), "row_id is not the planned one (2 rows"),
    "row twice": (lambda o: take_rows(o, 0, 0, 2, 3, 4, 5), "row_id is not the planned one (row 7)"),
    "row too few": (lambda o: take_rows(o, 0, 1, 2, 3, 4), "holds 5 rows; 6 are planned"),
    "row too many": (lambda o: take_rows(o, 0, 1, 2, 3, 4, 5, 5), "holds 7 rows; 6 are planned"),
    "texts under other ids": (lambda o: edit_column(o, "completion_token_ids", swap), "not the number of token ids"),
    "sample index": (lambda o: edit_column(o, "sample_index", put(0, 1)), "sample_index is not the planned one"),
    "row seeds swapped": (lambda o: edit_column(o, "row_seed", swap), "row_seed does not follow"),
    "unknown status": (lambda o: edit_column(o, "status", put(0, "maybe")), "neither ok nor error"),
    "error made ok": (lambda o: edit_column(o, "status", put(3, "ok"), shard=0), "an ok row without completion"),
    "ok made error": (lambda o: edit_column(o, "status", put(0, "error")), "an error row with completion"),
    "no error code": (lambda o: edit_column(o, "error_code", put(3, None), shard=0), "an error row without error code"),
    "ok with error code": (lambda o: edit_column(o, "error_code", put(0, "ROW_X")), "an ok row with an error"),
    "other error code": (lambda o: edit_column(o, "error_code", put(3, "ROW_X"), shard=0), "says errors_by_code"),
    "completion gone": (lambda o: edit_column(o, "completion", put(2, None)), "an ok row without completion"),
    "finish reason": (lambda o: edit_column(o, "finish_reason", put(2, "error")), "neither stopped nor"),
    "finish reason of an error": (
        lambda o: edit_column(o, "finish_reason", put(3, "stop"), shard=0),
        "an error row whose finish_reason is not error",
    ),
    "token count": (lambda o: edit_column(o, "num_completion_tokens", put(2, 1)), "not the number of token ids"),
    "prompt tokens": (lambda o: edit_column(o, "num_prompt_tokens", put(2, 999)), "says num_prompt_tokens"),
    "negative count": (lambda o: edit_column(o, "num_prompt_tokens", put(2, -1)), "a negative count"),
    "negative token": (
        lambda o: edit_column(o, "completion_token_ids", lambda v: put(0, -1)(v[2])),
        "a negative count",
    ),
    "acceptance histogram": (
        lambda o: edit_column(o, "acceptance_histogram", lambda v: v[1].__setitem__(1, v[1][1] + 1)),
        "acceptance_histogram does not sum",
    ),
    "acceptance moved": (
        lambda o: edit_column(o, "acceptance_histogram", lambda v: [h.reverse() for h in v]),
        "acceptance_histogram does not give",
    ),
    "draft histogram": (
        lambda o: edit_column(o, "draft_length_histogram", lambda v: v[1].__setitem__(2, v[1][2] + 1)),
        "draft_length_histogram does not sum",
    ),
    "accepted tokens": (lambda o: edit_column(o, "num_accepted_draft_tokens", put(1, 99)), "more drafts accepted"),
    "plain steps": (lambda o: edit_column(o, "num_plain_steps", put(1, 9)), "do not give num_completion_tokens"),
    "error with counters": (
        lambda o: edit_column(o, "num_plain_steps", put(3, 1), shard=0),
        "an error row with counters",
    ),
    "column missing": (
        lambda o: rewrite_part(o, 1, pq.read_table(o.part_path(1)).drop_columns(["row_seed"])),
        "has 0 columns row_seed",
    ),
    "column twice": (
        lambda o: rewrite_part(o, 1, pq.read_table(o.part_path(1)).rename_columns({"tag": "row_id"})),
        "has 2 columns row_id",
    ),
    "column type": (
        lambda o: rewrite_part(
            o, 1, pq.read_table(o.part_path(1)).set_column(2, "row_id", pa.array(["6", "7", "8", "9", "10", "11"]))
        ),
        "column row_id has type",
    ),
    "extension type": (store_extension, "extension type"),
    "footer of another plan": (lambda o: edit_footer(o, lambda f: f.update(plan="0" * 16)), "the footer says plan"),
    "footer of another shard": (lambda o: edit_footer(o, lambda f: f.update(shard=2)), "the footer says shard"),
    "footer tokens": (
        lambda o: edit_footer(o, lambda f: f["stats"].update(num_completion_tokens=1)),
        "says num_completion_tokens 1",
    ),
    "footer without stats": (lambda o: edit_footer(o, lambda f: f.pop("stats")), "has no statistics"),
    "footer near ties": (
        lambda o: edit_footer(o, lambda f: f["stats"].update(num_near_ties=-1)),
        "number of near ties",
    ),
    "footer seconds": (lambda o: edit_footer(o, lambda f: f["stats"]["seconds"].update(score=-1.0)), "no durations"),
    "manifest edited": (
        lambda o: (o.root / "manifest.json").write_bytes((o.root / "manifest.json").read_bytes().replace(b"  ", b" ")),
        "_SUCCESS is not the digest",
    ),
    "manifest rows": (lambda o: edit_manifest(o, counts={"rows": 21}), "commit.counts.rows is 21"),
    "manifest ok": (lambda o: edit_manifest(o, counts={"ok": 20, "errors": 0}), "commit.counts.ok is 20"),
    "manifest error codes": (
        lambda o: edit_manifest(o, counts={"errors_by_code": {"ROW_X": 1}}),
        "commit.counts.errors_by_code",
    ),
    "manifest tokens": (lambda o: edit_manifest(o, tokens={"completion": 1}), "commit.tokens.completion is 1"),
    "manifest near ties": (lambda o: edit_manifest(o, near_ties=0), "commit.near_ties is 0"),
    "manifest acceptance": (lambda o: edit_manifest(o, acceptance={"rate": 0.99}), "commit.acceptance.rate is 0.99"),
    "manifest positions": (lambda o: edit_manifest(o, acceptance={"by_position": [1.0]}), "acceptance.by_position"),
    "manifest seconds": (lambda o: edit_manifest(o, seconds={"score": 0.1}), "commit.seconds.score"),
    "manifest parts": (lambda o: edit_manifest(o, parts=[]), "not the planned ones"),
    "manifest part rows": (
        lambda o: edit_manifest(o, parts=[{**p.record.model_dump(), "rows": 5} for p in o.parts]),
        "rows is 6, the manifest says otherwise",
    ),
    "manifest job": (lambda o: edit_manifest(o, commit=False, job_id="other"), "job_id is not that of job.json"),
    "manifest target": (
        lambda o: edit_manifest(o, commit=False, models={"target": {"files": {"config.json": "0" * 64}}}),
        "the target's files are not those",
    ),
    "manifest format": (lambda o: edit_manifest(o, commit=False, format="specbatch/manifest/9"), "has format"),
    "manifest not JSON": (lambda o: (o.root / "manifest.json").write_text("{"), "manifest.json is not valid JSON"),
    "manifest NaN": (lambda o: (o.root / "manifest.json").write_text('{"a": NaN}'), "manifest.json is not valid JSON"),
    "manifest key twice": (lambda o: (o.root / "manifest.json").write_text('{"a": 1, "a": 2}'), "not valid JSON"),
    "manifest too deep": (lambda o: (o.root / "manifest.json").write_text("[" * 100_000), "not valid JSON"),
    "success edited": (lambda o: (o.root / "_SUCCESS").write_text("0" * 64), "_SUCCESS is not the digest"),
    "success without manifest": (lambda o: (o.root / "manifest.json").unlink(), "_SUCCESS exists without a manifest"),
    "job fields": (
        lambda o: edit_job(o, lambda j: j["identity"]["fields"]["generation"].update(seed=8)),
        "S is not the digest",
    ),
    "job seed": (lambda o: edit_job(o, lambda j: j["identity"]["fields"].pop("generation")), "names no seed"),
    "job inputs": (
        lambda o: edit_job(o, lambda j: j["identity"]["fields"].update(inputs=[[1]])),
        "are not (name, bytes",
    ),
    "job P": (
        lambda o: edit_job(o, lambda j: j["identity"].update(P="0" * 16)),
        "plan-0000000000000000.parquet is missing",
    ),
    "job P with a path": (lambda o: edit_job(o, lambda j: j["identity"].update(P="../../secret")), "has no identity"),
    "job gone": (lambda o: (o.root / "_specbatch/job.json").unlink(), "job.json is missing"),
    "plan gone": (lambda o: o.plan_path.unlink(), "is missing"),
    "plan recut": (lambda o: edit_plan(o, recut), "P is not the digest"),
    "plan too short": (lambda o: edit_plan(o, lambda shards: shards.pop()), "P is not the digest"),
}


@pytest.mark.parametrize("lie", LIES)
def test_every_lie_is_caught(output: Output, lie: str) -> None:
    tell, words = LIES[lie]
    tell(output)
    report = verify_output(str(output.root))
    assert (report.state, report.exit_code) == ("not sound", VerifyExit.NOT_SOUND)
    assert any(words in problem for problem in report.problems), report.problems
    assert str(output.root.parent) not in " ".join(report.problems)
    assert "not sound" in render_verify(report)


def test_a_plan_that_leaves_out_an_input_is_not_sound(output: Output) -> None:
    """Even with S and P made to fit: the pinned inputs are in the identity."""
    from specbatch.schemas.canonical import canonical_json, sha256_hex
    from specbatch.schemas.plan import plan_digest

    def forge(job: dict[str, Any]) -> None:
        fields = job["identity"]["fields"]
        fields["inputs"].append(["third.parquet", 10, "d" * 64, 5])
        job["identity"]["S"] = sha256_hex(canonical_json(fields))
        job["identity"]["P"] = plan_digest(job["identity"]["S"], output.shards)
        (output.root / f"_specbatch/plan-{job['identity']['P']}.parquet").write_bytes(encode_plan(output.shards))

    edit_job(output, forge)
    problems = verify_output(str(output.root)).problems
    assert any("not every row of the pinned inputs" in problem for problem in problems)
    assert not any("is not the digest of its fields" in problem for problem in problems)


def test_a_limit_cuts_the_pinned_inputs(tmp_path: Path) -> None:
    from specbatch.jobs.verify.plan import _check_inputs, _Segment

    segments = [_Segment(0, 0, "a", 0, 10, 0), _Segment(1, 0, "b", 0, 3, 10)]
    fields = {"inputs": [["x", 1, "a", 10], ["y", 1, "b", 10]], "output": {"limit": 13}}
    problems: list[str] = []
    _check_inputs(segments, fields, "plan", problems)
    assert problems == []
    _check_inputs(segments, {**fields, "output": {"limit": None}}, "plan", problems)
    assert len(problems) == 1


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_no_output_is_a_usage_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecbatchError) as caught:
        verify_output(str(tmp_path / name))
    assert caught.value.code is ErrorCode.JOB_OUTPUT_MISSING
    assert "\n" not in str(caught.value)


def test_another_scheme_is_refused() -> None:
    with pytest.raises(SpecbatchError) as caught:
        verify_output("gs://bucket/key")
    assert caught.value.code is ErrorCode.JOB_URI_INVALID


def test_file_names_cannot_reach_the_terminal_as_escapes(output: Output) -> None:
    (output.root / "data/\x1b[2Jevil").touch()
    text = render_verify(verify_output(str(output.root)))
    assert "\x1b" not in text
    assert "evil" in text


def test_many_problems_are_cut(output: Output) -> None:
    for number in range(1200):
        (output.root / f"data/foreign-{number}").touch()
    report = verify_output(str(output.root))
    assert len(report.problems) == 1001
    assert len(render_verify(report).splitlines()) < 30


def test_two_hundred_thousand_rows_are_checked_sooner_than_made_into_objects(output: Output) -> None:
    """Rows are checked in batches, without a Python object for each, which is five times as slow."""
    import io
    import time

    from specbatch.jobs.verify.plan import PlannedShard
    from specbatch.jobs.verify.rows import check_part
    from specbatch.jobs.verify.rules import PartRules
    from specbatch.jobs.verify.seeds import SeedRules

    table = pq.read_table(output.part_path(1))
    num_rows = 200_000
    big = table.take(np.arange(num_rows) % table.num_rows)
    big = big.set_column(big.schema.get_field_index("row_id"), table.schema.field("row_id"), pa.array(range(num_rows)))
    data = io.BytesIO()
    with pq.ParquetWriter(data, big.schema) as writer:
        writer.write_table(big)
        writer.add_key_value_metadata({"specbatch": pq.read_metadata(output.part_path(1)).metadata[b"specbatch"]})
    problems: list[str] = []
    started = time.process_time()
    rules = PartRules(output.job.identity.P, SeedRules(job_seed=7))
    totals = check_part(data.getvalue(), PlannedShard(1, "part", 0, num_rows), rules, problems)
    assert totals.num_rows == num_rows
    assert any("row_seed" in problem for problem in problems)
    checked = time.process_time()
    big.slice(0, num_rows // 20).to_pylist()
    assert checked - started < 20 * (time.process_time() - checked)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, specbatch.jobs.verify.verify, specbatch.jobs.reports.report, specbatch.jobs.watching.status;"
        "import specbatch.jobs.display.progress;"
        "print([m for m in ('torch', 'ray', 'transformers', 'pyarrow', 'numpy', 'rich', 'typer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_verify_itself_imports_neither_torch_nor_ray(output: Output) -> None:
    code = (
        "import sys; from specbatch.jobs.verify.verify import verify_output;"
        f"assert verify_output({str(output.root)!r}).state == 'sound';"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'ray', 'transformers')"
        " or m.startswith('specbatch.storage')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_arrow_reads_memory_and_starts_no_thread_that_could_abort_the_exit(output: Output) -> None:
    """Given a Python file, Arrow reads it on a thread, which aborts the process when the interpreter ends before it."""
    code = (
        "import os, pyarrow.parquet, pyarrow.compute; from specbatch.jobs.verify.verify import verify_output;"
        "before = len(os.listdir('/proc/self/task'));"
        f"assert verify_output({str(output.root)!r}).state == 'sound';"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
