"""OpenVINO GenAI's side of the comparison. Runs in an environment of its own and imports nothing of specbatch.

    PYTHON peer_openvino.py convert MODEL OUT    # a transformers folder to OpenVINO, weights in float32
    PYTHON peer_openvino.py serve                # one JSON request a line on standard input, one JSON answer a line

A ``load`` request names ``target``, ``draft`` (a folder or null), ``cap``, ``threads`` and ``settings``; the pipelines
that were there before are dropped. A ``run`` request names ``rows`` (a JSON file: a list of [prompt ids, tokens
wanted]) and ``num_draft_tokens``, 0 for the plain pipeline. It answers ``seconds``, ``token_ids``, ``rows_in_flight``.

The cap is kept here, by admitting a request only when one has ended: with dynamic split-fuse, which is the faster of
the scheduler's two modes, ``max_num_seqs`` does not limit the rows in flight.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KV_CACHE_GB = 4
"""Far more than the workload holds: no request is ever preempted."""


class Pipelines:
    """The plain pipeline and the one with a draft, at one cap."""

    def __init__(self, request: dict[str, Any]) -> None:
        import openvino_genai as genai

        settings = request["settings"]
        self.cap = int(request["cap"])

        def make(draft: str | None) -> Any:
            scheduler = genai.SchedulerConfig()
            scheduler.dynamic_split_fuse = settings["split_fuse"]
            scheduler.max_num_seqs = self.cap
            scheduler.max_num_batched_tokens = settings["batched_tokens"]
            scheduler.enable_prefix_caching = False  # a repeated pass must not find its own prompts
            scheduler.cache_size = KV_CACHE_GB
            properties = {
                "INFERENCE_PRECISION_HINT": "f32",
                "KV_CACHE_PRECISION": "f32",
                "INFERENCE_NUM_THREADS": int(request["threads"]),
                "PERFORMANCE_HINT": settings["hint"],
            }
            if draft is None:
                return genai.ContinuousBatchingPipeline(request["target"], scheduler, "CPU", properties)
            loaded = genai.draft_model(draft, "CPU", **properties)
            return genai.ContinuousBatchingPipeline(
                request["target"], scheduler, "CPU", {**properties, "draft_model": loaded}
            )

        self._plain = make(None)
        self._with_draft = make(request["draft"]) if request["draft"] else None

    def run(self, rows: list[tuple[list[int], int]], num_draft_tokens: int) -> dict[str, Any]:
        """All rows once; ``seconds`` covers admission to the last token."""
        import numpy as np
        import openvino
        import openvino_genai as genai

        pipeline = self._with_draft if num_draft_tokens else self._plain
        if pipeline is None:
            raise ValueError("no draft was loaded")

        def config(wanted: int) -> Any:
            config = genai.GenerationConfig()
            config.max_new_tokens, config.ignore_eos, config.do_sample = wanted, True, False
            if num_draft_tokens:
                config.num_assistant_tokens = num_draft_tokens
            return config

        inputs = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids, _ in rows]
        configs = [config(wanted) for _, wanted in rows]
        token_ids: list[list[int]] = [[] for _ in rows]
        active: dict[int, Any] = {}
        most, admitted = 0, 0
        running = genai.GenerationStatus.RUNNING
        started = time.perf_counter()
        while admitted < len(rows) or active:
            while admitted < len(rows) and len(active) < self.cap:
                active[admitted] = pipeline.add_request(admitted, inputs[admitted], configs[admitted])
                admitted += 1
            most = max(most, len(active))
            pipeline.step()
            for index in [index for index, handle in active.items() if handle.get_status() != running]:
                token_ids[index] = list(active.pop(index).read_all()[0].generated_ids)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "token_ids": token_ids, "rows_in_flight": most}


def convert(model: str, out: str) -> None:
    """Export with a stateful KV cache, which the pipeline turns into its paged one."""
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    full = OVConfig(dtype="fp32")  # or weights kept in half precision stay so, and are widened in every product
    main_export(model, out, task="text-generation-with-past", stateful=True, convert_tokenizer=True, ov_config=full)


def describe() -> dict[str, str]:
    """Versions, for the record."""
    from importlib.metadata import version

    return {name: version(name) for name in ("openvino", "openvino-genai", "optimum-intel")}


def serve(requests: Iterator[str], answers: Any) -> None:
    """Answer requests until the input ends."""
    pipelines: Pipelines | None = None
    for line in requests:
        request = json.loads(line)
        answer: dict[str, Any]
        if request["do"] == "load":
            pipelines = None  # freed before the next ones are made
            pipelines = Pipelines(request)
            answer = describe()
        else:
            if pipelines is None:
                raise ValueError("run before load")
            answer = pipelines.run(json.loads(Path(request["rows"]).read_text()), int(request["num_draft_tokens"]))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main(arguments: list[str]) -> int:
    """Command line of this file."""
    if arguments[:1] == ["convert"] and len(arguments) == 3:
        convert(arguments[1], arguments[2])
        return 0
    if arguments == ["serve"]:
        # Libraries print to standard output too: answers get a descriptor of their own.
        with os.fdopen(os.dup(1), "w") as answers:
            os.dup2(2, 1)
            serve(iter(sys.stdin.readline, ""), answers)
        return 0
    sys.stderr.write("usage: peer_openvino.py convert MODEL OUT | serve\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
