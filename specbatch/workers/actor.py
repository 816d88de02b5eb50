"""The Ray actor: the worker's five methods, and nothing of its own.

Ray never restarts the actor and never repeats a call: the coordinator has its own attempt budget, and a repeated call
could hand out the same news twice. Ray imports the class by name on the worker's node, where the user's current
directory comes first on the path; every import of ours begins with ``specbatch.``, so nothing there can shadow it.
"""

from __future__ import annotations

from typing import Any

_MAX_CONCURRENCY = 4
"""A long poll may wait while assign, drain and stop come through."""


def actor_class() -> Any:
    """The worker as a Ray remote class: ``actor_class().options(num_cpus=…).remote(config)``."""
    import ray

    from specbatch.workers.worker import Worker

    return ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=_MAX_CONCURRENCY)(Worker)
