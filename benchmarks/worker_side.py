"""One worker beside its engine alone: the same rows, in turns, each time in a process of its own."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from workload import write_prompts

from specbatch.jobs.planning.planning import cut_shards
from specbatch.schemas.messages import Lease, WorkerConfig
from specbatch.schemas.plan import Shard
from specbatch.schemas.prompt import PromptSpec
from specbatch.schemas.seeds import row_seed
from specbatch.schemas.spec import GenerationSpec
from specbatch.storage.inputs import discover
from specbatch.workers.decoding import load_engine
from specbatch.workers.worker import Worker

TAUGHT = "code-pair/draft-taught"


def engine_alone(config: WorkerConfig, prompts: Sequence[str]) -> dict[str, float]:
    """Seconds and tokens of the engine on prompts that are tokens already."""
    engine = load_engine(config)
    encoded = [engine.tokenizer.encode(prompt) for prompt in prompts]
    tokens = 0
    started = time.perf_counter()
    for row_id, ids in enumerate(encoded):
        engine.submit(row_id, ids, config.generation.sampling_params(row_seed(config.generation.seed, row_id, 0)))
    while engine.num_queued or engine.num_active:
        tokens += sum(len(output.token_ids) for output in engine.step())
    return {"seconds": time.perf_counter() - started, "tokens": tokens}


def one_worker(config: WorkerConfig, shards: Sequence[Shard]) -> dict[str, float]:
    """Seconds, tokens and idle share of a worker from its first lease to its last receipt."""
    worker = Worker(config)
    worker.ready()
    idle_before = worker.poll(0.0).progress.idle_seconds
    started = time.perf_counter()
    for shard in shards:
        worker.assign(Lease(shard, attempt=1))
    tokens, left = 0, len(shards)
    while left:
        news = worker.poll(1.0)
        if news.failures:
            raise RuntimeError(f"{news.failures[0].code}: {news.failures[0].message}")
        left -= len(news.receipts)
        tokens += sum(receipt.stats.num_completion_tokens for receipt in news.receipts)
    seconds = time.perf_counter() - started
    idle_seconds = news.progress.idle_seconds - idle_before
    worker.stop()
    return {"seconds": seconds, "tokens": tokens, "idle_share": idle_seconds / seconds}


def separately(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """What a function returns in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def worker_and_engine(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds, tokens and idle share of both sides, and their ratio, for each repeat."""
    from specbatch.specdec.inflate import inflate
    from specbatch.specdec.models.folders import locate_model

    inflate("code-pair/target", folder / "target", options.parameters)
    dataset = folder / "prompts.parquet"
    write_prompts(dataset, options.rows_a)
    prompts = pq.read_table(dataset).column("prompt").to_pylist()
    shards = cut_shards(discover([str(dataset)]), options.shard_rows, None)
    repeats = []
    for repeat in range(options.repeats):
        config = WorkerConfig(
            worker=0,
            output=str(folder / f"out-{repeat}"),
            plan=f"{repeat:016x}",
            target_path=str(folder / "target"),
            draft_path=None if options.speculation == "off" else str(locate_model(TAUGHT).path),
            dtype="float32",
            device="cpu",
            speculation=options.speculation,
            batch_size=options.batch_size,
            num_threads=options.threads,
            prompt=PromptSpec(),
            generation=GenerationSpec(max_new_tokens=options.max_new_tokens, temperature=0.8, seed=1),
        )
        if repeat % 2 == 0:
            alone, worker = separately(engine_alone, config, prompts), separately(one_worker, config, shards)
        else:
            worker, alone = separately(one_worker, config, shards), separately(engine_alone, config, prompts)
        if alone["tokens"] != worker["tokens"]:
            raise RuntimeError(f"{worker['tokens']} tokens in the parts, {alone['tokens']} from the engine alone")
        repeats.append({"engine": alone, "worker": worker, "ratio": alone["seconds"] / worker["seconds"]})
        print(f"a: {repeats[-1]}", flush=True)
    return {
        "rows": options.rows_a,
        "shards": len(shards),
        "batch_size": options.batch_size,
        "speculation": options.speculation,
        "parameters": options.parameters,
        "repeats": repeats,
    }
