"""What the product asks of its surroundings, answered by the simulator: time, chance, process and host, threads.

Only the product's own modules are touched, and only while a run lasts: each that has imported one of these standard
modules gets a stand-in for it, which outside of actors still is the standard module.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import random
import re
import secrets
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, BinaryIO, TypeVar

import pyarrow.parquet as pq

from specbatch.jobs.output import lease, ledger
from specbatch.storage import parts, planfile
from specbatch.workers import part_writer

from .scheduler import Scheduler

EPOCH_SECONDS = 1_700_000_000.0
_PLACEHOLDER = "0" * 32
_TOKEN = re.compile(rb'"token":"([0-9a-f]{32})"')

T = TypeVar("T")
U = TypeVar("U")


class _StandIn(ModuleType):
    """A standard module with some names replaced, for actors only."""

    def __init__(self, real: ModuleType, scheduler: Scheduler, **replaced: Any) -> None:
        super().__init__(real.__name__)
        self._real = real
        self._scheduler = scheduler
        self._replaced = replaced

    def __getattr__(self, name: str) -> Any:
        if name in self._replaced and self._scheduler.current is not None:
            return self._replaced[name]
        return getattr(self._real, name)


class InlineExecutor:
    """A thread pool without threads: an actor does everything itself, in order."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __enter__(self) -> InlineExecutor:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def map(self, function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
        return iter([function(item) for item in items])

    def submit(self, function: Callable[..., U], *args: Any) -> SimpleNamespace:
        answer = function(*args)
        return SimpleNamespace(result=lambda timeout=None: answer)

    def shutdown(self, *args: Any, **options: Any) -> None:
        pass


def _process_started(scheduler: Scheduler, pid: int) -> str | None:
    """The lease asks whether the holder of an output lives."""
    actor = next((actor for actor in scheduler.actors if actor.pid == pid), None)
    return None if actor is None or not actor.is_alive else f"start of {actor.name}"


def _running(scheduler: Scheduler) -> Any:
    assert scheduler.current is not None
    return scheduler.current


def _stand_ins(scheduler: Scheduler, generator: random.Random) -> dict[str, tuple[object, object]]:
    """For each name that a product module may hold: what it is, and what stands in for it."""
    names: dict[str, tuple[ModuleType, dict[str, Any]]] = {
        "time": (
            time,
            {
                "time": lambda: EPOCH_SECONDS + scheduler.now_seconds,
                "monotonic": lambda: scheduler.now_seconds,
                # Stops within a part's writing would make its statistics differ; they are no concern here.
                "perf_counter": lambda: 0.0,
                "sleep": scheduler.sleep,
            },
        ),
        "random": (random, {"random": generator.random, "uniform": generator.uniform, "choice": generator.choice}),
        "secrets": (secrets, {"token_hex": lambda num_bytes=16: generator.randbytes(num_bytes).hex()}),
        "uuid": (uuid, {"uuid4": lambda: uuid.UUID(int=generator.getrandbits(128))}),
        "os": (os, {"getpid": lambda: _running(scheduler).pid}),
        "socket": (socket, {"gethostname": lambda: _running(scheduler).host}),
    }
    return {name: (real, _StandIn(real, scheduler, **replaced)) for name, (real, replaced) in names.items()}


@contextmanager
def simulated(scheduler: Scheduler, generator: random.Random, *patches: tuple[object, str, object]) -> Iterator[None]:
    """Let the product see the simulator's world.

    Args:
        patches: further attributes to replace: object, name, value.
    """
    wanted: list[tuple[object, str, object]] = [
        (lease, "process_started", functools.partial(_process_started, scheduler)),
        (ledger, "now_text", lambda: f"second {scheduler.now_seconds:.3f}"),
        (part_writer, "write_part", _write_part_again),
        (planfile, "encode_plan", _encode_plan_again),
        (planfile, "decode_plan", _decode_plan_again),
    ]
    stand_ins = _stand_ins(scheduler, generator)
    stand_ins["ThreadPoolExecutor"] = (ThreadPoolExecutor, InlineExecutor)
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("specbatch."):
            for name, (real, stand_in) in stand_ins.items():
                if module.__dict__.get(name) is real:
                    wanted.append((module, name, stand_in))
    wanted += patches
    undo = [(place, name, getattr(place, name)) for place, name, _ in wanted]
    try:
        for place, name, value in wanted:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in reversed(undo):
            setattr(place, name, value)


# Parquet is what takes the time of a run, and its files differ in the attempt's token alone: each is made and read
# once for real, and then with another token in the same place.

_real_write_part = parts.write_part
_real_read_part_meta = parts.read_part_meta
_encode_plan_again = functools.cache(planfile.encode_plan)
_decode_plan_again = functools.cache(planfile.decode_plan)
_written: dict[tuple[object, ...], bytes] = {}


def _write_part_again(path: Path, rows: Any, results: Any, meta: parts.PartMeta, **options: Any) -> parts.PartMeta:
    options.pop("clock", None)
    unnamed = dataclasses.replace(meta, token=_PLACEHOLDER)
    key = (unnamed, repr(results), repr(sorted(options.items())))
    if key not in _written:
        _real_write_part(path, rows, results, unnamed, **options)
        _written[key] = path.read_bytes()
        path.unlink()
        assert len(_TOKEN.findall(_written[key])) == 1
    path.write_bytes(_written[key].replace(_PLACEHOLDER.encode(), meta.token.encode()))
    return meta


@functools.cache
def _rows_of(unnamed: bytes) -> tuple[parts.PartMeta, tuple[dict[str, Any], ...]]:
    table = pq.ParquetFile(io.BytesIO(unnamed), page_checksum_verification=True).read(use_threads=False)
    return _real_read_part_meta(io.BytesIO(unnamed)), tuple(table.to_pylist())


def read_part(data: bytes) -> tuple[parts.PartMeta, tuple[dict[str, Any], ...]]:
    """Footer and rows of a part's bytes; the footer's token is left out.

    Raises:
        ValueError: it is no part.
    """
    if len(_TOKEN.findall(data)) != 1:
        raise ValueError("no part")
    return _rows_of(_TOKEN.sub(b'"token":"' + _PLACEHOLDER.encode() + b'"', data))


def part_token(data: bytes) -> str:
    """Which attempt wrote a part."""
    found = _TOKEN.search(data)
    assert found is not None
    return found[1].decode()


def read_part_meta_again(file: BinaryIO | Path) -> parts.PartMeta:
    """``read_part_meta`` of a file in memory, read for real once for all tokens."""
    assert not isinstance(file, Path)
    data = file.read()
    return dataclasses.replace(read_part(data)[0], token=part_token(data))
