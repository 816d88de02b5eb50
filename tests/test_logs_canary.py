"""Prompts, ids and completions are in the parts and nowhere else, and secrets nowhere: a job full of canaries.

The job has a row for each row error that its data can provoke, and one of its workers is killed. Searched are all files
of the output (for prompts all but the parts), all files of Ray's session, and both streams of the command. Secrets that
are used, for a store and for a cluster, are looked for in infra/test_aws_job.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specbatch import load
from specbatch.jobs.spec.settings import FOREIGN_VARIABLES

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CANARY = "kanarienvogel"
SHARE = 12
"""Characters in a row of a completion that count as the completion."""
DEADLINE_SECONDS = 400.0
NUM_GOOD = 24
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAKANARIENVOGEL777",
    "AWS_SECRET_ACCESS_KEY": "secretkanarie/8f0e1d2c3b4a59687706f5e4",
    "AWS_SESSION_TOKEN": "sessionkanarie//1a2b3c4d5e6f70819203a4b5",
    "HF_TOKEN": "hf_tokenkanarieXyZ0123456789",
    "RAY_AUTH_TOKEN": "raytokenkanarie0123456789abcdef",
}
if "SPECBATCH_NOTIFY_URL" in FOREIGN_VARIABLES:
    SECRETS["SPECBATCH_NOTIFY_URL"] = "http://127.0.0.1:9/services/urlkanarie0123"
"""Of the user's environment. The job makes a token of its own for its Ray, which is looked for too."""


def prompts() -> list[str | None]:
    good: list[str | None] = [f"def {CANARY}_{i}(x):\n    # Return {CANARY} {i}.\n" for i in range(NUM_GOOD)]
    too_long = f"{CANARY} " * 6000
    return [*good, None, " ", too_long]


def without_sources(text: str) -> str:
    """A log without what its tracebacks quote: lines of Python look like what a model of Python says."""
    return re.sub(r'(?m)^( *File "[^\n]*\n)(?: {4,}[^\n]*\n)+', r"\1", text)


class Done:
    """What a job left: its streams, its output, and what Ray's logs held while it ran."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.folder, self.temporary = folder, temporary
        self.output = folder / "out"
        self.texts: dict[str, str] = {}
        self.parts: dict[str, str] = {}
        self.session: dict[str, str] = {}
        self.ray_tokens: set[str] = set()
        self.ray_ports: set[tuple[str, str]] = set()

    def keep_session(self) -> None:
        """What else is in the folder of Ray's session, and the token that its processes have."""
        for path in files_below(self.temporary):
            try:
                if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 22:
                    name = str(path.relative_to(self.temporary))
                    self.session[name] = path.read_bytes().decode("utf-8", "replace")
            except OSError:
                continue
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                environment, command = path.read_bytes(), (path.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if f"TMPDIR={self.temporary}".encode() in environment and b"/core/src/ray/" in command:
                variables = dict(entry.partition(b"=")[::2] for entry in environment.split(b"\0"))
                self.ray_tokens.add(variables[b"RAY_AUTH_TOKEN"].decode())
                self.ray_ports |= listening(path.parent)
                for child in Path("/proc").glob("[0-9]*"):
                    if parent_of(child) == path.parent.name:
                        self.ray_ports |= listening(child)

    def keep_logs(self) -> None:
        """Ray's session goes with the run, so it is read while that lasts; logs only grow."""
        for path in files_below(self.temporary):
            if "logs" not in path.parts:
                continue
            try:
                if path.is_file() and not path.is_symlink():
                    self.texts[f"ray: {path.name}"] = without_sources(path.read_bytes().decode("utf-8", "replace"))
            except OSError:
                continue

    def keep_output(self) -> None:
        for path in self.output.rglob("*"):
            if path.is_file():
                texts = self.parts if path.is_relative_to(self.output / "data") else self.texts
                texts[str(path.relative_to(self.output))] = path.read_bytes().decode("utf-8", "replace")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    temporary = Path(tempfile.mkdtemp(prefix="sb", dir="/tmp"))  # Ray refuses long names, and pytest's are long
    done = Done(tmp_path_factory.mktemp("canary"), temporary)
    try:
        _run(done)
        yield done
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run(done: Done) -> None:
    table = pa.table({"key": [f"{CANARY}-{i}" for i in range(NUM_GOOD + 3)], "prompt": prompts()})
    pq.write_table(table, done.folder / "in.parquet")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPECBATCH_", "RAY_"))}
    command = [str(Path(sys.executable).parent / "specbatch"), "submit", "in.parquet", "--output", str(done.output)]
    command += ["--id-column", "key", "--workers", "2", "--shard-rows", "3", "--max-new-tokens", "400", "--ignore-eos"]
    command += ["--row-errors-ok"]
    process = subprocess.Popen(
        command,
        cwd=done.folder,
        env={**kept, **SECRETS, "TMPDIR": str(done.temporary), "SPECBATCH_LOG_FORMAT": "json"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    killed, num_looks, deadline = None, 0, time.monotonic() + DEADLINE_SECONDS
    while process.poll() is None:
        assert time.monotonic() < deadline, "it took too long"
        killed = killed or _kill_one(done.output)  # first: reading logs takes its time
        done.keep_logs()
        if killed and num_looks % 10 == 0:  # before the kill it would come too late
            done.keep_session()
        num_looks += killed is not None
        time.sleep(0.1)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert killed is not None, "no worker could be killed in time"
    done.texts |= {"stdout": out, "stderr": err}
    done.keep_output()


def files_below(folder: Path) -> Iterator[Path]:
    """All files, of folders too that go while they are looked through."""
    for root, _, names in os.walk(folder):
        yield from (Path(root) / name for name in names)


def parent_of(process: Path) -> str:
    """The process id of the parent, empty where the process is gone."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[1]
    except OSError:
        return ""


def listening(process: Path) -> set[tuple[str, str]]:
    """(program, address) of each TCP port that a process listens on; addresses as ``/proc/net/tcp`` has them."""
    try:
        sockets = {str(entry.readlink()) for entry in (process / "fd").iterdir()}
        program = (process / "comm").read_text().strip()
        tables = [(process / "net" / name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    except OSError:
        return set()
    rows = [line.split() for table in tables for line in table]
    return {(program, row[1].partition(":")[0]) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


def _kill_one(output: Path) -> int | None:
    """End a worker as soon as it is known, so that the job cannot end before its death; its process id."""
    try:
        progress = json.loads((output / "_specbatch/progress.json").read_bytes())
    except (OSError, ValueError):
        return None
    for worker in progress["workers"]:
        if worker.get("pid"):
            try:
                os.kill(worker["pid"], signal.SIGKILL)
            except ProcessLookupError:
                continue
            return int(worker["pid"])
    return None


def test_no_prompt_no_id_and_no_completion_leaves_the_parts(done: Done) -> None:
    rows = load(done.output).to_pylist()
    codes = {row["error_code"] for row in rows if row["status"] == "error"}
    assert codes == {"ROW_PROMPT_NULL", "ROW_PROMPT_EMPTY", "ROW_TOO_LONG"}
    pieces = {CANARY}
    for row in rows:
        text = row["completion"] or ""
        pieces |= {text[at : at + SHARE] for at in range(0, len(text) - SHARE + 1)}
    # Runs of white space or of one character say nothing of a completion.
    pieces = {piece for piece in pieces if len(set(piece.split())) > 1 or len(set(piece)) > SHARE // 2}
    assert len(pieces) > 50
    assert {"stdout", "stderr", "manifest.json"} <= set(done.texts)
    assert any(name.startswith("ray: worker-") for name in done.texts)
    assert any(name.startswith("_specbatch/logs/1/") for name in done.texts)
    for name, text in done.texts.items():
        # In JSON text stands with escapes.
        found = [piece for piece in pieces if piece in text or json.dumps(piece)[1:-1] in text]
        assert not found, f"{name} holds {found[:3]}"


def test_both_streams_of_the_run_are_structured(done: Done) -> None:
    lines = [json.loads(line) for line in done.texts["stderr"].splitlines()]
    fields = ["time", "level", "event", "message", "job", "epoch", "worker", "shard", "attempt", "code"]
    assert all(list(line) == fields for line in lines)
    job = json.loads(done.texts["manifest.json"])["identity"]["S"][:12]
    events = {line["event"]: line for line in lines}
    assert {"run_started", "worker_ready", "worker_died", "run_ended"} <= set(events)
    assert (events["worker_died"]["job"], events["worker_died"]["epoch"]) == (job, 1)
    stored = [json.loads(line) for line in done.texts["_specbatch/logs/1/run-0001.jsonl"].splitlines()]
    assert [line for line in lines if line["event"] != "said"] == stored


def test_workers_tell_of_their_leases(done: Done) -> None:
    texts = [text for name, text in done.texts.items() if name.startswith("ray: worker-") and name.endswith(".err")]
    lines = [json.loads(line) for text in texts for line in text.splitlines() if line.startswith("{")]
    assigned = [line for line in lines if line["event"] == "shard_assigned"]
    assert {line["shard"] for line in assigned} == set(range(9))
    assert all(line["attempt"] >= 1 and line["worker"] is not None and line["job"] for line in assigned)
    assert {line["event"] for line in lines} >= {"worker_ready", "shard_assigned", "part_written"}


def test_no_secret_is_in_any_byte(done: Done) -> None:
    assert done.ray_tokens, "no process of this Ray was seen"
    assert SECRETS["RAY_AUTH_TOKEN"] not in done.ray_tokens, "the token of a cluster of the user's is not for this one"
    assert done.parts
    assert any("/logs/" in name for name in done.session)
    for name, text in {**done.texts, **done.parts, **done.session}.items():
        found = [variable for variable, secret in SECRETS.items() if secret in text]
        found += ["the token of this Ray" for token in done.ray_tokens if token in text]
        assert not found, f"{name} holds {found}"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["config", "show", "--format", "json"], 0),
        (["submit", "missing.parquet"], 2),
        (["submit", f"s3://user:{SECRETS['AWS_SECRET_ACCESS_KEY']}@bucket/in"], 2),
        (["status", "s3://bucket/out", "--format", "json"], 8),
    ],
)
def test_no_secret_is_in_what_a_command_says(arguments: list[str], code: int, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPECBATCH_", "RAY_", "AWS_"))}
    nowhere = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "SPECBATCH_STORE_PATIENCE_SECONDS": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "specbatch", *arguments], cwd=tmp_path, env={**kept, **SECRETS, **nowhere},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert not [variable for variable, secret in SECRETS.items() if secret in done.stdout + done.stderr]


def test_the_ray_of_a_job_listens_on_this_machine_only(done: Done) -> None:
    """Its token would keep others out, but ports that are closed need no token."""
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert {program for program, _ in done.ray_ports} >= {"raylet", "gcs_server"}
    assert {address for _, address in done.ray_ports} <= loopback, done.ray_ports
