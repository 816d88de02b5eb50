"""Settings for the whole suite."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest
from s3_server import S3Server

# Before torch is imported anywhere: tiny models gain nothing from threads, and idle threads spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if importlib.util.find_spec("hypothesis") is not None:  # machines that run the tests of kernels may lack it
    from hypothesis import HealthCheck, settings

    # Time on the wall says more of who else uses the machine than of the code; what hangs, pytest-timeout ends.
    settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3Server]:
    """The one S3 server of this test run. Tests take ``s3_server``, which also points the environment at it."""
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3_server(s3_process: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A running S3 server without faults; this process and its children have the environment for it."""
    for name, value in s3_process.environment.items():
        monkeypatch.setenv(name, value)
    s3_process.inject()
    yield s3_process
    s3_process.inject()
