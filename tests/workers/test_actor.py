"""The worker with the real engine: in this process, and as two Ray actors in processes of their own."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shard_helpers import cut, make_config, read_part, run_shards, write_dataset

import specbatch
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.messages import Lease
from specbatch.schemas.spec import GenerationSpec
from specbatch.workers import decoding
from specbatch.workers.worker import Worker

PAIR = Path(specbatch.__file__).parent / "assets" / "code-pair"
PROMPTS = [f"def {verb}_{noun}(" for verb in ("read", "write", "parse") for noun in ("line", "json", "header", "table")]
BOOKKEEPING = ("num_", "acceptance_", "draft_length_", "min_margin")


def pair_config(output: Path, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "target_path": str(PAIR / "target"),
        "draft_path": str(PAIR / "draft-taught"),
        "dtype": "float32",
        "speculation": 4,
        "batch_size": 3,
        "num_threads": 1,
        "generation": GenerationSpec(max_new_tokens=16, temperature=0.7),
    }
    return make_config(output, **{**values, **changes})


def texts(output: Path, num_shards: int) -> list[dict[str, Any]]:
    rows = [row for shard in range(num_shards) for row in read_part(output, shard)]
    return [{name: value for name, value in row.items() if not name.startswith(BOOKKEEPING)} for row in rows]


def test_the_text_does_not_depend_on_the_draft(tmp_path: Path) -> None:
    prompts = [*PROMPTS, None, "x = 1\n" * 3000]
    shards = cut([write_dataset(tmp_path / "in.parquet", prompts)], 5)
    run_shards(Worker(pair_config(tmp_path / "taught")), shards)
    run_shards(Worker(pair_config(tmp_path / "none", draft_path=None, speculation="off", batch_size=5)), shards)
    assert texts(tmp_path / "taught", 3) == texts(tmp_path / "none", 3)
    rows = [row for shard in range(3) for row in read_part(tmp_path / "taught", shard)]
    assert [row["error_code"] for row in rows[-2:]] == ["ROW_PROMPT_NULL", "ROW_TOO_LONG"]
    for row in rows[:-2]:
        assert sum(row["acceptance_histogram"]) == row["num_spec_steps"] > 0
        committed = row["num_plain_steps"] + row["num_spec_steps"] + row["num_accepted_draft_tokens"]
        assert committed - row["num_completion_tokens"] in (0, 1)


def test_a_missing_model_is_told_by_ready(tmp_path: Path) -> None:
    with pytest.raises(SpecbatchError, match="JOB_MODEL_MISSING"):
        Worker(pair_config(tmp_path / "out", target_path=str(tmp_path / "nowhere"))).ready()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_going_on_without_the_draft_frees_the_first_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Before the second load plans with what is free: the error's frames hold the target until then, in a cycle."""
    freed_pools: list[str] = []
    targets: list[weakref.ref[Target]] = []

    class Target:
        pass

    def load(config: Any, draft_path: str | None, *arguments: Any) -> Any:
        if draft_path is None:
            return SimpleNamespace(first_target=targets[0](), freed_pools=list(freed_pools))
        target = Target()
        targets.append(weakref.ref(target))
        error = SpecbatchError(ErrorCode.JOB_MODEL_LOAD, "no such weights")
        raise error

    monkeypatch.setattr(decoding, "_load", load)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed_pools.append(device))
    gc.disable()  # as in a worker while it loads
    try:
        engine: Any = decoding.load_engine(pair_config(tmp_path / "out", device=device))
    finally:
        gc.enable()
    assert "going on without it (SpecbatchError: JOB_MODEL_LOAD: no such weights)" in engine.note
    assert engine.first_target is None
    assert engine.freed_pools == (["cuda"] if device == "cuda" else [])


def test_kernels_that_cannot_be_built_are_not_the_draft_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before a model is loaded; without the draft it would be tried in vain once more."""
    pytest.importorskip("triton")
    load, drafts = decoding._load, list[str | None]()

    def noted(config: Any, draft_path: str | None, *arguments: Any) -> Any:
        drafts.append(draft_path)
        return load(config, draft_path, *arguments)

    monkeypatch.setattr(decoding, "_load", noted)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    config = pair_config(tmp_path / "out", device="cuda")
    with pytest.raises(SpecbatchError, match=r"JOB_VERSION_SKEW: .* a C compiler, and there is none"):
        decoding.load_engine(config)
    assert drafts == [config.draft_path]


@pytest.mark.parametrize(
    ("device", "hides_none", "taken"), [("cuda", "", "cuda"), ("cuda", "1", "cuda:3"), ("cpu", "1", "cpu")]
)
def test_a_worker_takes_the_device_that_ray_gave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, hides_none: str, taken: str
) -> None:
    """On clusters where every process sees every GPU all workers of a node would else load on the first."""
    import ray

    from specbatch.workers import actor

    configs: list[Any] = []
    monkeypatch.setattr(actor, "Worker", configs.append)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [3])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", hides_none)
    actor.WorkerActor(pair_config(tmp_path / "out", device=device))
    assert [config.device for config in configs] == [taken]


@pytest.mark.ray
@pytest.mark.slow
def test_two_actors_share_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from specbatch.workers.actor import actor_class

    # A package of the user's that has our layers' names, in the directory that Ray puts first on the path.
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").write_text("raise RuntimeError('the package of the user was imported')")
    monkeypatch.chdir(tmp_path)
    shards = cut([write_dataset(tmp_path / "in.parquet", PROMPTS)], 3)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        remote = actor_class().options(num_cpus=1)
        actors = [remote.remote(pair_config(tmp_path / "out", worker=number)) for number in range(2)]
        readies = ray.get([actor.ready.remote() for actor in actors])
        assert len({ready.pid for ready in readies} | {os.getpid()}) == 3
        for ready in readies:
            assert ready.memory.target_bytes > ready.memory.draft_bytes > 0
        # A long poll must not keep the lease from coming in.
        news = [actor.news.remote(0, 60.0) for actor in actors]
        for shard in shards:  # one at a time, as the runner does it: Ray may begin two calls in another order
            ray.get(actors[shard.index % 2].deliver.remote(shard.index + 1, "assign", Lease(shard, 1)))
        told = ray.get(news)
        receipts = [receipt for one in told for receipt in one.poll.receipts]
        while len(receipts) < len(shards):
            told = ray.get([actor.news.remote(one.number, 0.2) for actor, one in zip(actors, told, strict=True)])
            receipts += [receipt for one in told for receipt in one.poll.receipts]
        ray.get([actor.stop.remote() for actor in actors])
    finally:
        ray.shutdown()
    run_shards(Worker(pair_config(tmp_path / "alone")), shards)
    assert texts(tmp_path / "out", len(shards)) == texts(tmp_path / "alone", len(shards))
