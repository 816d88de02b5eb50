"""One night for real: from the command line, with the bundled pair, a webhook, and a second run of the same night."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from specbatch import load
from specbatch.jobs.cli.schema_documents import schemas

ROOT = Path(__file__).resolve().parents[3]
SECRET = "T0PS3CRET"
SPEC = """\
input: {datasets: ["in/{date}.parquet"], limit: 6}
generation: {max_new_tokens: 4}
results: {partitions: ["night={date}"]}
output: answers/{job}
"""

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    got: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            return None

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{SECRET}", got
        server.shutdown()
        thread.join()


def test_a_night(tmp_path: Path, webhook: tuple[str, list[dict[str, Any]]]) -> None:
    url, got = webhook
    (tmp_path / "in").mkdir()
    shutil.copy(ROOT / "examples" / "prompts.parquet", tmp_path / "in" / "2026-11-24.parquet")
    (tmp_path / "nightly.yaml").write_text(SPEC)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPECBATCH_", "RAY_"))}

    def run(*arguments: str, code: int = 0) -> tuple[str, str]:
        command = [sys.executable, "-m", "specbatch", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout, done.stderr

    store = ["--store", "store"]
    begin = ["--cron", "15 1 * * *", "--timezone", "Europe/Berlin", "--now", "2026-11-23T12:00+01:00"]
    run("schedule", "add", "nightly.yaml", *begin, *store)
    night = ["--once", "--now", "2026-11-24T01:20+01:00", "--notify", url]
    _, said = run("schedule", "run", *store, *night)
    assert "complete" in said

    output = tmp_path / "answers" / "nightly" / "night=2026-11-24"
    assert load(output).num_rows == 6
    listed = json.loads(run("schedule", "list", *store, "--now", "2026-11-24T06:00+01:00", "--format", "json")[0])
    jsonschema.validate(listed, schemas()["schedules"])
    (schedule,) = listed["schedules"]
    assert schedule["next"] == "2026-11-25T01:15:00+01:00"
    (found,) = schedule["nights"]
    assert (found["planned"], found["state"], found["exit_code"]) == ("2026-11-24T01:15:00+01:00", "complete", 0)
    assert found["output"] == str(output)
    log = (tmp_path / "store" / found["log"]).read_text()
    assert "rows 6/6" in log

    (notice,) = got
    jsonschema.validate(notice, schemas()["notice"])
    assert (notice["state"], notice["counts"]["ok"], notice["logical_date"]) == ("complete", 6, found["planned"])
    assert notice["output"] == str(output)

    # The same night by hand: the same job, which is complete.
    again = ["submit", "--config", "nightly.yaml", "--logical-date", "2026-11-24T00:15Z", "--timezone", "Europe/Berlin"]
    outcome = json.loads(run(*again, "--format", "json")[0])
    assert (outcome["output"], outcome["was_complete"]) == (str(output), True)
    shown, _ = run("schedule", "report", "nightly", *store)
    assert "all 6 rows have a completion" in shown

    stored = json.loads((output / "_specbatch" / "job.json").read_text())
    assert stored["spec"]["execution"]["logical_date"] == found["planned"]
    assert f"{output}: sound" in run("verify", str(output))[0]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET not in path.read_bytes().decode("latin-1"), path
    assert SECRET not in said
