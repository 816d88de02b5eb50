"""Datasets of a hub, against a small HTTP server that answers as one does: pinned to a commit, downloaded once."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.hub import find_on_hub, is_hub, pin_dataset

FIRST, SECOND = "1" * 40, "2" * 40
REPO = "me/some-data"


def encoded(prompt: str) -> bytes:
    data = io.BytesIO()
    pq.write_table(pa.table({"prompt": [prompt]}), data)
    return data.getvalue()


class Hub:
    """A hub with one dataset of two commits; ``main`` is the second until told otherwise."""

    def __init__(self) -> None:
        self.main = SECOND
        self.requests: list[str] = []
        names = ("train/a.parquet", "train/b.parquet", "train/_x.parquet", "rows.jsonl", "README.md")
        self.files = {
            commit: {
                name: b'{"prompt": "x"}\n' if name == "rows.jsonl" else encoded(f"{commit}{name}") for name in names
            }
            for commit in (FIRST, SECOND)
        }
        hub = self

        class Handler(BaseHTTPRequestHandler):
            """Answers of the API and of the files."""

            def do_HEAD(self) -> None:
                hub.answer(self, with_body=False)

            def do_GET(self) -> None:
                hub.answer(self, with_body=True)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, handler: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        path = handler.path.partition("?")[0]
        self.requests.append(f"{handler.command} {path}")
        headers: dict[str, str] = {}
        status, body = 404, b"{}"
        if path.startswith(f"/api/datasets/{REPO}"):
            revision = path.removeprefix(f"/api/datasets/{REPO}").removeprefix("/revision/") or "main"
            commit = self.main if revision == "main" else revision
            if commit in self.files:
                siblings = [{"rfilename": name} for name in self.files[commit]]
                status, body = 200, json.dumps({"id": REPO, "sha": commit, "siblings": siblings}).encode()
            else:
                headers["X-Error-Code"] = "RevisionNotFound"
        elif path.startswith(f"/datasets/{REPO}/resolve/"):
            commit, _, name = path.removeprefix(f"/datasets/{REPO}/resolve/").partition("/")
            body = self.files[commit][name]
            status = 200
            headers |= {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        else:
            headers["X-Error-Code"] = "RepoNotFound"
        handler.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body)), "Content-Type": "application/json"}.items():
            handler.send_header(key, value)
        handler.end_headers()
        if with_body:
            handler.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


CODE = """
import json, sys
from specbatch.schemas.errors import SpecbatchError
from specbatch.storage.hub import pin_dataset
from specbatch.storage.inputs import read_inputs
try:
    pinned = pin_dataset(sys.argv[1])
    files = [(file.name, file.path, file.footer_sha256) for file in read_inputs([pinned]).files]
    print(json.dumps({"pinned": pinned, "files": files}))
except SpecbatchError as error:
    print(json.dumps({"code": error.code.value, "message": error.message}))
"""


def python(code: str, hub: Hub | None, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: the hub's client reads its environment when it is imported."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home),
        "HF_ENDPOINT": hub.endpoint if hub is not None else "http://127.0.0.1:9",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def find(dataset: str, hub: Hub | None, home: Path) -> dict[str, Any]:
    done = python(CODE, hub, home, dataset)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_dataset_is_pinned_and_downloaded_once(hub: Hub, tmp_path: Path) -> None:
    found = find(f"hf://datasets/{REPO}/train", hub, tmp_path)
    assert found["pinned"] == f"hf://datasets/{REPO}@{SECOND}/train"
    assert [name for name, *_ in found["files"]] == ["a.parquet", "b.parquet"]
    assert Path(found["files"][0][1]).read_bytes() == hub.files[SECOND]["train/a.parquet"]
    hub.main = FIRST
    hub.requests.clear()
    assert find(found["pinned"], hub, tmp_path) == found, "a pinned dataset is what it was"
    assert not any("GET /datasets" in request for request in hub.requests)
    old = find(f"hf://datasets/{REPO}@{FIRST}/train/b.parquet", hub, tmp_path)
    assert Path(old["files"][0][1]).read_bytes() == hub.files[FIRST]["train/b.parquet"]
    # A file of a commit that was read before needs no hub at all.
    assert find(f"hf://datasets/{REPO}@{FIRST}/train/b.parquet", None, tmp_path) == old


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/*/a.*", ["train/a.parquet"]),
        ("/rows.jsonl", ["rows.jsonl"]),
        ("", ["rows.jsonl", "train/a.parquet", "train/b.parquet"]),
    ],
)
def test_files_folders_and_globs(path: str, names: list[str], hub: Hub, tmp_path: Path) -> None:
    found = find(f"hf://datasets/{REPO}{path}", hub, tmp_path)
    assert [name for name, *_ in found["files"]] == names


def test_what_cannot_be_had_is_told_in_one_line(hub: Hub, tmp_path: Path) -> None:
    for dataset, code, says in (
        (f"hf://datasets/{REPO}/gone.parquet", "JOB_INPUT_MISSING", "does not exist"),
        (f"hf://datasets/{REPO}@nothing/train", "JOB_INPUT_MISSING", "@nothing"),
        ("hf://datasets/me/other/train", "JOB_INPUT_MISSING", "HF_TOKEN"),
        (f"hf://datasets/{REPO}/train/*.x", "JOB_INPUT_EMPTY", "matches no file"),
    ):
        found = find(dataset, hub, tmp_path)
        assert found["code"] == code, found
        assert says in found["message"]
        assert "\n" not in found["message"]
        assert hub.endpoint not in found["message"]


def test_without_a_hub_that_is_said(tmp_path: Path) -> None:
    found = find(f"hf://datasets/{REPO}/train", None, tmp_path)
    assert found["code"] == "JOB_INPUT_MISSING"
    assert "could not be reached" in found["message"]


JOB = """
import json, sys
from specbatch.jobs.output.ledger import Ledger
from specbatch.jobs.planning.normalise import place_copies
from specbatch.jobs.planning.prepare import prepare
from specbatch.jobs.upkeep.resume import prepare_resume
from specbatch.jobs.spec.settings import Layer, flag_layer, resolve
from specbatch.schemas.errors import SpecbatchError
from specbatch.storage.store import open_store
dataset, output = sys.argv[1:]
try:
    prepared = prepare(resolve([flag_layer({"output": output, "device": "cpu"}, [dataset])]))
    if Ledger(open_store(output)).find_job() is None:
        prepared = place_copies(prepared)
        spec = prepared.spec.model_dump(mode="json")
        Ledger(open_store(output)).begin_job(prepared.identity, prepared.models, spec, prepared.shards)
    resumed = prepare_resume(output, Layer({}, {}))
    print(json.dumps([prepared.identity.S, resumed.identity.S, prepared.identity.fields["hub"]]))
    prepare(resolve([flag_layer({}, [dataset])]))
except SpecbatchError as error:
    print(json.dumps({"code": error.code.value, "message": error.message}))
"""


def test_a_job_goes_on_with_the_commit_that_it_began_with(hub: Hub, tmp_path: Path) -> None:
    arguments = (f"hf://datasets/{REPO}/train", str(tmp_path / "out"))
    done = python(JOB, hub, tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0][0] == lines[0][1]
    assert lines[0][2] == [f"hf://datasets/{REPO}@{SECOND}/train"]
    assert "--output" in lines[1]["message"]
    hub.main = FIRST
    later = json.loads(python(JOB, hub, tmp_path, *arguments).stdout.splitlines()[0])
    assert later[0] != later[1] == lines[0][0], "a new submit has the new commit, a resume the old one"


@pytest.mark.parametrize(
    "dataset",
    [
        "hf://datasets/me",
        "hf://me/data/x",
        "hf://datasets/me/d/../x",
        "hf://datasets/me/d//x",
        "hf://user:pw@host/x",
        "hf://",
    ],
)
def test_uris_that_name_no_dataset(dataset: str) -> None:
    assert is_hub(dataset)
    for call in (pin_dataset, find_on_hub):
        with pytest.raises(SpecbatchError) as caught:
            call(dataset)
        assert caught.value.code is ErrorCode.JOB_URI_INVALID
        assert "pw" not in caught.value.message
