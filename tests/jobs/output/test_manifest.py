"""The manifest: a pure function of the parts, the same whoever builds it; and what the runs add to it."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from finished_output import build, make_run

from specbatch.jobs.output.manifest import (
    Part,
    build_commit,
    build_observed,
    decode_manifest,
    encode_manifest,
    success_digest,
)
from specbatch.jobs.output.timeline import MAX_BUCKETS, build_timeline
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import PartRecord
from specbatch.schemas.run import BlockRecord, RunRecord
from specbatch.schemas.stats import PartStats, PhaseSeconds, SpecCounters, length_histogram


def part(path: str, score_seconds: float = 0.1, **changes: object) -> Part:
    counters = SpecCounters(
        num_spec_steps=10,
        num_plain_steps=2,
        num_draft_tokens=27,
        num_accepted_draft_tokens=13,
        acceptance_histogram=(3, 3, 2, 2),
        draft_length_histogram=(0, 1, 1, 8),
    )
    stats = PartStats(
        num_rows=3,
        num_results=3,
        num_ok=2,
        num_prompt_tokens=30,
        num_completion_tokens=24,
        num_near_ties=1,
        errors_by_code=(("ROW_TOO_LONG", 1),),
        counters=counters,
        seconds=PhaseSeconds(score=score_seconds),
    )
    return Part(PartRecord(path=path, rows=3, bytes=100, sha256="a" * 64), stats)


def test_commit_sums_parts_and_derives_ratios() -> None:
    commit = build_commit([part("data/b"), part("data/a")])
    assert commit.counts.model_dump() == {
        "rows": 6,
        "results": 6,
        "ok": 4,
        "errors": 2,
        "errors_by_code": {"ROW_TOO_LONG": 2},
    }
    assert commit.tokens.model_dump() == {"prompt": 60, "completion": 48, "draft": 54, "accepted": 26}
    assert commit.near_ties == 2
    assert commit.acceptance.rate == 26 / 54
    assert commit.acceptance.mean_accepted == 26 / 20
    assert commit.acceptance.mean_emitted == 48 / 24
    assert commit.acceptance.histogram == [6, 6, 4, 4]
    # Position 1 was proposed in all 20 steps and accepted in 14; position 3 in 16 and 4.
    assert commit.acceptance.by_position == [14 / 20, 8 / 18, 4 / 16]
    assert [record.path for record in commit.parts] == ["data/a", "data/b"]


def test_commit_without_speculation_has_no_ratios() -> None:
    stats = PartStats(
        num_rows=1, num_results=1, num_ok=1, num_completion_tokens=5, counters=SpecCounters(num_plain_steps=5)
    )
    commit = build_commit([Part(part("data/a").record, stats)])
    assert (commit.acceptance.rate, commit.acceptance.mean_accepted) == (None, None)
    assert commit.acceptance.mean_emitted == 1.0
    assert (commit.acceptance.histogram, commit.acceptance.by_position) == ([], [])


def test_positions_that_never_had_a_hit_are_zero() -> None:
    counters = SpecCounters(
        num_spec_steps=4, num_draft_tokens=8, acceptance_histogram=(4,), draft_length_histogram=(0, 0, 4)
    )
    commit = build_commit([Part(part("data/a").record, PartStats(counters=counters))])
    assert commit.acceptance.by_position == [0.0, 0.0]


def test_the_order_of_arrival_does_not_change_a_byte(tmp_path: Path) -> None:
    """0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1: the sums must be taken in one order."""
    parts = [part("data/c", 0.3), part("data/a", 0.1), part("data/b", 0.2)]
    manifest = build(tmp_path / "out").manifest
    encoded = {
        encode_manifest(manifest.model_copy(update={"commit": build_commit(order)}))
        for order in itertools.permutations(parts)
    }
    assert len(encoded) == 1
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1


def test_manifest_survives_the_file(tmp_path: Path) -> None:
    manifest = build(tmp_path / "out").manifest
    data = encode_manifest(manifest)
    assert decode_manifest(data) == manifest
    assert encode_manifest(decode_manifest(data)) == data
    assert list(json.loads(data)) == ["commit", "format", "identity", "job_id", "models", "observed", "spec", "stored"]


def test_success_is_what_sha256sum_reads(tmp_path: Path) -> None:
    root = build(tmp_path / "out").root
    data = (root / "manifest.json").read_bytes()
    assert success_digest(data).split()[0].decode() == hashlib.sha256(data).hexdigest()
    done = subprocess.run(["sha256sum", "--check", "--strict", "_SUCCESS"], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "manifest.json: OK\n")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"format": "specbatch/manifest/1", "near": 1e999}', "not JSON"),
        (b"[]", "has format"),
        (b'{"format": "specbatch/manifest/2"}', "use the version of specbatch that wrote it"),
        (b'{"format": "specbatch/manifest/1"}', "job_id: Field required"),
    ],
)
def test_what_is_no_manifest_is_refused_in_one_line(data: bytes, words: str) -> None:
    with pytest.raises(SpecbatchError) as caught:
        decode_manifest(data)
    assert caught.value.code is ErrorCode.JOB_FORMAT
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_observed_counts_what_all_runs_decoded() -> None:
    commit = build_commit([part("data/a")])
    stats = part("data/a").stats
    first = make_run(1, stats, k=3, outcome="interrupted", wall_seconds=2.0, total_seconds=3.0, attempts=2)
    second = make_run(2, stats, k=3, wall_seconds=4.0, total_seconds=5.0, attempts=3, restarts=1)
    observed = build_observed([second, first], commit)
    assert observed.throughput.wall_seconds == 6.0
    assert observed.throughput.total_seconds == 8.0
    assert observed.throughput.output_tokens_per_second == 48 / 6.0
    assert observed.throughput.rows_per_second == 6 / 6.0
    assert observed.throughput.idle_share == pytest.approx(0.1)
    assert [(item["epoch"], item["worker"]) for item in observed.throughput.per_worker] == [(1, 0), (2, 0)]
    assert (observed.attempts, observed.restarts, observed.runs) == (5, 1, 2)
    assert observed.k_share == {"0": 2 / 12, "1": 1 / 12, "2": 1 / 12, "3": 8 / 12}
    assert observed.memory[0]["draft_bytes"] == 3_600_000
    assert observed.versions == {"torch": "2.13.0", "transformers": "5.23.0"}
    assert observed.speedup.ratio == pytest.approx(1.6)
    assert observed.speedup.num_plain_rounds == 40


def test_the_last_run_that_worked_is_described() -> None:
    """A run that only found all parts there and wrote the manifest has no workers to speak of."""
    commit = build_commit([part("data/a")])
    worked = make_run(1, part("data/a").stats, k=3)
    found = worked.model_copy(update={"epoch": 2, "workers": [], "execution": {"speculation": 9}, "wall_seconds": 0.0})
    observed = build_observed([worked, found], commit)
    assert observed.execution == worked.execution
    assert len(observed.memory) == 1


def test_a_run_with_speculation_off_does_not_dilute_the_speedup() -> None:
    commit = build_commit([part("data/a")])
    stats = part("data/a").stats
    on, off = make_run(1, stats, k=3, ratio=2.0), make_run(2, stats, k=0)
    slow = [block.model_copy(update={"plain_seconds": 90.0}) for block in off.workers[0].blocks]
    off = off.model_copy(update={"workers": [off.workers[0].model_copy(update={"blocks": slow})]})
    assert build_observed([on, off], commit).speedup.ratio == pytest.approx(2.0)
    assert build_observed([off], commit).speedup.note == "speculation was off"


def test_observed_without_any_run_stands_on_the_commit() -> None:
    observed = build_observed([], build_commit([part("data/a")]))
    assert observed.throughput.output_tokens_per_second == 0.0
    assert (observed.runs, observed.k_share, observed.timeline, observed.execution) == (0, {}, [], {})


def blocks_of(run: RunRecord, blocks: list[BlockRecord]) -> RunRecord:
    return run.model_copy(update={"workers": [run.workers[0].model_copy(update={"blocks": blocks})]})


@pytest.mark.parametrize("num_blocks", [1, 7, 5000])
def test_timeline_keeps_every_token_in_at_most_200_buckets(num_blocks: int) -> None:
    block = make_run(1, part("data/a").stats, k=3).workers[0].blocks[0]
    blocks = [block.model_copy(update={"at_seconds": 5.0 * (i + 1)}) for i in range(num_blocks)]
    run = blocks_of(make_run(1, part("data/a").stats, k=3, total_seconds=5.0 * num_blocks), blocks)
    timeline = build_timeline([run, run.model_copy(update={"epoch": 2})])
    assert len(timeline) <= MAX_BUCKETS
    width = timeline[0]["seconds"]
    tokens = sum(bucket["tokens_per_second"] * width for bucket in timeline)
    assert tokens == pytest.approx(2 * num_blocks * (block.num_spec_tokens + block.num_plain_tokens), rel=1e-3)
    assert timeline[-1]["seconds"] == pytest.approx(10.0 * num_blocks, rel=1e-3)
    keys = {"seconds", "tokens_per_second", "tokens_per_round", "spec_share", "workers", "acceptance", "k_share"}
    assert all(set(bucket) == keys for bucket in timeline)
    assert timeline[-1]["spec_share"] == pytest.approx(48 / 50)
    assert timeline[-1]["workers"] == 1
    assert (timeline[-1]["acceptance"], timeline[-1]["k_share"]) == (None, None)


def test_timeline_has_acceptance_k_and_workers_of_each_bucket() -> None:
    run = make_run(1, part("data/a").stats, k=3, total_seconds=20.0)
    block = run.workers[0].blocks[0].model_copy(update={"spec_seconds": 10.0, "plain_seconds": 0.0})
    first = block.model_copy(
        update={"at_seconds": 10.0, "draft_length_histogram": (1, 0, 3), "num_accepted_draft_tokens": 3}
    )
    second = block.model_copy(update={"at_seconds": 20.0, "draft_length_histogram": (4,)})
    alone = run.workers[0].model_copy(update={"blocks": [first, second]})
    other = run.workers[0].model_copy(update={"worker": 1, "blocks": [first]})
    timeline = build_timeline([run.model_copy(update={"workers": [alone, other]})])
    assert [bucket["workers"] for bucket in timeline] == [2] * 10 + [1] * 10
    assert [bucket["acceptance"] for bucket in timeline] == [0.5] * 10 + [None] * 10
    assert [bucket["k_share"] for bucket in timeline] == [[0.25, 0.0, 0.75]] * 10 + [[1.0]] * 10


def test_lengths_are_added_up_and_unknown_where_a_part_lacks_them() -> None:
    old = part("data/a")
    stats = replace(old.stats, prompt_lengths=(0, 0, 1, 1), completion_lengths=(0, 2), num_cut=1)
    new = Part(part("data/b").record, stats)
    lengths = build_commit([new, Part(part("data/c").record, stats)]).lengths
    assert lengths is not None
    assert lengths.model_dump() == {"prompt": [0, 0, 2, 2], "completion": [0, 4], "num_cut": 2}
    assert build_commit([new, old]).lengths is None


def test_length_histogram_counts_binary_digits() -> None:
    assert length_histogram([0, 1, 2, 3, 4, 7, 8, 8]) == (1, 1, 2, 2, 2)
    assert length_histogram([]) == ()


def test_cost_counts_gpus_while_they_are_held_and_machines_for_the_whole_run() -> None:
    run = make_run(1, part("data/a").stats, k=3, total_seconds=7200.0, execution={"price_per_device_hour": 2.0})
    worker = run.workers[0].model_copy(update={"active_seconds": 3000.0, "idle_seconds": 500.0, "load_seconds": 100.0})
    on_cpu = run.model_copy(update={"workers": [worker, worker.model_copy(update={"worker": 1})]})
    gpus = [worker.model_copy(update={"worker": n, "device": "cuda"}) for n in range(3)]
    on_gpu = run.model_copy(update={"epoch": 2, "workers": gpus})
    commit = build_commit([part("data/a")])
    cost = build_observed([on_cpu], commit).cost
    assert cost is not None
    assert cost.model_dump() == {"device_hours": 2.0, "price_per_device_hour": 2.0, "total": 4.0}
    cost = build_observed([on_cpu, on_gpu], commit).cost
    assert cost is not None
    assert (cost.device_hours, cost.total) == (5.0, 10.0)
    without = on_gpu.model_copy(update={"execution": {}})
    cost = build_observed([on_cpu, without], commit).cost
    assert cost is not None
    assert (cost.device_hours, cost.total) == (5.0, None)
    assert build_observed([], commit).cost is None


def test_what_went_wrong_in_any_run_is_in_the_manifest() -> None:
    stats, commit = part("data/a").stats, build_commit([part("data/a")])
    first = make_run(
        1,
        stats,
        k=3,
        total_seconds=10.0,
        outcome="interrupted",
        crashes=2,
        quarantined=("n1/cuda",),
        events=((1.0, "worker 0 died: x"),),
        forecast={"wall_seconds": 5.0},
    )
    worker = first.workers[0].model_copy(update={"draft_given_up_seconds": 3.5})
    second = make_run(2, stats, k=3, crashes=1, quarantined=("n0/cuda", "n1/cuda"), forecast={"wall_seconds": 9.0})
    observed = build_observed([first, second.model_copy(update={"workers": [worker]})], commit)
    assert (observed.deaths, observed.quarantined) == (3, ["n0/cuda", "n1/cuda"])
    assert observed.forecast == {"wall_seconds": 5.0}
    assert [(run.epoch, run.outcome, run.deaths) for run in observed.history] == [
        (1, "interrupted", 2),
        (2, "complete", 1),
    ]
    assert observed.history[0].ended_at == "2026-11-23T10:00:10+00:00"
    assert [(event.epoch, event.text) for event in observed.events] == [(1, "worker 0 died: x")]
    assert observed.draft_given_up is not None
    assert observed.draft_given_up.model_dump() == {"workers": 1, "at_seconds": 3.5}
    assert build_observed([first], commit).draft_given_up is None
