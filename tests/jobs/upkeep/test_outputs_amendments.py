"""``retry-failed``: the failed results and no others are decoded again, in a child; the parent stays as it is."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_output import NUM_ROWS, begin, finish, write_parts

from specbatch import load
from specbatch.jobs.cli import app as cli
from specbatch.jobs.output.amended import amended_counts, read_amendments
from specbatch.jobs.output.ledger import Ledger, StoredJob
from specbatch.jobs.planning.planning import cut_shards
from specbatch.jobs.spec.settings import Layer
from specbatch.jobs.upkeep.amendments import Retry, plan_retry, prepare_retry
from specbatch.jobs.upkeep.resume import StoredOutput, free_layer, open_output, prepare_resume
from specbatch.jobs.watching.status import read_status
from specbatch.schemas.canonical import sha256_hex
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import InputFile, Shard
from specbatch.schemas.seeds import row_seed
from specbatch.storage.store import open_store
from specbatch.workers.shards import planned_samples

NOTHING = Layer({}, {})
FAILED = {(3, 0): "ROW_MEMORY", (4, 0): "ROW_MEMORY", (11, 0): "ROW_POISON"}


def retry(uri: str, **arguments: object) -> tuple[Retry | None, list[str]]:
    lines: list[str] = []
    return prepare_retry(uri, NOTHING, say=lines.append, **arguments), lines  # type: ignore[arg-type]


def planned(shards: tuple[Shard, ...], num_samples: int) -> list[tuple[int, int]]:
    return [pair for shard in shards for pair in planned_samples(shard, num_samples)]


def child(found: Retry | None) -> StoredOutput:
    assert found is not None
    return open_output(found.prepared.output)


def files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "amendments" not in path.parts and "tmp" not in path.parts
    }


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    num_samples=st.integers(1, 3),
    shard_rows=st.integers(1, 9),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_a_plan_holds_exactly_the_failed_results(
    sizes: list[int], num_samples: int, shard_rows: int, share: float, seed: int
) -> None:
    inputs = [InputFile(f"{n}", f"/d/{n}", 100, sha256_hex(bytes([n])), (size,)) for n, size in enumerate(sizes)]
    parent = cut_shards(inputs, 7)
    rng = random.Random(seed)
    failed = {pair for pair in planned(parent, num_samples) if rng.random() < share}
    shards = plan_retry(parent, failed, num_samples=num_samples, shard_rows=shard_rows)
    assert planned(shards, num_samples) == sorted(failed)
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert all(shard.num_rows <= shard_rows for shard in shards)
    places = {
        row: (segment.path, segment.row_start + row - segment.first_row_id)
        for shard in parent
        for segment in shard.segments
        for row in range(segment.first_row_id, segment.first_row_id + segment.num_rows)
    }
    for shard in shards:
        for segment in shard.segments:
            for offset in range(segment.num_rows):
                assert places[segment.first_row_id + offset] == (segment.path, segment.row_start + offset)


def test_an_amendment_is_a_whole_job_of_the_failed_results(tmp_path: Path) -> None:
    output = begin(tmp_path)
    finish(output, FAILED)
    before = files(tmp_path / "out")
    found, lines = retry(output.uri)
    assert found is not None
    assert lines == ["amendment 1 decodes 3 failed results again (ROW_MEMORY 2, ROW_POISON 1)"]
    assert found.prepared.output == f"{output.uri}/amendments/1"
    stored = child(found).stored
    assert planned(stored.shards, 1) == sorted(FAILED)
    assert (stored.document.identity, stored.shards) == (found.prepared.identity, found.prepared.shards)
    fields = stored.document.identity.fields
    assert fields["amends"] == {
        "manifest": sha256_hex(output.store.read("manifest.json")),
        "amendments": [],
        "codes": {"ROW_MEMORY": 2, "ROW_POISON": 1},
    }
    assert {**output.stored.document.identity.fields, "amends": fields["amends"]} == fields
    assert found.prepared.spec.generation == prepare_resume(output.uri, NOTHING).spec.generation, "the same row seeds"
    assert found.prepared.spec.execution.max_error_rate == 1.0, "all of them failed before"
    assert files(tmp_path / "out") == before


def test_chosen_codes_only(tmp_path: Path) -> None:
    output = begin(tmp_path)
    finish(output, FAILED)
    found, _ = retry(output.uri, codes=["ROW_POISON"])
    assert planned(child(found).stored.shards, 1) == [(11, 0)]


def test_nothing_to_retry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = begin(tmp_path)
    finish(output, FAILED)
    assert retry(output.uri, codes=["ROW_ENCODING"]) == (
        None,
        [f"{output.uri}: nothing failed with ROW_ENCODING; the failed results are ROW_MEMORY 2, ROW_POISON 1"],
    )
    (tmp_path / "second").mkdir()
    clean = begin(tmp_path / "second")
    finish(clean)
    assert cli.run(["retry-failed", clean.uri]) == 0
    assert "nothing failed" in capsys.readouterr().err
    assert not (tmp_path / "second/out/amendments").exists()


def test_single_samples_of_a_row(tmp_path: Path) -> None:
    output = begin(tmp_path, num_samples=3)
    failed = {(2, 1): "ROW_MEMORY", (5, 0): "ROW_MEMORY", (5, 1): "ROW_MEMORY", (5, 2): "ROW_MEMORY"}
    finish(output, failed)
    found, _ = retry(output.uri)
    amendment = child(found)
    assert [segment.samples for shard in amendment.stored.shards for segment in shard.segments] == [(1,), None]
    finish(amendment)
    seeds = pq.read_table(tmp_path / "out/amendments/1/data").select(["row_id", "sample_index", "row_seed"]).to_pylist()
    assert [row["row_seed"] for row in seeds] == [row_seed(7, *pair) for pair in sorted(failed)]


def test_amendments_apply_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = begin(tmp_path)
    finish(output, FAILED)
    first = child(retry(output.uri)[0])
    finish(first, {(4, 0): "ROW_NUMERIC"})
    second, lines = retry(output.uri)
    assert lines == ["amendment 2 decodes 1 failed result again (ROW_NUMERIC 1)"]
    assert planned(child(second).stored.shards, 1) == [(4, 0)]
    assert child(second).stored.document.identity.fields["amends"]["amendments"] == [
        sha256_hex(first.store.read("manifest.json"))
    ]
    manifest = output.ledger.find_manifest()
    assert manifest is not None
    (one,) = read_amendments(output.store)
    counts = amended_counts(manifest, [one])
    assert (counts.rows, counts.ok, counts.errors, counts.errors_by_code) == (20, 19, 1, {"ROW_NUMERIC": 1})
    assert cli.run(["report", output.uri]) == 0
    assert f"{output.uri} with 1 amendment: 19 ok, 1 error (ROW_NUMERIC 1)" in capsys.readouterr().out
    assert cli.run(["report", output.uri, "--format", "json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)["outputs"]
    assert document["counts"]["errors"] == 3, "the job itself is what it was"
    assert document["amendments"]["number"] == 1
    assert document["amendments"]["counts"]["errors_by_code"] == {"ROW_NUMERIC": 1}
    assert read_status(output.uri).num_errors == 1

    finish(child(second))
    table = load(output.uri)
    assert table.column("row_id").to_pylist() == list(range(NUM_ROWS))
    assert set(table.column("status").to_pylist()) == {"ok"}
    assert table.column("completion").to_pylist() == [f"text {row}" for row in range(NUM_ROWS)]
    assert retry(output.uri)[0] is None


def test_load_without_amendments_is_the_job_itself(tmp_path: Path) -> None:
    output = begin(tmp_path, num_samples=2)
    finish(output, {(4, 1): "ROW_MEMORY"})
    table = load(output.uri)
    assert table.column("row_id").to_pylist() == [row for row in range(NUM_ROWS) for _ in range(2)]
    assert table.column("status").to_pylist().index("error") == 9
    finish(child(retry(output.uri)[0]))
    table = load(output.uri)
    assert table.num_rows == 2 * NUM_ROWS
    assert set(table.column("status").to_pylist()) == {"ok"}


def test_a_half_done_amendment_is_gone_on_with(tmp_path: Path) -> None:
    output = begin(tmp_path)
    finish(output, FAILED)
    first = child(retry(output.uri, codes=["ROW_MEMORY"])[0])
    again, lines = retry(output.uri)
    assert lines == ["amendment 1 was begun before and is not finished: going on with it"]
    assert child(again).stored == first.stored
    # The general command goes on with it too: its identity has what the settings alone do not give.
    assert prepare_resume(first.uri, NOTHING).shards == first.stored.shards


def test_of_two_that_begin_one_amendment_the_later_adopts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = begin(tmp_path)
    finish(output, FAILED)
    real = Ledger.begin_job

    def begin_second(self: Ledger, *arguments: object) -> StoredJob:
        monkeypatch.setattr(Ledger, "begin_job", real)
        retry(output.uri, codes=["ROW_POISON"])
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "begin_job", begin_second)
    late, _ = retry(output.uri)
    assert planned(child(late).stored.shards, 1) == [(11, 0)]
    assert late is not None
    assert late.prepared.identity == child(late).stored.document.identity


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = begin(tmp_path)
    write_parts(output, FAILED, shards={0})
    assert cli.run(["retry-failed", output.uri]) == 1
    assert "JOB_INCOMPLETE" in capsys.readouterr().err
    finish(output, FAILED)
    first = child(retry(output.uri)[0])
    assert cli.run(["retry-failed", first.uri]) == 2
    assert "is an amendment itself" in capsys.readouterr().err
    assert cli.run(["retry-failed", output.uri, "--codes", "ROW_X"]) == 2
    assert "ROW_MEMORY" in capsys.readouterr().err
    with pytest.raises(SpecbatchError) as caught:
        prepare_retry(output.uri, free_layer({"target": "code-pair/draft-taught", "draft": "none"}, {}))
    assert caught.value.code is ErrorCode.JOB_SPEC_CHANGED


def test_an_amendment_of_another_manifest_is_an_integrity_failure(tmp_path: Path) -> None:
    output = begin(tmp_path)
    finish(output, FAILED)
    finish(child(retry(output.uri)[0]))
    path = tmp_path / "out/manifest.json"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(SpecbatchError) as caught:
        read_amendments(open_store(output.uri))
    assert caught.value.code is ErrorCode.JOB_INTEGRITY
