"""Whole jobs on data that is not plain Parquet: a batch file in gzip, its results as the next dataset, bad files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from test_submit_e2e import Place, _clean_up, make_place  # noqa: F401 - the fixture removes the temporary folders

from specbatch import load
from specbatch.jobs.verify.verify import verify_output

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("inputs"), ["unused"])


def request(number: int) -> dict[str, Any]:
    prompt = f"def f{number % 4}(x):\n    "
    body = {"model": "gpt", "prompt": prompt, "max_tokens": 3 + number % 2, "temperature": 0, "stop": ["#"]}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/completions", "body": body}


@pytest.mark.long
def test_a_batch_file_and_what_became_of_it_as_the_next_dataset(place: Place) -> None:
    requests = [request(number) for number in range(10)]
    dataset = place.root / "batch.jsonl.gz"
    dataset.write_bytes(gzip.compress(b"".join(json.dumps(one).encode() + b"\n" for one in requests)))
    output = place.root / "first"
    submit = ("submit", str(dataset), "--output", str(output), "--stop", "#", "--dedupe", "mark", "--shard-rows", "4")
    code, _, err = place.run(*submit)
    assert code == 0, err
    assert "kept in the column 'model'" in err
    table = load(output)
    assert table.column("custom_id").to_pylist() == [f"r{number}" for number in range(10)]
    assert table.column("duplicate_of").to_pylist() == [None] * 4 + [0, 1, 2, 3, 0, 1]
    rows = table.to_pylist()
    assert [len(row["completion_token_ids"]) <= row["max_new_tokens"] for row in rows] == [True] * 10
    assert all(rows[number]["completion"] == rows[number - 4]["completion"] for number in range(4, 10))
    report = verify_output(str(output), deep=True)
    assert report.state == "sound", report
    before = sorted((path, path.stat().st_mtime_ns) for path in (output / "_specbatch" / "input").iterdir())
    assert len(before) == 2
    code, _, err = place.run(*submit)
    assert code == 0
    assert "finished by an earlier run" in err
    assert sorted((path, path.stat().st_mtime_ns) for path in (output / "_specbatch" / "input").iterdir()) == before

    # An output as a dataset, next to JSONL that cannot be read.
    (place.root / "bad.jsonl").write_bytes(b'{"prompt": \n')
    second = place.root / "second"
    code, _, err = place.run(
        "submit", str(output), str(place.root / "bad.jsonl"), "--output", str(second), "--rename", "completion=answer",
        "--max-new-tokens", "2", "--on-bad-file", "quarantine",
    )  # fmt: skip
    assert code == 0, err
    assert "left out (JOB_INPUT_CORRUPT)" in err
    again = load(second)
    assert again.column("answer").to_pylist() == table.column("completion").to_pylist()
    assert "duplicate_of" not in again.schema.names
    assert (report := verify_output(str(second), deep=True)).state == "sound", report


def test_an_empty_dataset_needs_no_cluster(place: Place) -> None:
    folder = Path(place.root / "empty")
    folder.mkdir()
    code, out, err = place.run("submit", str(folder), "--output", str(place.root / "none"), "--allow-empty")
    assert code == 0, err
    assert "0 rows" in out
