"""How a run works on this machine: device, workers, threads, batch, memory, draft and profile.

Nothing here changes the text. Imports neither torch nor ray.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

from specbatch.jobs.output.jobdocument import JOB_KEY
from specbatch.jobs.planning.execution_checks import check_needs, check_quantization, check_shared_target
from specbatch.jobs.planning.machine import count_cores, count_cuda_devices, cuda_free_bytes, device_name
from specbatch.jobs.profiles.store import circumstances_of
from specbatch.jobs.profiles.use import UsedProfile, use_profile
from specbatch.jobs.spec.settings import Settings
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.spec import DataType, JobSpec, Speculation
from specbatch.specdec.models.arithmetic import check_arithmetic, is_usual
from specbatch.specdec.models.division import check_division
from specbatch.specdec.models.families import model_path
from specbatch.specdec.models.folders import (
    ModelFolder,
    check_pair,
    context_length,
    default_draft,
    locate_model,
    resolve_dtype,
)
from specbatch.specdec.models.host import host_available_bytes
from specbatch.specdec.models.memory import EXPECTED_PROMPT_TOKENS, MemoryPlan, plan_memory
from specbatch.specdec.models.quantization import check_ranks


@dataclass(frozen=True, slots=True)
class Execution:
    """How a run works; nothing here changes the text.

    Attributes:
        draft: None also where the pair does not fit in the memory.
        speculation: how K is chosen; ``off`` where there is no draft.
        batch_size: rows in flight of each worker; ``auto`` on a GPU or a cluster, whose memory the worker knows best.
        num_threads: arithmetic threads of each worker on CPU, or of each of its ranks.
        num_ranks: devices that share the target, each with a process of a worker's.
        memory: the ledger of one worker; None where the free memory of the device cannot be seen from here.
        profile: what ``calibrate`` measured of this pair on this machine, and what is taken from it.
    """

    device: str
    dtype: DataType
    draft: ModelFolder | None
    speculation: Speculation
    num_workers: int
    batch_size: int | Literal["auto"]
    num_threads: int
    memory: MemoryPlan | None
    memory_fraction: float
    max_new_tokens: int
    price_per_device_hour: float | None = None
    profile: UsedProfile | None = None
    num_ranks: int = 1


def resolve_draft(settings: Settings, target: ModelFolder) -> tuple[ModelFolder | None, Speculation]:
    """The draft and how K is chosen. Without a draft, ``auto`` still has the suffix index; a fixed K insists on one.

    Raises:
        SpecbatchError: JOB_CONFIG, a fixed K without a draft; the codes of ``locate_model`` and ``check_pair``.
    """
    spec = settings.spec
    if spec.execution.speculation == "off":
        return None, "off"
    name = spec.models.draft if spec.models.draft is not None else default_draft(spec.models.target)
    if name is None or name == "none":
        if spec.execution.speculation != "auto":
            origin = settings.origins["execution.speculation"]
            why = "--draft none was given" if name == "none" else f"no draft is known for {spec.models.target}"
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG,
                f"execution.speculation is {spec.execution.speculation} (from {origin}), but {why}; "
                "name one with --draft, or use --speculation off",
            )
        return None, "auto"
    draft = locate_model(name)
    check_pair(target, draft)
    return draft, spec.execution.speculation


def resolve_execution(
    settings: Settings, target: ModelFolder, draft: ModelFolder | None, speculation: Speculation
) -> Execution:
    """Devices, threads, memory and profile of a run on this machine.

    Raises:
        SpecbatchError: JOB_NO_CAPACITY, a device that is not here; JOB_MEMORY; what ``use_profile``,
            ``check_division`` and ``check_ranks`` raise.
    """
    spec, num_ranks = settings.spec, settings.spec.models.tensor_parallel_size
    check_division(target.name, target.config, num_ranks)
    check_ranks(target.name, target.quantization, num_ranks)
    models = spec.models
    check_arithmetic(
        target.name,
        model_path(target.config, is_quantized=target.quantization is not None),
        models.kv_cache_dtype,
        bitwise=models.bitwise,
        coupling=spec.generation.coupling,
        num_ranks=num_ranks,
    )
    if not is_usual(models.kv_cache_dtype, bitwise=models.bitwise) and spec.execution.profile not in ("auto", "none"):
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"--profile {spec.execution.profile} was measured in the usual arithmetic; with --bitwise or "
            "--kv-cache-dtype leave it out",
        )
    device, num_workers = _resolve_device(spec)
    dtype = cast(DataType, resolve_dtype(spec.models.dtype, device, target))
    check_quantization(spec, (target, draft), device, dtype)
    batch_size = spec.execution.batch_size
    memory: MemoryPlan | None = None
    # On a cluster each worker plans with the memory that it finds on its node.
    free_bytes = _free_bytes(spec, device, num_workers * num_ranks)

    def plan(available_bytes: int, batch_size: int | Literal["auto"]) -> MemoryPlan:
        return plan_memory(
            target,
            draft,
            dtype=dtype,
            device=device,
            available_bytes=available_bytes,
            memory_fraction=spec.execution.memory_fraction,
            batch_size=batch_size,
            speculation=speculation,
            row_tokens=min(EXPECTED_PROMPT_TOKENS + spec.generation.max_new_tokens, context_length(target)),
            num_ranks=num_ranks,
            kv_cache_dtype=models.kv_cache_dtype,
        )

    loaded = draft
    if free_bytes is not None:
        memory = plan(free_bytes, batch_size)
        if not memory.uses_draft:
            loaded = None
        if device == "cpu":
            batch_size = memory.batch_size
    num_threads = max(count_cores() // (num_workers * num_ranks), 1)
    # What calibrate measured is one device's, in the usual arithmetic.
    profile = (
        None
        if num_ranks > 1 or not is_usual(models.kv_cache_dtype, bitwise=models.bitwise)
        else use_profile(
            spec.execution,
            circumstances_of(
                target, loaded, dtype=dtype, device=device, device_name=device_name(device), num_threads=num_threads
            ),
            speculation=speculation,
            memory=memory,
            is_stored=settings.origins["execution.profile"] == JOB_KEY,
        )
    )
    if free_bytes is not None and profile is not None and profile.batch_size is not None:
        batch_size = profile.batch_size
        memory = plan(free_bytes, batch_size)
    return Execution(
        device=device,
        dtype=dtype,
        draft=loaded,
        speculation=speculation,
        num_workers=num_workers,
        batch_size=batch_size,
        num_threads=num_threads,
        memory=memory,
        memory_fraction=spec.execution.memory_fraction,
        max_new_tokens=spec.generation.max_new_tokens,
        price_per_device_hour=spec.execution.price_per_device_hour,
        profile=profile,
        num_ranks=num_ranks,
    )


def _free_bytes(spec: JobSpec, device: str, num_processes: int) -> int | None:
    """Free memory for one process; None where it cannot be seen from here, as on a cluster."""
    if spec.execution.address is not None:
        return None
    if device == "cpu":
        return host_available_bytes() // num_processes
    found = cuda_free_bytes()
    return None if found is None else int(found * spec.execution.gpus_per_worker)


def _resolve_device(spec: JobSpec) -> tuple[str, int]:
    """Device and number of workers: one per GPU or share of one, or one on CPU, unless told otherwise.

    Of a cluster, whose machines have what this one may lack, only the device is settled here.
    """
    execution, num_ranks = spec.execution, spec.models.tensor_parallel_size
    check_needs(execution)
    check_shared_target(execution, num_ranks)
    num_gpus = count_cuda_devices() if execution.device != "cpu" else 0
    if execution.address is not None:
        device = "cuda" if num_gpus or execution.device == "cuda" else "cpu"
        return device, max(num_gpus // num_ranks, 1) if execution.workers == "auto" else execution.workers
    if execution.device == "cuda" and num_gpus == 0:
        raise SpecbatchError(
            ErrorCode.JOB_NO_CAPACITY,
            "no CUDA device can be used here (none present or visible, or torch is a CPU build); use --device cpu",
        )
    device = "cuda" if num_gpus else "cpu"
    num_devices, kind = (num_gpus, "CUDA devices") if device == "cuda" else (count_cores(), "cores")
    if num_ranks > num_devices:
        raise SpecbatchError(
            ErrorCode.JOB_NO_CAPACITY,
            f"--tensor-parallel-size {num_ranks}: this machine has {num_devices} {kind}, and each rank needs one",
        )
    most = num_gpus // num_ranks * math.floor(1 / execution.gpus_per_worker + 1e-6)
    workers = execution.workers
    if workers == "auto":
        return device, max(most, 1)
    if device == "cuda" and workers > most:
        share = "one" if execution.gpus_per_worker == 1 else f"{execution.gpus_per_worker:g} of one"
        share = share if num_ranks == 1 else str(num_ranks)
        raise SpecbatchError(
            ErrorCode.JOB_NO_CAPACITY,
            f"--workers {workers}: there are {num_gpus} CUDA devices; each worker needs {share}",
        )
    return device, workers
