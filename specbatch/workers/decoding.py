"""The face of the engine that a worker sees: the seam at which tests and benchmarks put a smaller one."""

from __future__ import annotations

import importlib
import json
import os
import platform
import socket
from collections.abc import Callable, Collection, Hashable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from specbatch._version import __version__
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.failpoints import failpoint
from specbatch.schemas.messages import MemoryReport, RoundBlock, WorkerConfig, WorkerReady
from specbatch.schemas.sampling import SamplingParams
from specbatch.schemas.spec import Speculation
from specbatch.schemas.stats import PhaseSeconds
from specbatch.specdec.models.quantization import METHODS, ON_LOAD
from specbatch.specdec.output import SequenceOutput

if TYPE_CHECKING:
    from specbatch.specdec.engine import Engine
    from specbatch.specdec.ranks.group import Leader

ENGINE_FACTORY_VARIABLE = "SPECBATCH_ENGINE_FACTORY"
"""``module:function`` that makes the engine of every worker process instead of the pair: for tests and benchmarks of
the job system. Nothing is said of it in the output, so it is not for real jobs."""

_DRAFT_FAULTS = frozenset(
    {
        ErrorCode.JOB_MODEL_LOAD,
        ErrorCode.JOB_MODEL_MISSING,
        ErrorCode.JOB_MODEL_UNSUPPORTED,
        ErrorCode.JOB_PACKAGE_MISSING,
        ErrorCode.JOB_UNSAFE_WEIGHTS,
    }
)
"""Errors of a load that may be the draft's; one of the target comes again when that is loaded alone."""
_VERSIONED = ("torch", "transformers", "tokenizers", "pyarrow")


class PromptEncoder(Protocol):
    """Text to token ids."""

    def encode(self, text: str) -> list[int]: ...


class DecodingEngine(Protocol):
    """What a worker asks of an engine; ``specdec.engine.Engine`` gives it. One thread makes it and calls it.

    ``max_batch_size``, rows in flight, may change from step to step: an engine that gives up its draft has room for
    more, one whose memory runs short for fewer. ``cancel`` forgets sequences, of which ``step`` then returns none;
    ``check_device`` raises ``JOB_DEVICE`` where the device no longer computes what it computed at start.
    ``note`` is what the user should know about how loading went.
    """

    context_length: int
    note: str | None

    @property
    def seconds(self) -> PhaseSeconds: ...
    @property
    def tokenizer(self) -> PromptEncoder: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def max_batch_size(self) -> int: ...
    @property
    def num_queued(self) -> int: ...
    @property
    def num_active(self) -> int: ...
    def submit(self, key: Hashable, prompt_ids: Sequence[int], params: SamplingParams) -> None: ...
    def step(self) -> list[SequenceOutput]: ...
    def take_blocks(self) -> tuple[RoundBlock, ...]: ...
    def memory(self) -> MemoryReport: ...
    def cancel(self, keys: Collection[Hashable]) -> None: ...
    def cancel_all(self) -> None: ...
    def check_device(self) -> None: ...


EngineFactory = Callable[[WorkerConfig], DecodingEngine]


def load_engine(config: WorkerConfig, lead: Callable[[], Leader] | None = None) -> DecodingEngine:
    """Load the pair that the configuration names, or what ``SPECBATCH_ENGINE_FACTORY`` makes instead.

    Args:
        lead: waits for the ranks that share the target; None where none do.

    Raises:
        SpecbatchError: the codes of the model checks; ``JOB_CONFIG`` where the variable names nothing that can be
            imported; ``JOB_MODEL_LOAD`` for whatever else goes wrong.
    """
    name = os.environ.get(ENGINE_FACTORY_VARIABLE)
    try:
        failpoint("worker_load:before")
        engine = _load_pair(config, lead and lead()) if name is None else _import_factory(name)(config)
        failpoint("worker_load:after")
        return engine
    except SpecbatchError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise SpecbatchError(
            ErrorCode.JOB_MODEL_LOAD,
            f"the models {config.target_path} and {config.draft_path} cannot be loaded: "
            f"{type(error).__name__}: {reason}; check the folders and the free memory",
        ) from error


def describe_worker(
    config: WorkerConfig, engine: DecodingEngine, memory: MemoryReport, load_seconds: float
) -> WorkerReady:
    """What a worker says about itself once its models are loaded."""
    return WorkerReady(
        worker=config.worker,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=engine.device,
        dtype=engine.dtype,
        num_threads=config.num_threads,
        load_seconds=load_seconds,
        memory=memory,
        versions=(
            ("python", platform.python_version()),
            ("specbatch", __version__),  # this code's, which need not be what is installed
            *((name, version(name)) for name in (*_VERSIONED, *_quantization_packages(config))),
        ),
        note=engine.note,
    )


def _quantization_packages(config: WorkerConfig) -> tuple[str, ...]:
    """Packages whose code multiplies the target's weights; none where they are dense."""
    if config.quantization is not None:
        return METHODS[ON_LOAD[config.quantization].method].packages
    path = Path(config.target_path) / "config.json"
    stored = json.loads(path.read_bytes()).get("quantization_config") if path.is_file() else None
    return METHODS[str(stored["quant_method"])].packages if isinstance(stored, dict) else ()


def _load_pair(config: WorkerConfig, leader: Leader | None) -> DecodingEngine:
    """The pair; the target alone where the draft is what cannot be loaded: the text is the same, only later."""
    try:
        return _load(config, config.draft_path, config.speculation, leader)
    except Exception as error:
        if config.draft_path is None or not _may_be_the_draft(config, error):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    _forget_attempt(config)  # out here, where nothing refers to the error and to what lay on its way
    engine = _load(config, None, "auto" if config.speculation == "auto" else "off", leader)
    engine.note = f"the draft {config.draft_path} cannot be loaded, going on without it ({reason})"
    return engine


def _forget_attempt(config: WorkerConfig) -> None:
    """Free the target that had been loaded when the draft failed."""
    import torch

    from specbatch.specdec.forward.runner import give_back_memory

    give_back_memory(torch.device(config.device))


def _may_be_the_draft(config: WorkerConfig, error: Exception) -> bool:
    """Whether the target alone is worth a try; under ``distribution`` the text is the draft's too."""
    if config.generation.coupling == "distribution" or isinstance(error, MemoryError):
        return False
    return not isinstance(error, SpecbatchError) or error.code in _DRAFT_FAULTS


def _load(config: WorkerConfig, draft_path: str | None, speculation: Speculation, leader: Leader | None) -> Engine:
    from specbatch.specdec.engine import Engine

    return Engine.from_pretrained(
        config.target_path,
        draft_path,
        max_batch_size=config.batch_size,
        speculation=speculation,
        device=config.device,
        dtype=config.dtype,
        coupling=config.generation.coupling,
        memory_fraction=_memory_fraction(config),
        num_threads=config.num_threads,
        quantization=config.quantization,
        kv_cache_dtype=config.kv_cache_dtype,
        bitwise=config.bitwise,
        leader=leader,
    )


def _memory_fraction(config: WorkerConfig) -> float:
    """The share of the memory that is free now; of a shared GPU so much that this worker's is a share of the whole."""
    if config.device_share >= 1 or not config.device.startswith("cuda"):
        return config.memory_fraction
    import torch

    free_bytes, total_bytes = torch.cuda.mem_get_info(config.device)
    return shared_fraction(config.memory_fraction, config.device_share, free_bytes, total_bytes)


def shared_fraction(memory_fraction: float, device_share: float, free_bytes: int, total_bytes: int) -> float:
    """The share of the free memory that makes up ``memory_fraction`` of a worker's share of the whole, at most all."""
    return min(memory_fraction * device_share * total_bytes / max(free_bytes, 1), memory_fraction)


def _import_factory(name: str) -> EngineFactory:
    module, _, function = name.partition(":")
    try:
        return cast(EngineFactory, getattr(importlib.import_module(module), function))
    except (ImportError, AttributeError, ValueError) as error:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"{ENGINE_FACTORY_VARIABLE}={name} cannot be imported ({type(error).__name__}: {error}); "
            "give module:function, or unset it to decode with the models",
        ) from error
