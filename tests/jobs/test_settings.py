"""Settings: precedence, origins, plain YAML, and one clear line for every wrong value."""

from __future__ import annotations

from typing import Any

import pytest

from specbatch.jobs.settings import (
    MAX_JOB_FILE_BYTES,
    OPTIONS,
    PATHS,
    environment_layer,
    file_layer,
    flag_layer,
    from_text,
    read_job_file,
    resolve,
    set_layer,
)
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError
from specbatch.schemas.spec import JobSpec


def refusal(call: Any, *arguments: Any) -> str:
    """The message of the JOB_CONFIG error that a call raises."""
    with pytest.raises(SpecbatchError) as caught:
        call(*arguments)
    assert caught.value.code is ErrorCode.JOB_CONFIG
    assert caught.value.exit_code is ExitCode.USAGE
    assert "\n" not in caught.value.message
    return caught.value.message


def test_paths_name_every_field_of_the_spec_and_nothing_else() -> None:
    document = JobSpec().model_dump()
    fields = {"output"} | {
        f"{section}.{key}" for section in document if section != "output" for key in document[section]
    }
    assert set(PATHS) == fields
    assert len(OPTIONS) == len(PATHS) - 1


def test_no_layer_gives_the_defaults() -> None:
    settings = resolve([])
    assert settings.spec == JobSpec()
    assert set(settings.origins.values()) == {"default"}


def test_the_first_layer_that_names_a_path_decides_it() -> None:
    names = ["temperature", "seed", "top_k", "max_new_tokens"]
    file = file_layer(b"generation: {temperature: 0.1, seed: 1, top_k: 1, max_new_tokens: 1}", "job.yaml")
    environment = environment_layer({"SPECBATCH_TEMPERATURE": "0.2", "SPECBATCH_SEED": "2", "SPECBATCH_TOP_K": "2"})
    assignments = set_layer(["generation.temperature=0.3", "generation.seed=3"])
    flags = flag_layer({"temperature": 0.4})
    settings = resolve([flags, assignments, environment, file])
    generation = settings.spec.generation
    assert (generation.temperature, generation.seed, generation.top_k, generation.max_new_tokens) == (0.4, 3, 2, 1)
    assert [settings.origins[f"generation.{name}"] for name in names] == [
        "--temperature",
        "--set",
        "SPECBATCH_TOP_K",
        "job.yaml",
    ]
    assert settings.origins["generation.top_p"] == "default"


def test_a_later_assignment_holds() -> None:
    assert resolve([set_layer(["generation.seed=1", "generation.seed=2"])]).spec.generation.seed == 2


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("generation.seed", "7", 7),
        ("generation.temperature", "1e-1", 0.1),
        ("generation.ignore_eos", "true", True),
        ("generation.stop_token_ids", "1, 2,3", [1, 2, 3]),
        ("generation.stop_token_ids", "[4]", [4]),
        ("execution.speculation", "off", "off"),
        ("execution.workers", "auto", "auto"),
        ("input.prompt_column", "007", "007"),
        ("input.prompt_column", "true", "true"),
        ("models.draft", "none", "none"),
        ("input.limit", "null", None),
    ],
)
def test_text_from_a_shell(path: str, text: str, value: Any) -> None:
    assert from_text(path, text) == value


def test_empty_and_foreign_variables_are_not_settings() -> None:
    environment = {"SPECBATCH_SEED": "", "SPECBATCH_FAILPOINT": "x:y:1:kill", "SPECBATCH_DEBUG": "1", "SEED": "3"}
    assert environment_layer(environment).values == {}


def test_a_misspelt_variable_is_refused_with_a_suggestion() -> None:
    message = refusal(environment_layer, {"SPECBATCH_SEEED": "1"})
    assert "SPECBATCH_SEEED" in message
    assert "SPECBATCH_SEED?" in message


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ({"temperature": 200.0}, "generation.temperature is 200.0 (from --temperature); it must be less than"),
        ({"temperature": 0.001}, "it must be 0, or from 0.01 to 100"),
        ({"temperature": float("nan")}, "generation.temperature is nan"),
        ({"max_new_tokens": 0}, "generation.max_new_tokens is 0 (from --max-new-tokens); it must be greater than"),
        ({"speculation": "17"}, "execution.speculation is 17 (from --speculation); it must be auto, off, or a fixed K"),
        ({"speculation": "fast"}, "it must be auto, off, or a fixed K from 1 to 16"),
        ({"workers": "many"}, "execution.workers is 'many' (from --workers); it must be auto, or a whole number"),
        ({"device": "tpu"}, "execution.device is 'tpu'"),
        ({"stop_token_ids": "1,x"}, "a list of at most 64 token ids"),
        ({"stop_token_ids": ",".join("1" * 65)}, "a list of at most 64 token ids"),
        ({"seed": -1}, "generation.seed is -1"),
        ({"seed": 1 << 63}, "generation.seed is 9223372036854775808"),
        ({"row_errors_ok": 1}, "execution.row_errors_ok is 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_origin_and_rule(layer: dict[str, Any], expected: str) -> None:
    assert expected in refusal(resolve, [flag_layer(layer)])


def test_speculation_off_and_a_number() -> None:
    assert resolve([flag_layer({"speculation": "off"})]).spec.execution.speculation == "off"
    assert resolve([flag_layer({"speculation": "3"})]).spec.execution.speculation == 3


def test_yaml_says_what_it_looks_like() -> None:
    text = b"""
output: out
input:
  datasets: [a.parquet, b.parquet]
  prompt_column: "123"
execution:
  speculation: off
generation:
models: {draft: none}
"""
    spec = resolve([file_layer(text, "job.yaml")]).spec
    assert spec.execution.speculation == "off"
    assert spec.input.datasets == ("a.parquet", "b.parquet")
    assert spec.input.prompt_column == "123"
    assert (spec.output, spec.models.draft) == ("out", "none")
    assert file_layer(b"", "job.yaml").values == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"generation: {seed: 1, seed: 2}", "line 1: key 'seed' appears twice"),
        (b"generation: {sed: 1}", "generation.sed is not a setting; did you mean generation.seed?"),
        (b"generate: {seed: 1}", "generate is not a setting"),
        (b"generation: 3", "generation must hold settings, not 3"),
        (b"- a", "it must hold sections"),
        (b"a: &x 1\nb: *x", "line 2: aliases are not taken"),
        (b"output: !!python/object/apply:os.system ['true']", "line 1: tags are not taken"),
        (b"output: [", "line 1"),
        (b"1: 2", "key 1 is not a name"),
        (b"output: \xff", "--config job.yaml"),
        (b"[" * 5000, "nested too deeply"),
        (b"input: {datasets: [" + b"a," * 30_000 + b"]}", "more than 20000 values"),
    ],
)
def test_a_bad_job_file_is_refused_in_one_line(text: bytes, expected: str) -> None:
    assert expected in refusal(file_layer, text, "job.yaml")


def test_a_job_file_must_exist_and_be_small(tmp_path: Any) -> None:
    assert "No such file" in refusal(read_job_file, tmp_path / "missing.yaml")
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MAX_JOB_FILE_BYTES + 1))
    assert "larger than" in refusal(read_job_file, large)


def test_bad_assignments() -> None:
    assert "path=value" in refusal(set_layer, ["generation.seed"])
    assert "generation.sead is not a setting" in refusal(set_layer, ["generation.sead=1"])
    assert "'sead' is not a setting" in refusal(flag_layer, {"sead": 1})
