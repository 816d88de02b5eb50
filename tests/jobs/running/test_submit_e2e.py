"""Whole jobs on the bundled pair: a real Ray, real processes, real kills. A Ray costs seconds, so runs are shared."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from specbatch import load
from specbatch.jobs.verify.verify import verify_output
from specbatch.jobs.watching.logs import read_log

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_ROWS = 24
DEADLINE_SECONDS = 400.0
TEXT_OPTIONS = ["--max-new-tokens", "12", "--temperature", "0.7", "--seed", "3", "--shard-rows", "4"]


@dataclass(frozen=True)
class Place:
    """A folder to work in, with a home and a folder for temporary files of its own."""

    root: Path
    dataset: Path
    temporary: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPECBATCH_", "RAY_"))}
        return {**kept, "HOME": str(self.root / "home"), "TMPDIR": str(self.temporary)}

    def start(self, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(Path(sys.executable).parent / "specbatch"), *arguments],
            cwd=self.root / "cwd",
            env={**self.environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
        process = self.start(*arguments, environment=environment)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
        return process.returncode, out, err


def make_place(root: Path, prompts: list[str | None]) -> Place:
    """The current directory holds a package and a module that would break everything if they were imported."""
    for name in ("home", "cwd/jobs"):
        (root / name).mkdir(parents=True)
    for name in ("cwd/jobs/__init__.py", "cwd/torch.py", "cwd/pyarrow.py"):
        (root / name).write_text("raise SystemExit('this is not the module you want')\n")
    dataset = root / "prompts.parquet"
    pq.write_table(pa.table({"key": [f"k{i}" for i in range(len(prompts))], "prompt": prompts}), dataset)
    # Ray refuses long names of folders for temporary files, and pytest's are long.
    temporary = Path(tempfile.mkdtemp(prefix="sb", dir="/tmp"))
    _made.append(temporary)
    return Place(root, dataset, temporary)


_made: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def _clean_up() -> Iterator[None]:
    yield
    for folder in _made:
        shutil.rmtree(folder, ignore_errors=True)


def prompts(count: int) -> list[str | None]:
    nouns = ["the sum", "a list", "the path", "an error", "the name", "a copy", "a tuple", "the first"]
    return [f"def f{i}(x):\n    # Return {nouns[i % len(nouns)]} of {i} x.\n    " for i in range(count)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("e2e"), prompts(NUM_ROWS))


@pytest.fixture(scope="module")
def taught(place: Place) -> tuple[Path, dict[str, Any], str]:
    """One job with two workers and the taught draft: (output, the JSON on stdout, stderr).

    Each worker is stopped before its first part and goes on once both are: one that is ready late has work left.
    """
    output = place.root / "taught"
    arguments = ["submit", str(place.dataset), "--output", str(output), "--workers", "2", "--format", "json"]
    process = place.start(*arguments, *TEXT_OPTIONS, environment={"SPECBATCH_FAILPOINT": "part_create:before:1:stop"})
    wait_for(lambda: len(stopped_in(place)) == 2, process)
    for pid in stopped_in(place):
        os.kill(pid, signal.SIGCONT)
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, err
    return output, json.loads(out), err


def read_run(output: Path, epoch: int) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((output / "_specbatch" / "runs" / f"{epoch}.json").read_bytes())
    return record


def processes_of(place: Place) -> Iterator[tuple[int, str, str]]:
    """Processes that were started from this place, as pid, state and command: their environment names its home."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"HOME={place.root / 'home'}".encode() in path.read_bytes():
                state = (path.parent / "stat").read_text().rpartition(")")[2].split()[0]
                command = (path.parent / "cmdline").read_bytes().decode(errors="replace").strip("\0")
                yield int(path.parent.name), state, command
        except OSError:
            continue


def workers_of(place: Place) -> list[str]:
    return [command for _, _, command in processes_of(place) if "Worker" in command]


def stopped_in(place: Place) -> list[int]:
    return [pid for pid, state, _ in processes_of(place) if state == "T"]


def part_names(output: Path) -> list[str]:
    folder = output / "data"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Until the condition holds; fails at once when the process ends first."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert process.poll() is None, f"it ended too early: {process.communicate()}"
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail("it took too long")
        time.sleep(0.05)


def completions(output: Path) -> list[tuple[Any, ...]]:
    table = load(output)
    columns = ("row_id", "key", "row_seed", "completion", "completion_token_ids", "finish_reason", "min_margin")
    return list(zip(*(table.column(name).to_pylist() for name in columns[:-1]), strict=True))


def test_the_job_has_two_processes_and_each_holds_both_models(taught: tuple[Path, dict[str, Any], str]) -> None:
    output, document, _ = taught
    record = read_run(output, 1)
    workers = record["workers"]
    assert len(workers) == 2
    assert len({worker["pid"] for worker in workers} | {record["pid"]}) == 3
    assert all(worker["memory"]["target_bytes"] > worker["memory"]["draft_bytes"] > 0 for worker in workers)
    assert sum(worker["rows"] for worker in workers) == NUM_ROWS
    # On a busy machine a shard may look stuck, and is given to the other worker too.
    num_again = [line["event"] for line in read_log(str(output))].count("shard_again")
    assert (record["outcome"], record["attempts"], record["restarts"]) == ("complete", 6 + num_again, 0)
    assert document["counts"] == {"rows": 24, "results": 24, "ok": 24, "errors": 0, "errors_by_code": {}}
    assert len(json.loads((output / "manifest.json").read_bytes())["observed"]["memory"]) == 2


def test_the_output_is_sound_and_holds_every_row_once(taught: tuple[Path, dict[str, Any], str]) -> None:
    output, _, _ = taught
    verdict = verify_output(str(output))
    assert (verdict.state, verdict.problems) == ("sound", ())
    rows = completions(output)
    assert [row[0] for row in rows] == list(range(NUM_ROWS))
    assert [row[1] for row in rows] == [f"k{i}" for i in range(NUM_ROWS)]
    assert len(part_names(output)) == 6


def test_nothing_is_left_outside_the_output(place: Place, taught: tuple[Path, dict[str, Any], str]) -> None:
    assert list((place.root / "home").rglob("*")) == []
    assert list(place.temporary.iterdir()) == []
    assert sorted(path.name for path in (place.root / "cwd").iterdir()) == ["jobs", "pyarrow.py", "torch.py"]


def test_progress_is_told_in_plain_lines_and_the_progress_file(taught: tuple[Path, dict[str, Any], str]) -> None:
    output, _, err = taught
    assert "24/24" in err
    assert "\x1b" not in err
    progress = json.loads((output / "_specbatch" / "progress.json").read_bytes())
    assert (progress["state"], progress["rows_done"], progress["parts_done"]) == ("complete", NUM_ROWS, 6)
    assert (progress["job_rows_done"], progress["remaining_tokens"], progress["eta_seconds"]) == (NUM_ROWS, 0, 0.0)
    assert sum(progress["k_shares"].values()) == pytest.approx(1, abs=0.01)
    assert [line["event"] for line in read_log(str(output)) if line["event"] != "shard_again"] == [
        "run_started",
        *["worker_starting"] * 2,
        *["worker_ready"] * 2,
        "run_ended",
    ]


def test_every_row_has_its_samples_and_each_can_be_made_again_alone(place: Place) -> None:
    from specbatch.schemas.spec import GenerationSpec
    from specbatch.specdec import Engine

    output = place.root / "samples"
    options = ["--limit", "5", "--num-samples", "3", "--logprobs", "--stop", "\n", "--presence-penalty", "0.5"]
    code, out, err = place.run(
        "submit", str(place.dataset), "--output", str(output), "--format", "json", *TEXT_OPTIONS, *options
    )
    assert code == 0, err
    counts = {"rows": 5, "results": 15, "ok": 15, "errors": 0, "errors_by_code": {}}
    assert json.loads(out)["counts"] == counts
    assert verify_output(str(output)).problems == ()
    assert read_run(output, 1)["workers"][0]["rows"] == 5
    rows = load(output).to_pylist()
    assert [(row["row_id"], row["sample_index"]) for row in rows] == [(i, s) for i in range(5) for s in range(3)]
    assert len({row["row_seed"] for row in rows}) == 15
    assert len({row["completion"] for row in rows if row["row_id"] == 0}) > 1
    generation = GenerationSpec(max_new_tokens=12, temperature=0.7, stop=("\n",), presence_penalty=0.5, logprobs=True)
    engine = Engine.from_pretrained("code-pair/target", max_batch_size=1, speculation="off")
    alone = engine.generate(
        [row["prompt"] for row in rows], [generation.sampling_params(row["row_seed"]) for row in rows]
    )
    assert [one.text for one in alone] == [row["completion"] for row in rows]
    assert [list(one.token_ids) for one in alone] == [row["completion_token_ids"] for row in rows]
    for one, row in zip(alone, rows, strict=True):
        assert row["logprobs"] == pytest.approx(one.logprobs, abs=1e-3)


def test_a_finished_job_says_so_without_starting_anything(
    place: Place, taught: tuple[Path, dict[str, Any], str]
) -> None:
    output, _, _ = taught
    changed = place.temporary.stat().st_mtime_ns  # Ray makes its folder there, and removes it
    code, out, err = place.run(
        "submit",
        str(place.dataset),
        "--output",
        str(output),
        "--draft",
        "none",
        "--shard-rows",
        "9",
        *TEXT_OPTIONS[:-2],
    )
    assert code == 0
    assert "finished by an earlier run" in err
    assert f"{output}/data/*.parquet" in out.splitlines()[-2]
    assert out.splitlines()[-1].endswith(f"specbatch report {output}")
    assert [path.name for path in (output / "_specbatch" / "runs").iterdir()] == ["1.json"]
    assert place.temporary.stat().st_mtime_ns == changed
    assert workers_of(place) == []


def test_other_settings_are_refused_with_the_difference(place: Place, taught: tuple[Path, dict[str, Any], str]) -> None:
    output, _, _ = taught
    code, out, err = place.run("submit", str(place.dataset), "--output", str(output), *TEXT_OPTIONS, "--seed", "4")
    assert (code, out) == (2, "")
    assert "JOB_SPEC_CHANGED" in err
    assert "generation.seed: 3 → 4" in err
    assert len(err.splitlines()) == 1


def test_the_text_does_not_depend_on_the_draft(place: Place, taught: tuple[Path, dict[str, Any], str]) -> None:
    """Without a draft from the command line, with the stranger from Python, in other batches and by one worker."""
    plain, stranger = place.root / "plain", place.root / "stranger"
    options = ["--output", str(plain), "--draft", "none", "--batch-size", "3", "--format", "quiet", *TEXT_OPTIONS]
    code, out, err = place.run("submit", str(place.dataset), *options)
    assert (code, out.strip(), err) == (0, str(plain), "")
    script = (
        "import sys\nfrom specbatch import submit\n"
        "outcome = submit(sys.argv[1], output=sys.argv[2], progress='quiet', draft='code-pair/draft-stranger',\n"
        "    max_new_tokens=12, temperature=0.7, seed=3, shard_rows=4, batch_size=5)\n"
        "sys.exit(int(outcome.exit_code))\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(place.dataset), str(stranger)],
        env=place.environment,
        cwd=place.root / "cwd" / "jobs",
        check=True,
        timeout=DEADLINE_SECONDS,
    )
    output, _, _ = taught
    assert completions(plain) == completions(output)
    assert completions(stranger) == completions(output)
    job_ids = {json.loads((folder / "manifest.json").read_bytes())["job_id"] for folder in (plain, stranger, output)}
    assert len(job_ids) == 3


SLOW_OPTIONS = ["--max-new-tokens", "24", "--ignore-eos", "--shard-rows", "2", "--batch-size", "2"]


def test_a_killed_driver_takes_its_workers_along_and_a_rerun_does_only_what_is_missing(tmp_path: Path) -> None:
    num_parts = 40  # so many that the workers cannot finish in the moment before they notice
    place = make_place(tmp_path, prompts(2 * num_parts))
    output = place.root / "out"
    arguments = ["submit", str(place.dataset), "--output", str(output), *SLOW_OPTIONS]
    process = place.start(*arguments)
    wait_for(lambda: len(part_names(output)) >= 3, process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while workers_of(place):
        assert time.monotonic() < deadline, workers_of(place)
        time.sleep(0.2)
    kept = {name: (output / "data" / name).stat().st_ino for name in part_names(output)}
    assert 3 <= len(kept) < num_parts
    assert not (output / "manifest.json").exists()

    code, _, err = place.run(*arguments)
    assert code == 0, err
    assert f"{len(kept)} of {num_parts} parts are there" in err
    assert {name: (output / "data" / name).stat().st_ino for name in kept} == kept
    record = read_run(output, 2)
    assert (record["parts_found"], record["attempts"]) == (len(kept), num_parts - len(kept))
    assert read_run(output, 1)["outcome"] == "running", "nobody was left to write another"
    assert verify_output(str(output)).state == "sound"
    assert list(place.temporary.iterdir()) == [], "the second run sweeps up after the killed one"


def test_a_held_output_is_refused_and_an_interrupted_job_goes_on(tmp_path: Path) -> None:
    """The job is far too long to end by itself: it is drained once, resumed, then stopped at once."""
    place = make_place(tmp_path, prompts(2000))
    output = place.root / "out"
    arguments = ["submit", str(place.dataset), "--output", str(output), *SLOW_OPTIONS]
    process = place.start(*arguments)
    wait_for(lambda: len(part_names(output)) >= 1, process)

    code, out, err = place.run(*arguments)
    assert (code, out) == (6, "")
    assert "error: JOB_HELD: " in err

    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does: Ray's processes get it too
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 130, err
    assert "go on with: specbatch" in err
    assert "Traceback" not in err
    assert out == ""
    record = read_run(output, 1)
    kept = part_names(output)
    assert record["outcome"] == "interrupted"
    assert sum(worker["rows"] for worker in record["workers"]) == 2 * len(kept), "drained: no decoded row was lost"
    assert verify_output(str(output)).state == "incomplete"

    process = place.start(*arguments, "--format", "jsonl")
    wait_for(lambda: len(part_names(output)) >= len(kept) + 2, process)
    assert set(kept) < set(part_names(output))
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)  # two signals at the same moment are one
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert {json.loads(line)["event"] for line in out.splitlines()} <= {"progress", "note", "end"}
    record = read_run(output, 2)
    assert (record["parts_found"], record["outcome"]) == (len(kept), "interrupted")
    assert json.loads((output / "_specbatch" / "lease.json").read_bytes())["released"] is True


def test_a_lost_cluster_is_told_at_once(tmp_path: Path) -> None:
    place = make_place(tmp_path, prompts(2000))
    output = place.root / "out"
    process = place.start("submit", str(place.dataset), "--output", str(output), *SLOW_OPTIONS)
    wait_for(lambda: len(part_names(output)) >= 1, process)
    listing = subprocess.run(["pgrep", "-P", str(process.pid), "raylet"], capture_output=True, text=True, check=True)
    os.kill(int(listing.stdout), signal.SIGKILL)
    _, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 8, err
    assert "error: JOB_CLUSTER_LOST: " in err.splitlines()[-1]
    assert read_run(output, 1)["outcome"] == "failed"


def test_a_killed_worker_is_replaced_and_error_rows_have_their_exit_code(tmp_path: Path) -> None:
    rows = prompts(8)
    rows[5] = None
    place = make_place(tmp_path, rows)
    output = tmp_path / "out"
    arguments = ["submit", str(place.dataset), "--output", str(output), "--max-new-tokens", "8", "--shard-rows", "2"]
    code, _, err = place.run(*arguments, environment={"SPECBATCH_FAILPOINT": "part_create:before:3:kill"})
    assert code == 3, err
    assert "worker 0 died" in err
    record = read_run(output, 1)
    assert record["restarts"] == 1
    log = list(read_log(str(output)))
    assert [line["message"] for line in log if line["event"] == "worker_died"] == [
        line for line in err.splitlines() if line.startswith("worker 0 died")
    ]
    assert {"worker_died", "run_ended"} <= {line["event"] for line in read_log(str(output), epoch=1)}
    progress = json.loads((output / "_specbatch" / "progress.json").read_bytes())
    assert (progress["errors_by_code"], progress["num_errors"]) == ({"ROW_PROMPT_NULL": 1}, 1)
    assert [note["level"] for note in progress["notes"]].count("warning") >= 1
    assert verify_output(str(output)).state == "sound"
    assert load(output).column("error_code").to_pylist().count("ROW_PROMPT_NULL") == 1
    assert place.run(*arguments)[0] == 3
    assert place.run(*arguments, "--row-errors-ok")[0] == 0


def test_a_signal_while_ray_starts_and_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    place = make_place(tmp_path, prompts(4))
    output = tmp_path / "out"
    broken = tmp_path / "broken"
    target = Path(load.__code__.co_filename).parents[1] / "assets" / "code-pair" / "target"
    broken.mkdir()
    for path in target.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    arguments = ["submit", str(place.dataset), "--output", str(output), "--target", str(broken), "--draft", "none"]

    process = place.start(*arguments)
    wait_for(lambda: (output / "_specbatch" / "runs" / "1.json").exists(), process)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 143, err
    assert read_run(output, 1)["outcome"] == "interrupted"

    code, out, err = place.run(*arguments)
    assert (code, out) == (1, "")
    assert [line for line in err.splitlines() if line.startswith("error: ")] == err.splitlines()[-1:]
    assert "error: JOB_MODEL_LOAD: " in err
    assert "Traceback" not in err
    assert read_run(output, 2)["outcome"] == "failed"
    assert list(place.temporary.iterdir()) == []
