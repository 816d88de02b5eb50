"""Model folders: what is refused, by which code, in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

from specbatch.schemas.errors import SpecbatchError
from specbatch.specdec.forward.runner import load_model
from specbatch.specdec.models import families, folders
from specbatch.specdec.models.footprint import dtype_bytes_of

TARGET = folders.locate_model("code-pair/target")
RECURRENT = (
    "mamba", "mamba2", "jamba", "falcon_h1", "rwkv", "recurrent_gemma", "zamba2", "bamba", "lfm2", "granitemoehybrid",
    "qwen3_next", "nemotron_h", "kimi_linear",
)  # fmt: skip


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
        folders.locate_model(str(name))
    assert "\n" not in str(caught.value)
    assert int(caught.value.exit_code) == 2 or caught.value.code.value == "JOB_MODEL_LOAD"
    return caught.value.code.value


def test_the_bundled_pair_is_a_pair() -> None:
    draft = folders.locate_model("code-pair/draft-taught")
    folders.check_pair(TARGET, draft)
    assert TARGET.parameters > 4 * draft.parameters
    assert folders.context_length(TARGET) == 2048
    assert folders.default_draft("code-pair/target") == "code-pair/draft-taught"
    assert folders.default_draft("elsewhere") is None


def test_equal_files_have_equal_digests_wherever_they_lie(folder: Path) -> None:
    copy = folders.locate_model(str(folder))
    assert copy.files == TARGET.files
    assert folders.tokenizer_sha256(copy) == folders.tokenizer_sha256(TARGET)


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
    ("changes", "reason"),
    [
        *[({"model_type": kind}, "recurrent layers.*refused draft") for kind in RECURRENT],
        ({"layer_types": ["full_attention", "linear_attention"]}, r"recurrent layers \(linear_attention\)"),
        ({"model_type": "new", "layer_types": ["mamba", "full_attention"]}, r"recurrent layers \(mamba\)"),
        ({"model_type": "new", "text_config": {"layer_types": ["conv"]}}, r"recurrent layers \(conv\)"),
        ({"model_type": "new", "mamba_d_state": 16}, "recurrent layers"),
        ({"model_type": "t5"}, "encoder"),
        ({"model_type": "new", "is_encoder_decoder": True}, "encoder"),
        ({"model_type": "gemma3", "text_config": {}, "vision_config": {}}, "more than text"),
        ({"model_type": "gemma3n_text"}, "between layers"),
        ({"num_kv_shared_layers": 4}, "between layers"),
        ({"model_type": "llama4_text"}, "in chunks"),
        ({"attention_chunk_size": 8192}, "in chunks"),
        ({"model_type": "gpt_oss"}, "is not among the proved ones: cohere, .*starcoder2"),
        ({"model_type": None}, "is not among the proved ones"),
        ({"layer_types": ["full_attention", "other"]}, "'other'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "does not read"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"], "use_sliding_window": False}, "no sliding"),
        ({"model_type": "falcon", "alibi": True}, "alibi"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "later tokens"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "encoder"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized here .gptq."),
        ({"rope_scaling": {"type": "mrope"}}, "'mrope'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "wild"}}}, "'wild'"),
    ],
)
def test_families_that_are_not_proved_are_refused_with_the_reason(
    folder: Path, changes: dict[str, object], reason: str
) -> None:
    edit_config(folder, **changes)
    with pytest.raises(SpecbatchError, match=f"JOB_MODEL_UNSUPPORTED: .*{reason}") as caught:
        folders.locate_model(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral", "sliding_window": 128},
        {"model_type": "qwen2", "sliding_window": 128, "use_sliding_window": True},
        {"model_type": "gemma2", "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"]},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"model_type": "phi3", "rope_scaling": {"type": "su", "short_factor": [], "long_factor": []}},
    ],
)
def test_windows_and_fixed_frequencies_are_taken(folder: Path, changes: dict[str, object]) -> None:
    edit_config(folder, **changes)
    folders.locate_model(str(folder))


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"model_type": "llama", "max_position_embeddings": 512}, 512),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "falcon"}, 2048),
        ({"model_type": "llama"}, None),
        ({"max_position_embeddings": 512, "rope_scaling": {"type": "dynamic", "factor": 4.0}}, 512),
        ({"max_position_embeddings": 512, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 512),
        ({"max_position_embeddings": 99, "rope_scaling": {"type": "longrope"}}, 99),
        ({"max_position_embeddings": 131072, "rope_scaling": {"type": "longrope"}}, 4096),
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 8192,
                "model_type": "phi3",
                "rope_scaling": {"type": "yarn"},
            },
            8192,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 2048},
            },
            2048,
        ),
    ],
)
def test_the_context_ends_where_frequencies_would_change_for_all_rows(
    config: dict[str, object], length: int | None
) -> None:
    assert families.max_context(config) == length


@pytest.mark.parametrize("kind", families.SUPPORTED_MODEL_TYPES)
def test_what_a_config_leaves_out_is_what_the_library_fills_in(kind: str) -> None:
    """The cache's size of every family at full scale, from a config that names only the sizes that differ."""
    full = CONFIG_MAPPING[kind]()
    short = {
        "model_type": kind,
        "num_hidden_layers": full.num_hidden_layers,
        "num_attention_heads": full.num_attention_heads,
        "hidden_size": full.hidden_size,
    }
    assert families.kv_bytes_per_token(short, 2) == families.kv_bytes_per_token(full.to_dict(), 2)


@pytest.mark.parametrize(
    ("changes", "num_bytes"),
    [
        ({}, 2 * 4 * 8 * 64 * 2),
        ({"num_key_value_heads": 2}, 2 * 4 * 2 * 64 * 2),
        ({"num_key_value_heads": None}, 2 * 4 * 8 * 64 * 2),
        ({"head_dim": 128}, 2 * 4 * 8 * 128 * 2),
        ({"model_type": "falcon"}, 2 * 4 * 1 * 64 * 2),
        ({"model_type": "falcon", "multi_query": False}, 2 * 4 * 8 * 64 * 2),
        ({"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2}, 2 * 4 * 8 * 64 * 2),
    ],
)
def test_bytes_of_keys_and_values_for_a_token(changes: dict[str, object], num_bytes: int) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 4, "num_attention_heads": 8, "hidden_size": 512}
    assert families.kv_bytes_per_token(config | changes, 2) == num_bytes


def test_a_config_without_sizes_has_no_cache_size() -> None:
    with pytest.raises(SpecbatchError, match=r"JOB_MODEL_UNSUPPORTED.*no num_attention_heads"):
        families.kv_bytes_per_token({"model_type": "llama", "num_hidden_layers": 4}, 2)


def test_absent_pad_and_end_of_sequence_ids_crash_nothing(folder: Path) -> None:
    (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if not key.endswith("_token_id")}))
    located = folders.locate_model(str(folder))
    assert folders.eos_token_ids(located.path) == ()
    model = load_model(folder, torch.float32, torch.device("cpu"))
    assert model(input_ids=torch.tensor([[1]])).logits.isfinite().all()


def test_planning_needs_no_torch() -> None:
    code = "import sys, specbatch.specdec.models.folders; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


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
        folders.locate_model(str(folder))


def test_weights_that_lack_a_tensor_are_refused_not_filled_up(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    del state["model.layers.3.mlp.up_proj.weight"]
    save_file(state, path, metadata={"format": "pt"})
    folders.locate_model(str(folder))
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
        folders.check_pair(TARGET, folders.locate_model(str(folder)))


def test_embedding_padding_may_differ_but_not_be_missing(folder: Path) -> None:
    edit_config(folder, vocab_size=4160)
    folders.check_pair(TARGET, folders.locate_model(str(folder)))
    edit_config(folder, vocab_size=4000)
    with pytest.raises(SpecbatchError, match="JOB_VOCAB_MISMATCH"):
        folders.check_pair(TARGET, folders.locate_model(str(folder)))


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [("auto", "cpu", "float32"), ("auto", "cuda", "float16"), ("bfloat16", "cpu", "bfloat16")],
)
def test_dtype(dtype: str, device: str, expected: str) -> None:
    assert folders.resolve_dtype(dtype, device, TARGET) == expected


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_dtype_that_models_are_not_computed_in_is_refused_by_name(folder: Path, key: str) -> None:
    edit_config(folder, **{"dtype": None, key: "float8_e4m3fn"})
    located = folders.locate_model(str(folder))
    with pytest.raises(SpecbatchError, match=r"JOB_MODEL_UNSUPPORTED: config.json .*'float8_e4m3fn'.* --dtype"):
        folders.resolve_dtype("auto", "cuda", located)
    assert folders.resolve_dtype("auto", "cpu", located) == "float32"
    assert folders.resolve_dtype("bfloat16", "cuda", located) == "bfloat16"
    with pytest.raises(SpecbatchError, match="JOB_CONFIG: dtype is 'half'"):
        folders.resolve_dtype("half", "cpu", located)
    with pytest.raises(KeyError):
        dtype_bytes_of("half")
