"""Quantized weights: the engine against its slow twin, the ledger against what lies in memory, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import VOCAB, decoder, tiny_model
from twin import Rows, WholePrefix, run, tokens, twin

from specbatch.jobs.planning.execution import resolve_execution
from specbatch.jobs.spec.settings import PATHS, Settings
from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.sampling import SamplingParams
from specbatch.schemas.spec import JobSpec, ModelSpec, OnLoadQuantization
from specbatch.specdec.engine import Engine
from specbatch.specdec.forward.runner import load_model
from specbatch.specdec.kernels import packing
from specbatch.specdec.models import folders, quantization
from specbatch.specdec.models.families import model_path
from specbatch.specdec.models.footprint import weight_bytes
from specbatch.specdec.models.quantization import METHODS, ON_LOAD

BUNDLED = folders.locate_model("code-pair/target")
CPU = torch.device("cpu")
ROWS: Rows = [
    ([(7 * number + step) % VOCAB for step in range(length)], SamplingParams(max_new_tokens=8, temperature=t, seed=9))
    for t in (0.0, 0.8)
    for number, length in enumerate((2, 11))
]
FILES = {
    "torchao int8": "torchao", "torchao float8": "torchao", "bitsandbytes nf4": "bitsandbytes",
    "bitsandbytes fp4 double": "bitsandbytes", "fp8": "fp8", "compressed int4": "compressed-tensors",
    "compressed int8": "compressed-tensors", "compressed float8": "compressed-tensors",
}  # fmt: skip
"""Checkpoints that are made for these tests, and their method."""


def need(method: str) -> None:
    for package in METHODS[method].packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install '.[quantization]'")


def folder_of(path: Path, model: Any = None) -> Path:
    """A model folder with the bundled tokenizer."""
    path.mkdir(parents=True, exist_ok=True)
    shutil.copy(BUNDLED.path / "tokenizer.json", path)
    if model is not None:
        model.save_pretrained(path)
    return path


def dense(path: Path, family: str = "llama", **overrides: Any) -> Path:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.3}
    return folder_of(path, tiny_model(family, seed=3, dtype=torch.float32, **(sizes | overrides)))


def edit(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def quantized(path: Path, kind: str) -> Path:
    """A checkpoint whose files hold quantized weights, as the libraries themselves store them."""
    need(FILES[kind])
    source = dense(path / "dense")
    if kind in ("torchao int8", "torchao float8"):
        name = "torchao-" + kind.split()[1]
        model = load_model(source, torch.float32, CPU, folders.locate_model(str(source), name).quantization)
        return folder_of(path / "made", model)
    if kind.startswith("bitsandbytes"):
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        form = kind.split()[1]
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=form, bnb_4bit_use_double_quant="double" in kind,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(
            source, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
        )
        return folder_of(path / "made", model)
    made = folder_of(path / "made")
    weights = load_file(source / "model.safetensors")
    linear = [name for name in weights if name.endswith("_proj.weight")]
    if kind == "fp8":
        for name in linear:
            scale = weights[name].abs().amax() / 448
            weights[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
            weights[f"{name}_scale_inv"] = scale.reshape(1, 1)
        settings: dict[str, Any] = {
            "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head"],
        }  # fmt: skip
    else:
        settings = compress(weights, linear, kind.split()[1])
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(source / "config.json", made)
    edit(made, quantization_config=settings)
    return made


def compress(weights: dict[str, torch.Tensor], linear: list[str], kind: str) -> dict[str, Any]:
    """Replace linear weights by what compressed-tensors makes of them; its settings."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    form, bits, most = {
        "int4": ("pack-quantized", 4, 7), "int8": ("int-quantized", 8, 127), "float8": ("float-quantized", 8, 448),
    }[kind]  # fmt: skip
    group: dict[str, Any] = {"strategy": "group", "group_size": 32} if kind == "int4" else {"strategy": "channel"}
    how = {"num_bits": bits, "type": "float" if kind == "float8" else "int", "symmetric": True, **group}
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**how), format=form)
    for name in linear:
        weight = weights.pop(name)
        parts = weight.view(weight.shape[0], -1, 32 if kind == "int4" else weight.shape[1])
        scale = parts.abs().amax(-1) / most
        made = BaseCompressor.get_value_from_registry(form).compress({"weight": weight, "weight_scale": scale}, scheme)
        weights |= {name.removesuffix("weight") + key: value.contiguous() for key, value in made.items()}
    activations = None if kind == "int4" else {**how, "strategy": "token", "dynamic": True}
    return {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "ignore": ["lm_head"], "kv_cache_scheme": None,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": how, "input_activations": activations}},
    }  # fmt: skip


def load(folder: folders.ModelFolder, dtype: torch.dtype = torch.float32) -> Any:
    model = load_model(folder.path, dtype, CPU, folder.quantization)
    assert {p.dtype for p in model.parameters() if type(p) is torch.nn.Parameter} == {dtype}
    return model


def check_engine(model: Any) -> None:
    """Every token of the engine is its twin's, with and without drafts, whatever the batch."""
    expected = twin(model, ROWS)
    for k, batch in ((0, 1), (0, 4), (3, 1), (3, 4)):
        assert tokens(run(ROWS, model, model if k else None, k=k, batch=batch)) == expected, (k, batch)


@pytest.mark.parametrize("name", sorted(ON_LOAD))
def test_on_loading_equals_the_twin(tmp_path: Path, name: str) -> None:
    need(ON_LOAD[name].method)
    folder = folders.locate_model(str(dense(tmp_path)), name)
    model = load(folder)
    plain = load(folders.locate_model(str(tmp_path)))
    ids = torch.tensor([ROWS[1][0]])
    assert not torch.equal(model(ids).logits, plain(ids).logits), "the weights must have changed"
    packed = packing.pack_linears(model)
    assert packed == 1, "the head is packed, quantized layers are left alone"
    check_engine(model)
    num_bytes = packing.weight_bytes(model)
    assert num_bytes <= weight_bytes(folder, "float32") < 1.2 * num_bytes
    assert weight_bytes(folder, "float32") < weight_bytes(replace(folder, quantization=None), "float32")


@pytest.mark.parametrize("kind", sorted(FILES))
def test_quantized_files_equal_the_twin(tmp_path: Path, kind: str) -> None:
    folder = folders.locate_model(str(quantized(tmp_path, kind)))
    assert folder.quantization is not None
    assert folder.quantization.method == FILES[kind]
    model = load(folder)
    assert packing.pack_linears(model) == (1 if folder.quantization.keeps_bits else 15)
    check_engine(model)
    num_bytes = packing.weight_bytes(model)
    assert num_bytes <= weight_bytes(folder, "float32") < 1.3 * num_bytes


@pytest.mark.parametrize("kind", ["torchao int8", "bitsandbytes nf4", "fp8", "compressed int8"])
def test_another_compute_dtype(tmp_path: Path, kind: str) -> None:
    folder = folders.locate_model(str(quantized(tmp_path, kind)))
    assert load(folder, torch.bfloat16)(torch.tensor([[1, 2, 3]])).logits.dtype == torch.bfloat16


def test_made_whole_is_what_the_files_say(tmp_path: Path) -> None:
    path = quantized(tmp_path, "fp8")
    weights = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    whole = load(folders.locate_model(str(path))).get_parameter(name)
    assert torch.equal(whole, weights[name].float() * weights[f"{name}_scale_inv"])


@pytest.mark.parametrize("family", sorted(quantization.QUANTIZED_FAMILIES))
def test_every_listed_family_equals_the_twin(tmp_path: Path, family: str) -> None:
    need("torchao")
    model = load(
        folders.locate_model(str(folder_of(tmp_path, tiny_model(family, dtype=torch.float32))), "torchao-int8")
    )
    kinds = {type(module.weight).__name__ for module in model.modules() if type(module) is torch.nn.Linear}
    assert kinds >= {"Int8Tensor"}
    subset = [ROWS[1], ROWS[3]]
    whole = WholePrefix(decoder(model, 1))  # puts on the masks of windows, which a bare module does not have
    assert tokens(run(subset, model, model, k=3, batch=2)) == twin(whole, subset)


def test_rounding_by_batch_shape_stays_far_below_epsilon(tmp_path: Path) -> None:
    """What near ties rest on; and that rounded activations, which are refused, do not keep it."""
    need("torchao")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    ids = torch.randint(5, 1000, (4, 24), generator=torch.Generator().manual_seed(1))

    @torch.inference_mode()
    def spread(model: Any) -> float:
        together = model(input_ids=ids).logits
        alone = [model(input_ids=ids[row : row + 1, :length]).logits for row in range(4) for length in (1, 5, 17)]
        rows = [together[row : row + 1, :length] for row in range(4) for length in (1, 5, 17)]
        return max(float((a - b).abs().max()) for a, b in zip(alone, rows, strict=True))

    weights_only = load(folders.locate_model("code-pair/target", "torchao-int8"))
    rounded = AutoModelForCausalLM.from_pretrained(
        BUNDLED.path, dtype=torch.float32, quantization_config=TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    ).eval()
    assert spread(weights_only) < 1e-4 / 4
    assert spread(rounded) > 10 * 1e-4


def test_an_engine_by_its_folder(tmp_path: Path) -> None:
    need("torchao")
    from specbatch.specdec import Engine

    subject = Engine.from_pretrained(
        "code-pair/target", "code-pair/draft-taught", max_batch_size=2, speculation=3, quantization="torchao-int8"
    )
    plain = Engine.from_pretrained("code-pair/target", max_batch_size=1, speculation="off", quantization="torchao-int8")
    assert subject.model_path == "generic"
    params = SamplingParams(max_new_tokens=12)
    prompts = ["def f(x):", "import os", "class A"]
    assert [o.token_ids for o in subject.generate(prompts, params)] == [
        o.token_ids for o in plain.generate(prompts, params)
    ]


def test_a_quantized_draft_changes_no_token(tmp_path: Path) -> None:
    need("torchao")
    path = dense(tmp_path)
    target = load(folders.locate_model(str(path)))
    draft = load(folders.locate_model(str(path), "torchao-int8"))
    outputs = run(ROWS, target, draft, k=3, batch=4)
    assert tokens(outputs) == twin(target, ROWS)
    assert sum(output.stats.num_accepted_draft_tokens for output in outputs) > 0


def test_the_lean_path_is_for_dense_weights_only() -> None:
    config = BUNDLED.config
    assert model_path(config) == "lean"
    assert model_path(config, is_quantized=True) == "generic"


def test_names_are_the_same_everywhere() -> None:
    from specbatch.jobs.spec.options import BY_NAME

    assert set(get_args(OnLoadQuantization)) == set(ON_LOAD) == set(BY_NAME["quantization"].choices)
    assert {made.method for made in ON_LOAD.values()} <= set(METHODS)


def refused(name: str | Path, on_load: str | None = None) -> SpecbatchError:
    with pytest.raises(SpecbatchError) as caught:
        folders.locate_model(str(name), on_load)
    assert "\n" not in str(caught.value)
    return caught.value


TORCHAO = {"quant_method": "torchao"}
CHANNEL = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "int-quantized"}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"quant_method": "gptq"}, "gptq.*gptqmodel"),
        ({"quant_method": "awq"}, "awq.*gptqmodel"),
        ({"quant_method": "wild"}, "wild.*not among the proved ones: bitsandbytes, .*torchao"),
        ({}, "None.*not among the proved"),
        ({"quant_method": "fbgemm_fp8"}, "rounds activations.*batch mates"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "8 bits rounds activations.*batch mates"),
        ({**TORCHAO, "quant_type": {"default": {"_type": "Int8DynamicActivationInt8WeightConfig"}}}, "activations"),
        (
            {**TORCHAO, "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}},
            "Int4WeightOnlyConfig is not proved",
        ),
        ({**TORCHAO, "quant_type": "int8_weight_only"}, "is not proved"),
        (
            {
                **TORCHAO,
                "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}},
                "include_input_output_embeddings": True,
            },
            "embeddings",
        ),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "block scales"),
        ({**COMPRESSED, "format": "marlin-24"}, "formats"),
        ({**COMPRESSED, "config_groups": {"g": {"weights": CHANNEL}}, "kv_cache_scheme": {"num_bits": 8}}, "kv_cache"),
        ({**COMPRESSED, "config_groups": {"g": {"weights": {**CHANNEL, "num_bits": 2}}}}, "4 and 8 bits"),
        ({**COMPRESSED, "config_groups": {"g": {"weights": {**CHANNEL, "symmetric": False}}}}, "symmetric"),
    ],
)
def test_methods_that_are_not_proved_are_refused_with_the_reason(
    tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    edit(folder_of(tmp_path, tiny_model()), quantization_config=settings)
    error = refused(tmp_path)
    assert error.code.value == "JOB_MODEL_UNSUPPORTED"
    assert re.search(reason, error.message)


def test_a_family_that_is_not_proved_in_a_quantized_form(tmp_path: Path) -> None:
    folder_of(tmp_path, tiny_model("gpt2"))
    assert "not proved with quantized weights" in refused(tmp_path, "torchao-int8").message
    edit(tmp_path, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert "not proved with quantized weights" in refused(tmp_path).message


def test_asking_for_what_cannot_be(tmp_path: Path) -> None:
    path = folder_of(tmp_path, tiny_model())
    assert "choose from bitsandbytes-nf4" in refused(path, "int3").message
    edit(path, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    error = refused(path, "torchao-int8")
    assert error.code.value == "JOB_CONFIG"
    assert "is quantized already (bitsandbytes)" in error.message
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    assert refused(path).code.value == "JOB_UNSAFE_WEIGHTS", "pickled weights are refused, quantized or not"


def test_a_package_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders.locate_model(str(dense(tmp_path)), "bitsandbytes-nf4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecbatchError) as caught:
        load_model(folder.path, torch.float32, CPU, folder.quantization)
    assert caught.value.code.value == "JOB_PACKAGE_MISSING"
    assert int(caught.value.exit_code) == 2
    assert "pip install bitsandbytes accelerate" in caught.value.message


@pytest.mark.parametrize("on_load", ["torchao-int8", None])
def test_a_quantized_target_is_for_one_device(tmp_path: Path, on_load: str | None) -> None:
    """Refused when the job is made, and by an engine; a rank loads no quantized weights."""
    path = folder_of(tmp_path, tiny_model(dtype=torch.float32, num_key_value_heads=2))
    if on_load is None:
        edit(path, quantization_config={"quant_method": "fp8"})
    folder = folders.locate_model(str(path), on_load)
    given = {"target": str(path), "quantization": on_load, "tensor_parallel_size": 2}
    settings = Settings(JobSpec(models=ModelSpec(**given)), dict.fromkeys(PATHS, "default"))  # type: ignore[arg-type]
    if on_load is None:
        wanted = (
            rf"{path} is quantized \(fp8 in the files, .*leave out --tensor-parallel-size, or use the weights it was"
        )
    else:
        wanted = f"one device; leave out --tensor-parallel-size or --quantization {on_load}$"
    with pytest.raises(SpecbatchError, match=wanted) as caught:
        resolve_execution(settings, folder, None, "auto")
    assert caught.value.code.value == "JOB_CONFIG"
    leader: Any = SimpleNamespace(num_ranks=2, free_bytes=1 << 40)
    with pytest.raises(SpecbatchError, match=wanted):
        Engine.from_pretrained(path, quantization=on_load, leader=leader)
    quantization.check_ranks(folder.name, folder.quantization, 1)
    quantization.check_ranks(folder.name, None, 2)


def test_devices_and_dtypes_that_are_not_proved(tmp_path: Path) -> None:
    folder = folders.locate_model(str(dense(tmp_path)), "torchao-int8")
    with pytest.raises(SpecbatchError, match=r"JOB_MODEL_UNSUPPORTED.*proved on cpu only, not on cuda"):
        quantization.check_device(folder.name, folder.quantization, "cuda")
    with pytest.raises(SpecbatchError, match=r"JOB_CONFIG.*--dtype float32"):
        quantization.check_dtype(folder.name, folder.config, folder.quantization, "float64")
    stored = quantization.Quantization("torchao", {"quant_type": {"default": {"_type": "Float8WeightOnlyConfig"}}})
    with pytest.raises(SpecbatchError, match=r"JOB_CONFIG.*give --dtype bfloat16"):
        quantization.check_dtype("m", {"dtype": "bfloat16"}, stored, "float32")
    quantization.check_dtype("m", {"dtype": "bfloat16"}, stored, "bfloat16")
    quantization.check_device("m", None, "cuda")
