"""The command line: its options are pinned, it is light, and bad input gets one line, a code and an exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

import specbatch
from specbatch.jobs.cli import app as cli
from specbatch.jobs.spec.settings import OPTIONS

ASSETS = Path(specbatch.__file__).parent / "assets" / "code-pair"

SUBMIT_OPTIONS = [
    "--output",
    "--prompt-column",
    "--id-column",
    "--limit",
    "--messages-column",
    "--template",
    "--system",
    "--row-params/--no-row-params",
    "--truncate-prompt",
    "--keep-columns",
    "--rename",
    "--dedupe",
    "--allow-empty/--no-allow-empty",
    "--on-bad-file",
    "--output-prefix",
    "--compression",
    "--row-group-rows",
    "--partition",
    "--target",
    "--draft",
    "--bitwise/--no-bitwise",
    "--dtype",
    "--kv-cache-dtype",
    "--quantization",
    "--tensor-parallel-size",
    "--max-new-tokens",
    "--min-new-tokens",
    "--ignore-eos/--no-ignore-eos",
    "--temperature",
    "--top-p",
    "--top-k",
    "--min-p",
    "--repetition-penalty",
    "--presence-penalty",
    "--frequency-penalty",
    "--logit-bias",
    "--stop",
    "--stop-token-ids",
    "--logprobs/--no-logprobs",
    "--seed",
    "--num-samples",
    "--seed-by",
    "--speculation",
    "--coupling",
    "--workers",
    "--batch-size",
    "--device",
    "--memory-fraction",
    "--shard-rows",
    "--max-error-rate",
    "--row-errors-ok/--no-row-errors-ok",
    "--deadline",
    "--logical-date",
    "--timezone",
    "--single-writer/--no-single-writer",
    "--address",
    "--wait/--no-wait",
    "--gpus-per-worker",
    "--cpus-per-worker",
    "--memory-per-worker",
    "--node-labels",
    "--accelerator-type",
    "--entrypoint-num-cpus",
    "--entrypoint-memory",
    "--price-per-device-hour",
    "--profile",
    "--config",
    "--set",
    "--notify",
    "--dry-run",
    "--format",
]
"""What users have in their scripts: an option may join this list, none may leave it."""


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], "prompt": ["a", "b", "c"], "note": ["x", "y", "z"]}), path)
    return str(path)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail with a code and an exit code, and gives its one line."""

    def run(code: str, exit_code: int, *arguments: str) -> str:
        assert cli.run(arguments) == exit_code
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith(f"error: {code}: ")
        return line

    return run


def test_the_options_of_submit_are_pinned() -> None:
    command = typer.main.get_command(cli.app).commands["submit"]  # type: ignore[attr-defined]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    assert sorted("/".join([*option.opts, *option.secondary_opts]) for option in options) == sorted(SUBMIT_OPTIONS)


def test_every_setting_has_an_option() -> None:
    names = {option.split("/")[0].removeprefix("--").replace("-", "_") for option in SUBMIT_OPTIONS}
    assert set(OPTIONS) == names - {"config", "set", "notify", "dry_run", "format"}


def test_the_commands_are_pinned() -> None:
    root = typer.main.get_command(cli.app)
    assert sorted(root.commands) == [  # type: ignore[attr-defined]
        "calibrate",
        "cancel",
        "config",
        "doctor",
        "explain",
        "export",
        "gc",
        "list",
        "logs",
        "plan",
        "preview",
        "repair",
        "report",
        "resume",
        "retry-failed",
        "schedule",
        "status",
        "submit",
        "verify",
    ]


EXECUTION_OPTIONS = [
    "--target",
    "--draft",
    "--speculation",
    "--workers",
    "--batch-size",
    "--device",
    "--memory-fraction",
    "--max-error-rate",
    "--row-errors-ok/--no-row-errors-ok",
    "--deadline",
    "--single-writer/--no-single-writer",
    "--address",
    "--wait/--no-wait",
    "--gpus-per-worker",
    "--cpus-per-worker",
    "--memory-per-worker",
    "--node-labels",
    "--accelerator-type",
    "--entrypoint-num-cpus",
    "--entrypoint-memory",
    "--price-per-device-hour",
    "--profile",
    "--format",
]


@pytest.mark.parametrize(
    ("name", "own"),
    [("resume", []), ("retry-failed", ["--codes"]), ("repair", ["--output"])],
)
def test_commands_that_run_on_an_output_take_the_execution_options_only(name: str, own: list[str]) -> None:
    command = typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    names = ["/".join([*option.opts, *option.secondary_opts]) for option in options]
    assert sorted(names) == sorted([*own, *EXECUTION_OPTIONS])


def imported(tmp_path: Path, *arguments: str) -> set[str]:
    """Heavy libraries that a command imports."""
    script = (
        "import sys\nfrom specbatch.jobs.cli import app as cli\ncli.run(sys.argv[1:])\n"
        "heavy = ('torch', 'transformers', 'pyarrow', 'ray', 'numpy', 'boto3', 'botocore')\n"
        "print('HEAVY', *(name for name in heavy if name in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["submit", "--help"], ["resume", "--help"], ["doctor", "--help"], ["config", "show"]],
)
def test_help_imports_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    assert imported(tmp_path, *arguments) == set()


@pytest.mark.parametrize(
    "command", ["plan", "submit --dry-run", "report", "status", "verify", "cancel", "gc", "doctor --draft none"]
)
def test_reading_commands_import_neither_torch_nor_ray(tmp_path: Path, dataset: str, command: str) -> None:
    assert not imported(tmp_path, *command.split(), dataset) & {"torch", "transformers", "ray", "boto3", "botocore"}


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, specbatch; print(*(n for n in ('torch', 'ray', 'pyarrow', 'pydantic') if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from specbatch import __version__

    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"specbatch {__version__}\n"


def test_plan_prints_settings_with_origins_and_writes_nothing(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECBATCH_SEED", "5")
    assert cli.run(["plan", dataset, "--max-new-tokens", "7", "--set", "generation.top_k=3", "--shard-rows", "2"]) == 0
    text = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert lines["generation.max_new_tokens"] == ["7", "--max-new-tokens"]
    assert lines["generation.top_k"] == ["3", "--set"]
    assert lines["generation.seed"] == ["5", "SPECBATCH_SEED"]
    assert "2 shards of 1 to 2 rows" in text
    assert cli.run(["submit", dataset, "--dry-run", "--max-new-tokens", "7", "--set", "generation.top_k=3"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.parquet"]


def test_plan_as_json(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", dataset, "--format", "json", "--draft", "none"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rows"] == 3
    assert document["execution"]["speculation"] == "auto"
    assert document["models"]["draft"] is None
    assert document["output"].endswith(f"prompts-{document['identity']['S'][:8]}")
    assert document["settings"]["models.draft"] == {"value": "none", "origin": "--draft"}


def test_config_show_reads_a_job_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("execution:\n  speculation: off\n")
    assert cli.run(["config", "show", "--config", str(job), "--format", "json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["execution.speculation"] == {"value": "off", "origin": str(job)}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--sped", "1"], "--sped"),
        (["--limit", "many"], "--limit"),
        (["--limit", "0"], "input.limit is 0 (from --limit)"),
        (["--speculation", "fast"], "it must be auto, off, or a fixed K from 1 to 16"),
        (["--speculation", "99"], "off, or a fixed K from 1 to 16"),
        (["--device", "tpu"], "--device"),
        (["--set", "generation.sead=1"], "did you mean generation.seed?"),
        (["--config", "missing.yaml"], "No such file"),
        (["--speculation", "3", "--draft", "none"], "--draft none was given"),
        (["--temperature", "-1"], "generation.temperature is -1.0"),
        (["--format", "xml"], "--format"),
    ],
)
def test_wrong_usage(refused: Callable[..., str], dataset: str, arguments: list[str], expected: str) -> None:
    assert expected in refused("JOB_CONFIG", 2, "submit", dataset, *arguments)


def test_bad_datasets(refused: Callable[..., str], tmp_path: Path, dataset: str) -> None:
    text = tmp_path / "text.parquet"
    text.write_text("not parquet at all")
    empty = tmp_path / "empty.parquet"
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), empty)
    assert "missing.parquet" in refused("JOB_INPUT_MISSING", 2, "submit", str(tmp_path / "missing.parquet"))
    assert "text.parquet" in refused("JOB_INPUT_CORRUPT", 2, "submit", str(text))
    assert "no rows" in refused("JOB_INPUT_EMPTY", 2, "submit", str(empty))
    assert "no dataset" in refused("JOB_INPUT_EMPTY", 2, "submit")
    assert "gs://" in refused("JOB_URI_INVALID", 2, "submit", "gs://bucket/data.parquet")
    assert "secret" not in refused("JOB_URI_INVALID", 2, "submit", "s3://key:secret@bucket/data.parquet")
    line = refused("JOB_COLUMN_MISSING", 2, "submit", dataset, "--prompt-column", "question")
    assert all(f"'{column}'" in line for column in ("question", "id", "prompt", "note"))
    refused("JOB_COLUMN_MISSING", 2, "submit", dataset, "--id-column", "key")
    refused("JOB_COLUMN_TYPE", 2, "submit", dataset, "--prompt-column", "id")


def test_bad_models(refused: Callable[..., str], tmp_path: Path, dataset: str) -> None:
    pickled, foreign = tmp_path / "pickled", tmp_path / "foreign"
    shutil.copytree(ASSETS / "draft-taught", pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    shutil.copytree(ASSETS / "draft-taught", foreign)
    tokenizer = json.loads((foreign / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = list(vocab)[-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (foreign / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused("JOB_UNSAFE_WEIGHTS", 2, "submit", dataset, "--draft", str(pickled))
    assert "tokenizers" in refused("JOB_VOCAB_MISMATCH", 2, "submit", dataset, "--draft", str(foreign))
    refused("JOB_MODEL_MISSING", 2, "submit", dataset, "--target", str(tmp_path / "nothing"))
    refused("JOB_MODEL_MISSING", 2, "submit", dataset, "--target", "nobody/no-such-model")


def test_bad_outputs(refused: Callable[..., str], tmp_path: Path, dataset: str) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    assert "notes.txt" in refused("JOB_PREFIX_TAKEN", 2, "submit", dataset, "--output", str(taken))
    refused("JOB_PREFIX_TAKEN", 2, "plan", dataset, "--output", str(taken))
    refused("JOB_PREFIX_TAKEN", 2, "submit", dataset, "--output", str(taken / "notes.txt"))
    refused("JOB_URI_OVERLAP", 2, "submit", dataset, "--output", dataset)
    refused("JOB_URI_OVERLAP", 2, "submit", str(tmp_path), "--output", str(tmp_path))
    refused("JOB_OUTPUT_UNWRITABLE", 2, "submit", dataset, "--output", str(taken / "notes.txt" / "out"))
    refused("JOB_OUTPUT_MISSING", 2, "report", str(tmp_path / "nowhere"))
    refused("JOB_OUTPUT_MISSING", 2, "status", str(tmp_path / "nowhere"))
    refused("JOB_OUTPUT_MISSING", 2, "verify", str(tmp_path / "nowhere"))


def test_a_default_output_that_cannot_be_written_asks_for_another(
    refused: Callable[..., str], dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder below a file stands in for one without permission: the tests may run as root."""
    from specbatch.jobs.planning import prepare

    monkeypatch.setattr(prepare, "_default_output", lambda *_: f"{dataset}/below")
    assert "--output" in refused("JOB_OUTPUT_UNWRITABLE", 2, "submit", dataset)


def test_no_capacity(refused: Callable[..., str], dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from specbatch.jobs.planning import execution

    monkeypatch.setattr(execution, "count_cuda_devices", lambda: 0)
    refused("JOB_NO_CAPACITY", 5, "plan", dataset, "--device", "cuda")
    monkeypatch.setattr(execution, "count_cuda_devices", lambda: 1)
    refused("JOB_NO_CAPACITY", 5, "plan", dataset, "--device", "cuda", "--workers", "2")


def test_an_unexpected_exception_becomes_one_line_and_a_crash_log(
    refused: Callable[..., str], dataset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from specbatch.jobs.planning import prepare

    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("a fault of ours\nwith two lines")

    monkeypatch.setattr(prepare, "cut_shards", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    line = refused("JOB_INTERNAL", 1, "plan", dataset)
    log = Path(line.rsplit(" ", 1)[-1])
    assert "Traceback" in log.read_text()


def test_debug_shows_the_traceback(
    dataset: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECBATCH_DEBUG", "1")
    assert cli.run(["plan", dataset, "--limit", "0"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_control_characters_in_names_do_not_reach_the_terminal(refused: Callable[..., str]) -> None:
    assert "\x1b" not in refused("JOB_INPUT_MISSING", 2, "plan", "/nowhere/\x1b]red.parquet")


def test_a_closed_pipe_is_no_crash(dataset: str) -> None:
    script = f"{sys.executable} -m specbatch plan {dataset} | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_the_help_shows_options_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["submit", "--help"]) == 0
    text = capsys.readouterr().out
    titles = [line.strip(":") for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == [
        "Arguments",
        "Data",
        "Results",
        "Models",
        "Generation",
        "Speculation",
        "Resources",
        "Cluster",
        "Job",
        "Command",
        "Examples",
    ]
    generation = text.partition("Generation:")[2].partition("Speculation:")[0]
    assert "--logit-bias" in generation
    assert "--batch-size" not in generation


def test_plan_prints_the_memory_with_and_without_the_draft(
    dataset: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from specbatch.jobs.planning import execution

    monkeypatch.setattr(execution, "host_available_bytes", lambda: 2_000_000_000)
    assert cli.run(["plan", dataset, "--format", "json", "--max-new-tokens", "44"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert memory["uses_draft"] is True
    assert memory["with_draft"]["batch_size"] == memory["without_draft"]["batch_size"] == 32
    assert memory["with_draft"]["row_tokens"] == 300
    assert memory["with_draft"]["row_capacity"] < memory["without_draft"]["row_capacity"]
    names = [entry["name"] for entry in memory["with_draft"]["entries"]]
    assert "draft weights" in names
    assert "draft KV" in names

    assert cli.run(["plan", dataset]) == 0
    text = capsys.readouterr().out
    assert "2.0 GB are free for each worker, 1.8 GB may be used" in text
    assert "with draft without draft" in " ".join(text.split())


def test_models_that_do_not_fit(
    refused: Callable[..., str], dataset: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from specbatch.jobs.planning import execution
    from specbatch.specdec.models.folders import locate_model
    from specbatch.specdec.models.memory import make_ledger

    target, draft = locate_model("code-pair/target"), locate_model("code-pair/draft-taught")
    alone = make_ledger(target, None, dtype="float32", available_bytes=0, row_tokens=384).fixed_bytes
    pair = make_ledger(target, draft, dtype="float32", available_bytes=0, row_tokens=384).fixed_bytes
    monkeypatch.setattr(execution, "host_available_bytes", lambda: int((alone + pair) / 2 / 0.9))
    assert cli.run(["plan", dataset]) == 0
    text = capsys.readouterr().out
    assert "decoding without the draft" in text
    assert "draft        none" in text
    assert "--speculation auto" in refused("JOB_MEMORY", 5, "plan", dataset, "--speculation", "3")
    assert "target weights 25.8 MB" in refused("JOB_MEMORY", 5, "plan", dataset, "--memory-fraction", "0.5")


def test_workers_share_the_memory(
    dataset: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from specbatch.jobs.planning import execution

    monkeypatch.setattr(execution, "host_available_bytes", lambda: 4_000_000_000)
    assert cli.run(["plan", dataset, "--workers", "4", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["without_draft"]["available_bytes"] == 1_000_000_000


def test_lists_on_the_command_line(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--stop", "a, b", "--stop", "[c]", "--logit-bias", "3:1,4:-2", "--logit-bias", "5:0.5"]
    assert cli.run(["plan", dataset, *options, "--format", "json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["generation.stop"] == {"value": ["a, b", "[c]"], "origin": "--stop"}
    assert settings["generation.logit_bias"]["value"] == [[3, 1.0], [4, -2.0], [5, 0.5]]
    assert cli.run(["config", "show", *options]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "'a, b', '[c]'" in lines["generation.stop"]
    assert "3:1, 4:-2, 5:0.5" in lines["generation.logit_bias"]
