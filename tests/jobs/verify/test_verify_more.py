"""``verify`` beyond one local folder: amendments, remote stores, and the deep check against dataset and target."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from s3_server import S3Server
from stored_output import begin, finish, write_parts

from specbatch.jobs.spec.settings import Layer
from specbatch.jobs.upkeep.amendments import prepare_retry
from specbatch.jobs.upkeep.resume import StoredOutput, open_output
from specbatch.jobs.verify.again import Drawn, draw, regenerate
from specbatch.jobs.verify.deep import InputRows, Passing, compare, input_rows
from specbatch.jobs.verify.files import Unsound
from specbatch.jobs.verify.plan import PlannedShard
from specbatch.jobs.verify.verify import render_verify, verify_output
from specbatch.schemas.canonical import canonical_json, sha256_hex
from specbatch.schemas.seeds import row_seed
from specbatch.storage.store import open_store

NOTHING = Layer({}, {})
FAILED = {(3, 0): "ROW_MEMORY", (4, 0): "ROW_MEMORY", (11, 0): "ROW_POISON"}


def amend(parent: StoredOutput, **arguments: Any) -> StoredOutput:
    found = prepare_retry(parent.uri, NOTHING, **arguments)
    assert found is not None
    return open_output(found.prepared.output)


@pytest.mark.parametrize("num_samples", [1, 2])
def test_an_amended_output_is_sound(tmp_path: Path, num_samples: int) -> None:
    parent = begin(tmp_path, num_samples=num_samples)
    finish(parent, FAILED)
    finish(amend(parent), {(4, 0): "ROW_NUMERIC"})
    finish(amend(parent))
    report = verify_output(parent.uri)
    assert (report.state, report.problems) == ("sound", ())
    assert report.checked["amendments"] == 2
    assert "2 amendments on top" in render_verify(report)


def test_an_amendment_in_the_making_is_incomplete(tmp_path: Path) -> None:
    parent = begin(tmp_path)
    finish(parent, FAILED)
    child = amend(parent)
    assert verify_output(parent.uri).state == "incomplete"
    write_parts(child)
    assert verify_output(parent.uri).state == "incomplete"


def test_what_is_wrong_in_an_amendment_is_named_with_its_folder(tmp_path: Path) -> None:
    parent = begin(tmp_path)
    finish(parent, FAILED)
    child = amend(parent)
    finish(child)
    part = next(Path(child.uri, "data").iterdir())
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    report = verify_output(parent.uri)
    assert report.state == "not sound"
    assert all(problem.startswith("amendments/1/") for problem in report.problems)


def rewrite_identity(child: StoredOutput, **amends: Any) -> None:
    """Make an amendment claim something else, with every digest that follows from the claim made right."""
    path = Path(child.uri, "_specbatch", "job.json")
    job = json.loads(path.read_bytes())
    job["identity"]["fields"]["amends"].update(amends)
    job["identity"]["S"] = sha256_hex(canonical_json(job["identity"]["fields"]))
    path.write_text(json.dumps(job))


@pytest.mark.parametrize(
    ("claim", "finding"),
    [
        ({"manifest": "0" * 64}, "another manifest"),
        ({"amendments": ["0" * 64]}, "another manifest"),
        ({"codes": {"ROW_POISON": 3}}, "P is not the digest"),
    ],
)
def test_an_amendment_that_claims_something_else(tmp_path: Path, claim: dict[str, Any], finding: str) -> None:
    parent = begin(tmp_path)
    finish(parent, FAILED)
    child = amend(parent)
    finish(child)
    rewrite_identity(child, **claim)
    report = verify_output(parent.uri)
    assert report.state == "not sound"
    assert any(finding in problem for problem in report.problems)


def test_an_amendment_of_results_that_had_not_failed(tmp_path: Path) -> None:
    """A parent whose failure is gone: the amendment then touches what was sound."""
    parent, other = begin(tmp_path), begin(tmp_path, uri=str(tmp_path / "other"))
    finish(parent, FAILED)
    finish(other, {(3, 0): "ROW_MEMORY"})
    finish(amend(parent))
    Path(parent.uri, "amendments").rename(Path(other.uri, "amendments"))
    report = verify_output(other.uri)
    assert any("results that had not failed: 2, the first is row 4" in problem for problem in report.problems)
    assert any("another manifest" in problem for problem in report.problems)


def test_a_gap_in_the_numbers_of_amendments(tmp_path: Path) -> None:
    parent = begin(tmp_path)
    finish(parent, FAILED)
    finish(amend(parent))
    Path(parent.uri, "amendments", "1").rename(Path(parent.uri, "amendments", "2"))
    assert any("should be number 1" in problem for problem in verify_output(parent.uri).problems)


def test_expected_results_of_a_shard_with_gaps() -> None:
    shard = PlannedShard(0, "part", 2, 10, ((2, 4, None), (7, 8, (1,)), (9, 10, (0, 2))))
    everything = [(2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2), (7, 1), (9, 0), (9, 2)]
    assert shard.num_results(3) == len(everything)
    assert shard.num_rows == 4
    for begin_at in range(len(everything) + 1):
        for end_at in range(begin_at, len(everything) + 1):
            rows, samples = shard.expected(3, begin_at, end_at)
            found = list(zip(rows.tolist(), samples.tolist(), strict=True))
            assert found == everything[begin_at:end_at]


def test_a_remote_output_is_verified_like_a_local_one(tmp_path: Path, s3_server: S3Server) -> None:
    """Fault 38 on S3: one flipped bit, one object lost, one object too many."""
    parent = begin(tmp_path)
    finish(parent, FAILED)
    finish(amend(parent))
    bucket = s3_server.new_bucket()
    for path in Path(parent.uri).rglob("*"):
        if path.is_file():
            s3_server.put(bucket, f"job/{path.relative_to(parent.uri).as_posix()}", path.read_bytes())
    uri = f"s3://{bucket}/job"
    assert (verify_output(uri).state, verify_output(uri).problems) == ("sound", ())
    store, key = open_store(uri), f"data/part-000001-{parent.stored.plan}.parquet"
    data = store.read(key)
    flipped = bytearray(data)
    flipped[len(data) // 3] ^= 16
    store.replace(key, bytes(flipped))
    problems = verify_output(uri).problems
    assert any("sha256" in problem for problem in problems)
    assert not any("commit." in problem for problem in problems), "sums of what cannot be read say nothing"
    store.delete(key)
    assert any("is missing" in problem for problem in verify_output(uri).problems)
    store.replace(key, data)
    store.replace("data/part-000000-0123456789abcdef.parquet", data)
    assert verify_output(uri).problems == ("data/part-000000-0123456789abcdef.parquet is not part of this job",)


# ---- deep ------------------------------------------------------------------------------------------------------------


def table(row_ids: list[int], **columns: Any) -> pa.Table:
    return pa.table({"row_id": pa.array(row_ids, pa.int64()), "status": ["ok"] * len(row_ids), **columns})


def test_passthrough_columns_are_compared_once_for_every_sample() -> None:
    shard = PlannedShard(0, "part", 5, 7)
    rows = InputRows(pa.table({"prompt": ["a", "b"], "n": [1.5, None]}))
    good = table([5, 5, 6, 6], prompt=["a", "a", "b", "b"], n=[1.5, 1.5, None, None])
    assert list(compare(good, shard, rows, Passing())) == []
    changed = table([5, 5, 6, 6], prompt=["a", "a", "b", "B"], n=[1.5, 1.5, None, None])
    assert list(compare(changed, shard, rows, Passing())) == ["part: column prompt does not hold what the dataset does"]
    narrowed = good.set_column(3, "n", good.column("n").cast(pa.float32()))
    assert list(compare(narrowed, shard, rows, Passing())) == ["part: column n is float, in the dataset double"]
    assert list(compare(good.drop_columns(["n"]), shard, rows, Passing())) == [
        "part: its columns are not those of the dataset"
    ]


def test_a_dataset_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    parent = begin(tmp_path)
    segment = parent.stored.shards[0].segments[0]
    place = (segment.path, segment.footer_sha256, 0, 5)
    assert input_rows([place]).table.column("tag").to_pylist() == [0, 1, 2, 3, 4]
    with pytest.raises(Unsound, match="not the file that was planned"):
        input_rows([(segment.path, "0" * 64, 0, 5)])


def test_rows_are_drawn_from_all_parts_by_digest() -> None:
    first = table([0, 1], sample_index=[0, 0], prompt=["a", "b"], row_seed=[7, 8], completion_token_ids=[[1], [2]])
    many = [first, table([2], sample_index=[0], prompt=["c"], row_seed=[9], completion_token_ids=[[3]])]
    forth: list[Drawn] = []
    back: list[Drawn] = []
    for part in many:
        forth = draw(forth, part, part.select(["prompt"]), "salt")
    for part in reversed(many):
        back = draw(back, part, part.select(["prompt"]), "salt")
    assert forth == back
    assert {one.row_id for one in forth} == {0, 1, 2}
    assert {one.row.column("prompt")[0].as_py() for one in forth} == {"a", "b", "c"}


def test_text_that_the_target_would_not_say_is_noticed(tmp_path: Path) -> None:
    parent = begin(tmp_path, max_new_tokens=6)
    job = parent.stored.document.model_dump(mode="json")
    from specbatch.specdec import Engine, SamplingParams

    seed = row_seed(job["identity"]["fields"]["generation"]["seed"], 0, 0)
    engine = Engine.from_pretrained("code-pair/target", speculation="off", dtype="float32", device="cpu")
    said = engine.generate(["def f(x):"], SamplingParams(max_new_tokens=6, seed=seed))[0]
    drawn = Drawn(0, 0, pa.table({"prompt": ["def f(x):"]}), seed, list(said.token_ids))
    problems: list[str] = []
    notes: list[str] = []
    regenerate([drawn], job, problems, notes)
    assert (problems, notes) == ([], ["decoded 1 results again with the target alone, on cpu"])
    regenerate([replace(drawn, token_ids=[*drawn.token_ids[:-1], 5])], job, problems, notes)
    assert problems == ["row 0 sample 0: the target alone, on cpu here, says something else"]


def test_an_amendment_with_gaps_is_compared_too() -> None:
    shard = PlannedShard(0, "part", 3, 12, ((3, 5, None), (11, 12, None)))
    rows = InputRows(pa.table({"prompt": ["c", "d", "k"]}))
    assert list(compare(table([3, 4, 11], prompt=["c", "d", "k"]), shard, rows, Passing())) == []
    assert list(compare(table([3, 4, 11], prompt=["c", "d", "e"]), shard, rows, Passing())) != []
