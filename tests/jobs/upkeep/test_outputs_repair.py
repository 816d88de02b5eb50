"""``repair``: sound parts are copied byte for byte, damaged ones are left to be decoded again, the old output stays."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from stored_output import begin, finish, write_parts

from specbatch.jobs.cli import app as cli
from specbatch.jobs.output.lease import acquire
from specbatch.jobs.spec.settings import Layer
from specbatch.jobs.upkeep.amendments import prepare_retry
from specbatch.jobs.upkeep.repair import Repair, prepare_repair
from specbatch.jobs.upkeep.resume import StoredOutput, free_layer, open_output
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import part_name

NOTHING = Layer({}, {})


def repair(output: StoredOutput, new: Path) -> tuple[Repair, list[str]]:
    lines: list[str] = []
    return prepare_repair(output.uri, str(new), NOTHING, say=lines.append), lines


def part_path(output: StoredOutput, shard: int) -> Path:
    return Path(output.uri) / part_name(shard, output.stored.plan)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refused(code: ErrorCode, output: StoredOutput, new: Path) -> str:
    with pytest.raises(SpecbatchError) as caught:
        repair(output, new)
    assert caught.value.code is code
    return caught.value.message


def test_parts_with_the_digest_of_the_manifest_are_copied(tmp_path: Path) -> None:
    """Fault 38: a byte of a part has changed at rest; and another part is gone (fault 37)."""
    output = begin(tmp_path)
    finish(output)
    original = pq.read_table(tmp_path / "out/data")
    flip(part_path(output, 1), 100)
    part_path(output, 2).unlink()
    before = tree(tmp_path / "out")
    found, lines = repair(output, tmp_path / "new")
    assert found.num_copied == 2
    assert found.unsound == (
        f"{part_name(1, output.stored.plan)} has not the digest of the manifest",
        f"{part_name(2, output.stored.plan)} is missing",
    )
    assert lines[:2] == list(found.unsound)
    assert lines[2].startswith("2 of 4 parts are sound and copied")
    assert tree(tmp_path / "out") == before
    new = open_output(str(tmp_path / "new"))
    assert new.stored.document.identity == output.stored.document.identity
    assert new.stored.shards == output.stored.shards
    assert sorted(new.ledger.find_parts(new.stored)) == [0, 3]
    for shard in (0, 3):
        assert part_path(new, shard).read_bytes() == part_path(output, shard).read_bytes()
    assert found.prepared.output == new.uri
    assert new.ledger.find_manifest() is None
    # A run finds the others missing and decodes them again.
    finish(new)
    assert pq.read_table(tmp_path / "new/data").equals(original)


def test_without_a_manifest_every_part_is_read_whole(tmp_path: Path) -> None:
    output = begin(tmp_path)
    write_parts(output, {(3, 0): "ROW_MEMORY"}, shards={0, 1, 2})
    path = part_path(output, 1)
    table = pq.read_table(path)
    ids = table.column("row_id").to_pylist()
    changed = table.set_column(
        table.schema.get_field_index("row_id"), table.schema.field("row_id"), [[*ids[1:], ids[0]]]
    )
    meta = pq.read_metadata(path).metadata
    path.unlink()
    with pq.ParquetWriter(path, changed.schema) as writer:
        writer.write_table(changed)
        writer.add_key_value_metadata({"specbatch": meta[b"specbatch"]})
    flip(part_path(output, 2), 60)
    found, lines = repair(output, tmp_path / "new")
    assert lines[0] == "there is no manifest: every part is read whole"
    assert found.num_copied == 1
    assert "row_id is not the planned one" in found.unsound[0]
    assert part_name(2, output.stored.plan).rpartition("/")[2] in found.unsound[1]
    assert found.unsound[2].endswith("is missing")


def test_a_manifest_that_its_seal_denies_is_not_believed(tmp_path: Path) -> None:
    output = begin(tmp_path)
    finish(output)
    path = tmp_path / "out/manifest.json"
    document = json.loads(path.read_text())
    document["commit"]["parts"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(document))
    found, lines = repair(output, tmp_path / "new")
    assert "the manifest cannot be trusted" in lines[0]
    assert (found.num_copied, found.unsound) == (4, ())


def test_amendments_stay_behind_and_that_is_said(tmp_path: Path) -> None:
    output = begin(tmp_path)
    finish(output, {(3, 0): "ROW_MEMORY"})
    retry = prepare_retry(output.uri, NOTHING)
    assert retry is not None
    finish(open_output(retry.prepared.output))
    _, lines = repair(output, tmp_path / "new")
    assert lines[0].endswith(f"specbatch retry-failed {tmp_path / 'new'}")
    assert not (tmp_path / "new/amendments").exists()


def test_a_repair_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    output = begin(tmp_path)
    finish(output)
    repair(output, tmp_path / "new")
    part_path(open_output(str(tmp_path / "new")), 3).unlink()
    assert repair(output, tmp_path / "new")[0].num_copied == 4
    assert part_path(open_output(str(tmp_path / "new")), 3).exists()


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = begin(tmp_path)
    finish(output, {(3, 0): "ROW_MEMORY"})
    for place in (tmp_path / "out", tmp_path / "out/below", tmp_path):
        refused(ErrorCode.JOB_URI_OVERLAP, output, place)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/x").touch()
    refused(ErrorCode.JOB_PREFIX_TAKEN, output, tmp_path / "taken")
    (tmp_path / "second").mkdir()
    other = begin(tmp_path / "second", temperature=0.5)
    assert "generation.temperature" in refused(ErrorCode.JOB_SPEC_CHANGED, output, Path(other.uri))
    (tmp_path / "third").mkdir()
    cut_otherwise = begin(tmp_path / "third", shard_rows=3)
    assert "other shards" in refused(ErrorCode.JOB_PREFIX_TAKEN, output, Path(cut_otherwise.uri))
    retry = prepare_retry(output.uri, free_layer({}, {}))
    assert retry is not None
    assert "is an amendment" in refused(ErrorCode.JOB_CONFIG, open_output(retry.prepared.output), tmp_path / "new")
    lease = acquire(output.store)
    assert cli.run(["repair", output.uri, "--output", str(tmp_path / "new")]) == 6
    assert "JOB_LIVE" in capsys.readouterr().err
    lease.release()
    assert not (tmp_path / "new").exists()
