"""Keeping Ray's hands off the process that drives a job: its signals, its terminal."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from specbatch.schemas.errors import ErrorCode, SpecbatchError


def assert_not_connected() -> None:
    """Assert that Ray is free for a job.

    Raises:
        SpecbatchError: JOB_CONFIG, this process is connected to a Ray.
    """
    import ray

    if ray.is_initialized():
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            "this process is connected to a Ray cluster already and a job makes its own connection; "
            "call ray.shutdown() first",
        )


def first_line(error: Exception) -> str:
    """What an error of Ray says, without its trace."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def tamed_ray() -> Iterator[None]:
    """Keep Ray from taking over SIGTERM while it starts, and for good from writing to the terminal.

    Its SIGTERM handlers end the process where the run would drain. Its notices (a worker died, with advice about
    Ray) come whatever ``log_to_driver`` says; what matters in them reaches the user through the coordinator. Both
    are module globals; where a later Ray has no such name, only these comforts are lost.
    """
    utils: Any = importlib.import_module("ray._private.utils")
    worker: Any = importlib.import_module("ray._private.worker")
    worker.print_to_stdstream = lambda data, ignore_prefix: None
    before = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before
