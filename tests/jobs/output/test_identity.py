"""Identity: what is in S, what is not, and how a difference is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from specbatch.jobs.output.identity import diff_fields, identity_fields, identity_sha256
from specbatch.schemas.plan import InputFile
from specbatch.schemas.spec import ExecutionSpec, GenerationSpec, InputSpec, JobSpec, ModelSpec

FILE = InputFile("a.parquet", "/data/a.parquet", 1000, "f" * 64, (10, 20))


def fields(spec: JobSpec | None = None, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "target_files": {"config.json": "1" * 64, "model.safetensors": "2" * 64},
        "tokenizer_sha256": "3" * 64,
        "dtype": "float32",
        "model_path": "lean",
        "inputs": [FILE],
    }
    return identity_fields(spec or JobSpec(), **{**arguments, **changes})


BASE = identity_sha256(fields())


def test_the_value_of_s_is_pinned() -> None:
    """Resume across versions hangs on it: change the format name when this has to change."""
    assert BASE == "123e73adc575970da015482d1044a4d4bd20a7fdce38851cef8e7e261dfd03bc"


@pytest.mark.parametrize(
    "spec",
    [
        JobSpec(execution=ExecutionSpec(speculation="off", workers=3, batch_size=5, shard_rows=2, row_errors_ok=True)),
        JobSpec(models=ModelSpec(draft="none")),
        JobSpec(models=ModelSpec(target="another/name")),
        JobSpec(output="elsewhere"),
        JobSpec(execution=ExecutionSpec(memory_fraction=0.5)),
    ],
)
def test_execution_and_names_are_not_in_s(spec: JobSpec) -> None:
    assert identity_sha256(fields(spec)) == BASE


def test_a_dataset_that_moved_is_the_same_dataset() -> None:
    assert identity_sha256(fields(inputs=[replace(FILE, path="/elsewhere/a.parquet", row_group_rows=(30,))])) == BASE


@pytest.mark.parametrize(
    "changed",
    [
        fields(JobSpec(generation=GenerationSpec(seed=1))),
        fields(JobSpec(generation=GenerationSpec(stop_token_ids=(1,)))),
        fields(JobSpec(generation=GenerationSpec(min_new_tokens=1))),
        fields(JobSpec(generation=GenerationSpec(min_p=0.1))),
        fields(JobSpec(generation=GenerationSpec(repetition_penalty=1.1))),
        fields(JobSpec(generation=GenerationSpec(presence_penalty=0.1))),
        fields(JobSpec(generation=GenerationSpec(frequency_penalty=0.1))),
        fields(JobSpec(generation=GenerationSpec(logit_bias=((1, 2.0),)))),
        fields(JobSpec(generation=GenerationSpec(stop=("x",)))),
        fields(JobSpec(generation=GenerationSpec(logprobs=True))),
        fields(JobSpec(input=InputSpec(prompt_column="text"))),
        fields(JobSpec(input=InputSpec(id_column="id"))),
        fields(JobSpec(input=InputSpec(limit=3))),
        fields(dtype="bfloat16"),
        fields(quantization={"method": "torchao"}),
        fields(tokenizer_sha256="4" * 64),
        fields(target_files={"model.safetensors": "2" * 64}),
        fields(inputs=[replace(FILE, footer_sha256="0" * 64)]),
        fields(inputs=[replace(FILE, size_bytes=1)]),
        fields(inputs=[FILE, replace(FILE, name="b.parquet")]),
    ],
)
def test_whatever_decides_the_text_or_the_files_is_in_s(changed: dict[str, Any]) -> None:
    assert identity_sha256(changed) != BASE
    assert len(diff_fields(fields(), changed)) == 1


def test_a_renamed_input_is_another_one() -> None:
    renamed = fields(inputs=[replace(FILE, name="b.parquet")])
    assert identity_sha256(renamed) != BASE
    assert [line.partition(":")[0] for line in diff_fields(fields(), renamed)] == ["input a.parquet", "input b.parquet"]


def test_differences_are_told_field_by_field() -> None:
    old = fields()
    new = fields(JobSpec(generation=GenerationSpec(seed=5, top_p=0.5)), target_files={"config.json": "1" * 64})
    assert diff_fields(old, new) == (
        "generation.seed: 0 → 5",
        "generation.top_p: 1.0 → 0.5",
        "model.files.model.safetensors: 222222222222 → absent",
    )
    assert diff_fields(old, old) == ()


def test_a_changed_input_is_told_with_its_name() -> None:
    (line,) = diff_fields(fields(), fields(inputs=[replace(FILE, size_bytes=1)]))
    assert line == (
        "input a.parquet: file 1 with 30 rows in 1000 bytes, ffffffffffff → "
        "file 1 with 30 rows in 1 bytes, ffffffffffff"
    )


def test_added_removed_and_equally_named_inputs_are_told_apart() -> None:
    second = replace(FILE, footer_sha256="0" * 64)
    (line,) = diff_fields(fields(), fields(inputs=[FILE, second]))
    assert line == "input a.parquet (2): absent → file 2 with 30 rows in 1000 bytes, 000000000000"
    (line,) = diff_fields(fields(inputs=[FILE, replace(FILE, name="b.parquet")]), fields())
    assert line.startswith("input b.parquet: file 2 with 30 rows")
    assert line.endswith("→ absent")


def test_long_texts_are_not_repeated() -> None:
    old, new = {"prompt": {"template": "secret " * 20}}, {"prompt": {"template": None}}
    (line,) = diff_fields(old, new)
    assert "secret" not in line
    assert line.startswith("prompt.template: a text of 140 characters, ")


def distribution(draft_files: dict[str, str] | None, **execution: Any) -> str:
    generation = GenerationSpec(coupling="distribution")
    spec = JobSpec(generation=generation, execution=ExecutionSpec.model_validate(execution))
    return identity_sha256(fields(spec, draft_files=draft_files))


def test_draft_and_k_are_in_s_under_distribution_coupling_only() -> None:
    first, second = {"model.safetensors": "5" * 64}, {"model.safetensors": "6" * 64}
    values = {distribution(first), distribution(second), distribution(None), distribution(first, speculation=3), BASE}
    assert len(values) == 5
    assert distribution(first, batch_size=3) == distribution(first)
    assert identity_sha256(fields(draft_files=first)) == BASE


def test_the_order_of_biases_is_not_in_s() -> None:
    one = fields(JobSpec(generation=GenerationSpec(logit_bias=((1, 2.0), (3, 1.0)))))
    other = fields(JobSpec(generation=GenerationSpec(logit_bias=((3, 1.0), (1, 2.0)))))
    assert one == other
