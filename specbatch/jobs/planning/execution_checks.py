"""What does not go together in how a run is asked to work: each refused with what to do, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from specbatch.jobs.spec.address import check_address, is_jobs_endpoint
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.spec import ExecutionSpec, JobSpec
from specbatch.specdec.models.arithmetic import is_usual
from specbatch.specdec.models.folders import ModelFolder
from specbatch.specdec.models.quantization import check_device, check_dtype, check_packages


def check_quantization(spec: JobSpec, folders: Sequence[ModelFolder | None], device: str, dtype: str) -> None:
    """Refuse what no worker could load. Packages are looked for here, but not for a cluster: its nodes have their own.

    Raises:
        SpecbatchError: JOB_CONFIG, JOB_MODEL_UNSUPPORTED, JOB_PACKAGE_MISSING.
    """
    for folder in folders:
        if folder is not None:
            check_device(folder.name, folder.quantization, device)
            check_dtype(folder.name, folder.config, folder.quantization, dtype)
            if spec.execution.address is None:
                check_packages(folder.name, folder.quantization)


def check_shared_target(execution: ExecutionSpec, num_ranks: int) -> None:
    """Refuse what does not go with a target that several devices share.

    Raises:
        SpecbatchError: JOB_CONFIG.
    """
    if num_ranks == 1:
        return
    if execution.gpus_per_worker != 1:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"--tensor-parallel-size {num_ranks} takes whole devices; leave --gpus-per-worker at 1",
        )
    if execution.profile not in ("auto", "none"):
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"--profile {execution.profile} was measured on one device; with --tensor-parallel-size {num_ranks} "
            "leave it out",
        )


def refuse_ranks(spec: JobSpec, command: str) -> None:
    """For commands that decode in their own process.

    Raises:
        SpecbatchError: JOB_CONFIG.
    """
    if command == "calibrate" and not is_usual(spec.models.kv_cache_dtype, bitwise=spec.models.bitwise):
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            "calibrate measures the usual arithmetic; leave out --bitwise and --kv-cache-dtype",
        )
    if spec.models.tensor_parallel_size > 1:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"{command} decodes on one device; it cannot be used with --tensor-parallel-size "
            f"{spec.models.tensor_parallel_size}",
        )


def check_needs(execution: ExecutionSpec) -> None:
    """Refuse what means something on a cluster only; nothing that was asked for is ignored.

    Raises:
        SpecbatchError: JOB_CONFIG.
    """
    here = execution.address is None
    no_jobs = not is_jobs_endpoint(execution.address)
    if execution.address is not None:
        check_address(execution.address)
    jobs_only = "--address http://HEAD:8265 (Ray Jobs); without, the driver is this very process"
    for name, is_refused, needed in (
        ("--memory-per-worker", here and execution.memory_per_worker is not None, "--address"),
        ("--node-labels", here and bool(execution.node_labels), "--address"),
        ("--accelerator-type", here and execution.accelerator_type is not None, "--address"),
        ("--entrypoint-num-cpus", no_jobs and execution.entrypoint_num_cpus > 0, jobs_only),
        ("--entrypoint-memory", no_jobs and execution.entrypoint_memory is not None, jobs_only),
        ("--no-wait", no_jobs and not execution.wait, jobs_only),
    ):
        if is_refused:
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"{name} needs {needed}")
