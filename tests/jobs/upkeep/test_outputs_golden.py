"""Outputs as released versions wrote them, kept as files: read by this version, or refused by name (fault 48)."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specbatch import load
from specbatch.jobs.output.ledger import JOB_KEY, Ledger, StoredJob, plan_key
from specbatch.jobs.reports.report import load_manifest, render
from specbatch.jobs.verify.verify import verify_output
from specbatch.jobs.watching.status import read_status
from specbatch.schemas.canonical import sha256_hex
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import plan_digest
from specbatch.storage.store import open_store

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


@pytest.fixture(params=VERSIONS)
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / request.param, tmp_path / "out")
    return tmp_path / "out"


def ledger(output: Path) -> Ledger:
    return Ledger(open_store(str(output)))


def stored(output: Path) -> StoredJob:
    found = ledger(output).find_job()
    assert found is not None
    return found


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def refused(output: Path, code: ErrorCode) -> None:
    with pytest.raises(SpecbatchError) as caught:
        stored(output)
    assert caught.value.code is code
    assert "\n" not in caught.value.message


def test_there_is_one_of_every_version() -> None:
    assert VERSIONS == ["0.1"]


def test_it_is_read_whole(output: Path) -> None:
    job = stored(output)
    assert plan_digest(job.document.identity.S, job.shards) == job.plan
    parts = ledger(output).find_parts(job)
    assert sorted(parts) == [shard.index for shard in job.shards]
    manifest = load_manifest(str(output))
    assert manifest.identity == job.document.identity
    assert {path: ledger(output).hash_part(path) for path in (part.path for part in manifest.commit.parts)} == {
        part.path: part.sha256 for part in manifest.commit.parts
    }
    assert sum(part.stats.num_results for part in parts.values()) == manifest.commit.counts.results
    assert render([(str(output), manifest)], "human")
    assert read_status(str(output)).state == "complete"
    assert verify_output(str(output)).state == "sound"
    assert load(output).num_rows == manifest.commit.counts.results


def test_the_same_commit_is_made_of_its_parts(output: Path) -> None:
    """A job that an older version began and this one finishes has the manifest that the older one would have made."""
    from dataclasses import replace

    job = stored(output)
    before = load_manifest(str(output))
    (output / "manifest.json").unlink()
    (output / "_SUCCESS").unlink()
    found = ledger(output).find_parts(job).values()
    receipts = [replace(part, sha256=ledger(output).hash_part(part.path)) for part in found]
    assert ledger(output).commit(job, before.models, receipts).commit == before.commit


def test_a_newer_job_is_refused(output: Path) -> None:
    edit(output / JOB_KEY, format="specbatch/job/2", novelty=1)
    refused(output, ErrorCode.JOB_FORMAT)
    with pytest.raises(SpecbatchError, match="JOB_FORMAT"):
        read_status(str(output))


def test_a_newer_plan_is_refused(output: Path) -> None:
    key = plan_key(stored(output).plan)
    table = pq.read_table(output / key).replace_schema_metadata({b"specbatch": b"specbatch/plan/99"})
    data = io.BytesIO()
    pq.write_table(table.append_column("novelty", pa.array([0] * table.num_rows)), data)
    (output / key).write_bytes(data.getvalue())
    refused(output, ErrorCode.JOB_FORMAT)


def test_a_newer_manifest_is_refused(output: Path) -> None:
    edit(output / "manifest.json", format="specbatch/manifest/2")
    for read in (lambda: ledger(output).find_manifest(), lambda: read_status(str(output))):
        with pytest.raises(SpecbatchError, match="JOB_FORMAT"):
            read()


def test_a_manifest_may_have_been_written_before_a_field_was_added(output: Path) -> None:
    document = json.loads((output / "manifest.json").read_bytes())
    document["observed"].pop("preemptions", None)
    (output / "manifest.json").write_text(json.dumps(document))
    assert load_manifest(str(output)).observed.preemptions == 0


def test_golden_files_are_never_written_anew() -> None:
    """Whoever has to change a digest here breaks outputs that users have: add a version beside it instead."""
    digests = {
        path.relative_to(GOLDEN).as_posix(): sha256_hex(path.read_bytes())[:12]
        for path in sorted(GOLDEN.rglob("*"))
        if path.name in ("job.json", "manifest.json", "_SUCCESS")
    }
    assert digests == {
        "0.1/_SUCCESS": "19c84e335f1f",
        "0.1/_specbatch/job.json": "b873915fbc5c",
        "0.1/manifest.json": "61c25bbe24be",
    }
