"""Ray Data's side of ``bench_jobs.py``, a process of its own: the no-op completion over a Parquet file, to Parquet.

    python benchmarks/ray_data_side.py DATASET OUT --cpus 2

Prints one line of JSON: rows, and seconds of the pipeline without start-up.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import pyarrow as pa
import ray
from noop_engine import complete, encode

_BATCH_ROWS = 1024


class Complete:
    """What a user puts around an engine: rows in, rows with results out, one Python object at a time."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        prompts = [encode(text) for text in batch.column("prompt").to_pylist()]
        results = [complete(prompt_ids) for prompt_ids in prompts]
        columns = {
            "completion": pa.array([text for text, _ in results], pa.string()),
            "completion_token_ids": pa.array([ids for _, ids in results], pa.list_(pa.int32())),
            "num_prompt_tokens": pa.array([len(ids) for ids in prompts], pa.int32()),
            "num_completion_tokens": pa.array([len(ids) for _, ids in results], pa.int32()),
        }
        for name, values in columns.items():
            batch = batch.append_column(name, values)
        return batch


def main(arguments: list[str] | None = None) -> int:
    """Run the pipeline once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("out")
    parser.add_argument("--cpus", type=int, required=True)
    options = parser.parse_args(arguments)
    ray.init(num_cpus=options.cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    started = time.perf_counter()
    dataset = ray.data.read_parquet(options.dataset)
    mapped = dataset.map_batches(Complete, batch_size=_BATCH_ROWS, batch_format="pyarrow", concurrency=1, num_cpus=1)
    mapped.write_parquet(options.out)
    seconds = time.perf_counter() - started
    ray.shutdown()
    print(json.dumps({"seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
