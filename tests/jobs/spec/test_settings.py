"""Settings: precedence, origins, plain YAML, and one clear line for every wrong value."""

from __future__ import annotations

from typing import Any

import pytest

from specbatch.jobs.spec.settings import (
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
    to_texts,
)
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError
from specbatch.schemas.sampling import SamplingParams
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
        ("generation.logit_bias", "13:-100, 4:2.5", ["13:-100", "4:2.5"]),
        ("generation.stop", "a, b", ["a, b"]),
        ("generation.stop", "[/INST]", ["[/INST]"]),
        ("generation.stop", '["a", "b,c"]', ["a", "b,c"]),
        ("generation.coupling", "seed", "seed"),
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
        ({"logit_bias": "1:2,3"}, "it must be a list of ID:BIAS"),
        ({"logit_bias": "1:2,1:3"}, "generation.logit_bias is ['1:2', '1:3'] (from --logit-bias)"),
        ({"logit_bias": "1:101"}, "each bias from -100 to 100"),
        ({"stop": [""]}, "a list of at most 16 texts of 1 to 256 characters"),
        ({"num_samples": 2}, "(from --num-samples); it must be 1 at temperature 0, where all samples are equal"),
        ({"num_samples": 0, "temperature": 1.0}, "generation.num_samples is 0"),
        ({"min_new_tokens": 200}, "min_new_tokens is 200; it must be from 0 to max_new_tokens (128)"),
        ({"repetition_penalty": 0.0}, "generation.repetition_penalty is 0.0"),
        ({"coupling": "lossy"}, "generation.coupling is 'lossy'"),
        ({"memory_fraction": 1.5}, "execution.memory_fraction is 1.5"),
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


def test_generation_settings_reach_the_sampling_of_a_row() -> None:
    options = {
        "temperature": 0.5,
        "min_new_tokens": 2,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": "13:-100,4:2.5",
        "stop": ["a,b", "c"],
        "stop_token_ids": "7",
        "logprobs": True,
        "num_samples": 4,
        "ignore_eos": True,
    }
    params = resolve([flag_layer(options)]).spec.generation.sampling_params(seed=9)
    assert params == SamplingParams(
        temperature=0.5,
        min_new_tokens=2,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias=((4, 2.5), (13, -100.0)),
        stop=("a,b", "c"),
        stop_token_ids=(7,),
        logprobs=True,
        ignore_eos=True,
        seed=9,
    ), "one sample: each is submitted with a seed of its own"


def test_a_value_and_its_texts_are_the_same_setting() -> None:
    options = {"logit_bias": "13:-100,4:2.5", "stop": ["a,b", "[x]"], "stop_token_ids": "7,8", "seed": "3"}
    spec = resolve([flag_layer(options)]).spec
    again = {name: to_texts(OPTIONS[name], getattr(spec.generation, name)) for name in options}
    assert again["logit_bias"] == ["4:2.5", "13:-100"]
    assert (again["stop"], again["stop_token_ids"], again["seed"]) == (["a,b", "[x]"], ["7", "8"], ["3"])


def test_biases_in_a_job_file() -> None:
    text = b'generation: {logit_bias: [[13, -100], "4:2.5"], stop: ["\\n\\n", END]}'
    generation = resolve([file_layer(text, "job.yaml")]).spec.generation
    assert generation.logit_bias == ((4, 2.5), (13, -100.0))
    assert generation.stop == ("\n\n", "END")
