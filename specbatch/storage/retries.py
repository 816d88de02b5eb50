"""How often this process has asked a store again: one number for metrics, whatever the store."""

from __future__ import annotations

import threading

_lock = threading.Lock()
_num_retries = 0


def count_retry() -> None:
    """A request failed in passing and will be made again."""
    global _num_retries
    with _lock:
        _num_retries += 1


def num_retries() -> int:
    """Requests that were made again since this process started."""
    return _num_retries
