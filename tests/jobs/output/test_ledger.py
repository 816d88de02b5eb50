"""The ledger: what exists is adopted, what is not ours is refused, whatever the moment of the last kill."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from stored_output import run_record

from specbatch.jobs.output.identity import identity_fields, identity_sha256
from specbatch.jobs.output.ledger import JOB_KEY, Ledger, StoredJob, check_same_job, plan_key
from specbatch.jobs.planning.planning import cut_shards
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError
from specbatch.schemas.manifest import PART_FORMAT, Identity, ModelRecord, Models
from specbatch.schemas.messages import PartReceipt
from specbatch.schemas.plan import InputFile, Shard, part_name, plan_digest
from specbatch.schemas.rows import RowResult
from specbatch.schemas.spec import GenerationSpec, JobSpec
from specbatch.schemas.stats import PhaseSeconds
from specbatch.storage.parts import PartMeta, part_stats, read_part_meta, write_part
from specbatch.storage.planfile import encode_plan
from specbatch.storage.store import open_store

MODELS = Models(target=ModelRecord(name="t", revision=None, files={"model.safetensors": "1"}, parameters=5), draft=None)
INPUT = InputFile("a.parquet", "/data/a.parquet", 1000, "f" * 64, (4, 4, 2))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(open_store(str(tmp_path / "out")))


def make_identity(seed: int = 0, shard_rows: int = 4) -> tuple[Identity, tuple[Shard, ...]]:
    spec = JobSpec(generation=GenerationSpec(seed=seed))
    fields = identity_fields(
        spec, target_files={}, tokenizer_sha256="t", dtype="float32", model_path="lean", inputs=[INPUT]
    )
    shards = cut_shards([INPUT], shard_rows)
    digest = identity_sha256(fields)
    return Identity(S=digest, P=plan_digest(digest, shards), fields=fields), shards


def begin(ledger: Ledger, seed: int = 0, shard_rows: int = 4) -> StoredJob:
    identity, shards = make_identity(seed, shard_rows)
    return ledger.begin_job(identity, MODELS, {"seed": seed}, shards)


def put_part(ledger: Ledger, stored: StoredJob, shard: Shard, *, plan: str | None = None) -> None:
    """A real part of a shard, every row an error row."""
    rows = pa.table({"prompt": ["p"] * shard.num_rows})
    results = [
        RowResult(row_id, 0, row_id, "error", error_code="ROW_PROMPT_NULL", error_message="null")
        for row_id in range(shard.row_start, shard.row_stop)
    ]
    meta = PartMeta(
        format=PART_FORMAT,
        plan=plan or stored.plan,
        shard=shard.index,
        row_start=shard.row_start,
        row_stop=shard.row_stop,
        token="token",
        stats=part_stats(results, PhaseSeconds()),
    )
    path = Path(ledger.store.uri) / "spooled.parquet"
    write_part(path, rows, results, meta)
    assert ledger.store.create(part_name(shard.index, stored.plan), path)
    path.unlink()


def hashed(ledger: Ledger, receipts: Sequence[PartReceipt]) -> list[PartReceipt]:
    return [replace(receipt, sha256=ledger.hash_part(receipt.path)) for receipt in receipts]


def test_a_missing_and_an_empty_folder_hold_no_job(ledger: Ledger) -> None:
    assert ledger.find_job() is None
    Path(ledger.store.uri).mkdir()
    assert ledger.find_job() is None


def test_a_folder_with_something_else_is_taken(ledger: Ledger) -> None:
    ledger.store.create("notes/todo.txt", b"mine")
    with pytest.raises(SpecbatchError) as caught:
        ledger.find_job()
    assert caught.value.code is ErrorCode.JOB_PREFIX_TAKEN
    assert "notes/todo.txt" in caught.value.message


def test_a_kill_between_plan_and_job_leaves_an_output_that_can_be_used(ledger: Ledger) -> None:
    identity, shards = make_identity()
    ledger.store.create(plan_key(identity.P), encode_plan(shards))
    assert ledger.find_job() is None
    assert begin(ledger).shards == shards


def test_a_job_is_found_again_as_it_was_written(ledger: Ledger) -> None:
    stored = begin(ledger)
    assert ledger.find_job() == stored
    assert stored.document.spec == {"seed": 0}
    assert stored.document.models == MODELS


def test_equal_identity_adopts_the_stored_plan_whatever_the_shard_size(ledger: Ledger) -> None:
    first = begin(ledger, shard_rows=4)
    second = begin(ledger, shard_rows=2)
    assert second == first
    assert len(second.shards) == 3


def test_another_identity_is_refused_with_the_difference(ledger: Ledger) -> None:
    stored = begin(ledger)
    with pytest.raises(SpecbatchError) as caught:
        begin(ledger, seed=7)
    assert caught.value.code is ErrorCode.JOB_SPEC_CHANGED
    assert caught.value.exit_code is ExitCode.USAGE
    assert "generation.seed: 0 → 7" in caught.value.message
    assert ledger.find_job() == stored
    check_same_job(stored, make_identity()[0], "out")


def test_many_differences_are_cut_short(ledger: Ledger) -> None:
    stored = begin(ledger)
    identity, _ = make_identity()
    many = {**identity.fields, "generation": {f"setting_{n:02d}": n for n in range(30)}}
    with pytest.raises(SpecbatchError) as caught:
        check_same_job(stored, Identity(S="0" * 64, P=identity.P, fields=many), "out")
    assert caught.value.message.count(" → ") == 10
    assert " more); choose another --output, or use the old settings" in caught.value.message


def test_an_identity_of_another_version_is_no_change_of_the_spec(ledger: Ledger) -> None:
    """Fault 48: fields of two versions mean different things, so that they are not compared."""
    stored = begin(ledger)
    identity, _ = make_identity()
    newer = {**identity.fields, "format": "specbatch/identity/99"}
    with pytest.raises(SpecbatchError) as caught:
        check_same_job(stored, Identity(S="0" * 64, P=identity.P, fields=newer), "out")
    assert caught.value.code is ErrorCode.JOB_FORMAT
    assert "specbatch/identity/99" in caught.value.message


@pytest.mark.parametrize("data", [b"", b"{}", b'{"format": "specbatch/job/9"}', b"\xff"])
def test_a_job_file_of_another_version_is_named(ledger: Ledger, data: bytes) -> None:
    ledger.store.replace(JOB_KEY, data)
    with pytest.raises(SpecbatchError) as caught:
        ledger.find_job()
    assert caught.value.code is ErrorCode.JOB_FORMAT


def test_a_lost_or_altered_plan_is_an_integrity_failure(ledger: Ledger) -> None:
    stored = begin(ledger)
    ledger.store.replace(plan_key(stored.plan), encode_plan(stored.shards[:2]))
    with pytest.raises(SpecbatchError, match="JOB_INTEGRITY"):
        ledger.find_job()
    (Path(ledger.store.uri) / plan_key(stored.plan)).unlink()
    with pytest.raises(SpecbatchError, match="JOB_INTEGRITY"):
        ledger.find_job()


def test_parts_are_found_with_their_statistics(ledger: Ledger) -> None:
    stored = begin(ledger)
    put_part(ledger, stored, stored.shards[1])
    ledger.store.create("data/part-000000-0123456789abcdef.parquet", b"a part of another plan is none of ours")
    found = ledger.find_parts(stored)
    assert list(found) == [1]
    assert (found[1].num_rows, found[1].stats.num_errors, found[1].created) == (4, 4, False)


def test_a_damaged_part_and_a_part_in_anothers_place_are_integrity_failures(ledger: Ledger) -> None:
    stored = begin(ledger)
    put_part(ledger, stored, stored.shards[0], plan="0123456789abcdef")
    with pytest.raises(SpecbatchError, match="JOB_INTEGRITY"):
        ledger.find_parts(stored)
    ledger.store.replace(part_name(0, stored.plan), b"PAR1 no PAR1")
    with pytest.raises(SpecbatchError, match="JOB_INTEGRITY"):
        ledger.find_parts(stored)


def test_a_few_shards_are_looked_for_without_a_listing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = begin(ledger)
    put_part(ledger, stored, stored.shards[1])
    put_part(ledger, stored, stored.shards[2])
    listings: list[str] = []
    kind = type(ledger.store)
    real = kind.list
    monkeypatch.setattr(kind, "list", lambda self, prefix: listings.append(prefix) or real(self, prefix))
    assert list(ledger.find_parts(stored, [0, 1])) == [1]
    assert listings == []
    assert list(ledger.find_parts(stored)) == [1, 2]
    assert listings == ["data"]


@pytest.mark.slow
def test_a_thousand_parts_are_found_in_order_for_the_price_of_their_footers(ledger: Ledger) -> None:
    """A resume of a large job reads every footer, with threads for about twice the CPU time of reading it alone."""
    identity, _ = make_identity()
    shards = cut_shards([InputFile("a.parquet", "/data/a.parquet", 1000, "f" * 64, (1000,))], 1)
    whole = Identity(S=identity.S, P=plan_digest(identity.S, shards), fields=identity.fields)
    stored = ledger.begin_job(whole, MODELS, {}, shards)
    for shard in stored.shards:
        put_part(ledger, stored, shard)
    paths = [Path(ledger.store.uri) / part_name(shard.index, stored.plan) for shard in stored.shards[:100]]
    started = time.process_time()
    for path in paths:
        read_part_meta(path)
    read = time.process_time()
    assert list(ledger.find_parts(stored)) == list(range(1000))
    assert time.process_time() - read < 50 * (read - started)


def test_epochs_count_up_and_records_are_overwritten(ledger: Ledger) -> None:
    first, second = ledger.begin_run(run_record()), ledger.begin_run(run_record())
    assert (first.epoch, second.epoch) == (1, 2)
    ledger.write_run(second.model_copy(update={"outcome": "complete"}))
    ledger.store.replace("_specbatch/runs/3.json", b"not JSON")
    assert [record.outcome for record in ledger.read_runs()] == ["running", "complete"]
    assert ledger.begin_run(run_record()).epoch == 4


def test_the_commit_is_written_once_and_sealed(ledger: Ledger) -> None:
    stored = begin(ledger)
    for shard in stored.shards:
        put_part(ledger, stored, shard)
    receipts = hashed(ledger, list(ledger.find_parts(stored).values()))
    manifest = ledger.commit(stored, MODELS, receipts)
    assert manifest.commit.counts.rows == 10
    assert ledger.find_manifest() == manifest
    seal = ledger.store.read("_SUCCESS")

    (Path(ledger.store.uri) / "_SUCCESS").unlink()
    again = ledger.commit(stored, MODELS, receipts[::-1])
    assert again == manifest, "a second coordinator finds the manifest and completes the seal"
    assert ledger.store.read("_SUCCESS") == seal

    altered = [replace(receipts[0], sha256="0" * 64), *receipts[1:]]
    with pytest.raises(SpecbatchError) as caught:
        ledger.commit(stored, MODELS, altered)
    assert caught.value.code is ErrorCode.JOB_INTEGRITY
    assert caught.value.exit_code is ExitCode.INTEGRITY
