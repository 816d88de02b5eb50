"""What a thread of the host computes with: how many threads, and which device is its current one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


@contextmanager
def single_threaded(device: torch.device) -> Iterator[None]:
    """Sums may be split differently over another number of threads; canonical evaluation must not depend on it."""
    if device.type != "cpu":
        yield
        return
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current one: graphs, events and kernels of Triton belong to that, whatever their tensors say."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
