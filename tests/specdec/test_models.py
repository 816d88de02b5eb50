"""Model folders: what is refused, by which code, in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from specbatch.schemas.errors import SpecbatchError
from specbatch.specdec import models
from specbatch.specdec.runner import load_model

TARGET = models.locate_model("code-pair/target")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(TARGET.path, copy)
    return copy


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(name: str | Path) -> str:
    with pytest.raises(SpecbatchError) as caught:
        models.locate_model(str(name))
    assert "\n" not in str(caught.value)
    assert int(caught.value.exit_code) == 2 or caught.value.code.value == "JOB_MODEL_LOAD"
    return caught.value.code.value


def test_the_bundled_pair_is_a_pair() -> None:
    draft = models.locate_model("code-pair/draft-taught")
    models.check_pair(TARGET, draft)
    assert TARGET.parameters > 4 * draft.parameters
    assert models.context_length(TARGET) == 2048
    assert models.default_draft("code-pair/target") == "code-pair/draft-taught"
    assert models.default_draft("elsewhere") is None


def test_equal_files_have_equal_digests_wherever_they_lie(folder: Path) -> None:
    copy = models.locate_model(str(folder))
    assert copy.files == TARGET.files
    assert models.tokenizer_sha256(copy) == models.tokenizer_sha256(TARGET)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "code-pair/nothing", "nobody/such-model", "a/b/c"])
def test_no_such_model(name: str) -> None:
    assert refused(name) == "JOB_MODEL_MISSING"


def test_pickle_only_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert refused(folder) == "JOB_UNSAFE_WEIGHTS"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refused(folder) == "JOB_MODEL_MISSING"


def test_remote_code_however_deep(folder: Path) -> None:
    edit_config(folder, text_config={"vision": [{"auto_map": {"AutoModel": "evil.Model"}}]})
    assert refused(folder) == "JOB_REMOTE_CODE"


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mamba"},
        {"model_type": "jamba"},
        {"layer_types": ["full_attention", "linear_attention"]},
        {"model_type": "mistral", "sliding_window": 128},
        {"model_type": "qwen2", "sliding_window": 128, "use_sliding_window": True},
    ],
)
def test_families_that_are_not_proved(folder: Path, changes: dict[str, object]) -> None:
    edit_config(folder, **changes)
    assert refused(folder) == "JOB_MODEL_UNSUPPORTED"


@pytest.mark.parametrize(
    "damage", [b"", b"\xff" * 64, (1 << 60).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"no"]
)
def test_damaged_weights(folder: Path, damage: bytes) -> None:
    (folder / "model.safetensors").write_bytes(damage)
    assert refused(folder) == "JOB_MODEL_LOAD"


def test_truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SpecbatchError, match=r"JOB_MODEL_LOAD: model.safetensors has \d+ bytes and should have \d+"):
        models.locate_model(str(folder))


def test_weights_that_lack_a_tensor_are_refused_not_filled_up(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    del state["model.layers.3.mlp.up_proj.weight"]
    save_file(state, path, metadata={"format": "pt"})
    models.locate_model(str(folder))
    with pytest.raises(SpecbatchError, match=r"JOB_MODEL_LOAD.*lacks weights.*layers.3.mlp.up_proj"):
        load_model(folder, torch.float32, torch.device("cpu"))


def test_damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert refused(folder) == "JOB_MODEL_LOAD"


def test_tokenizers_that_differ_name_the_first_difference(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    (first, a), (second, b) = sorted(vocab.items(), key=lambda item: item[1])[300:302]
    vocab[first], vocab[second] = b, a
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(SpecbatchError, match=r"JOB_VOCAB_MISMATCH.*has id 300 in the target and 301 in the draft"):
        models.check_pair(TARGET, models.locate_model(str(folder)))


def test_embedding_padding_may_differ_but_not_be_missing(folder: Path) -> None:
    edit_config(folder, vocab_size=4160)
    models.check_pair(TARGET, models.locate_model(str(folder)))
    edit_config(folder, vocab_size=4000)
    with pytest.raises(SpecbatchError, match="JOB_VOCAB_MISMATCH"):
        models.check_pair(TARGET, models.locate_model(str(folder)))


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [("auto", "cpu", "float32"), ("auto", "cuda", "float16"), ("bfloat16", "cpu", "bfloat16")],
)
def test_dtype(dtype: str, device: str, expected: str) -> None:
    assert models.resolve_dtype(dtype, device, TARGET) == expected
