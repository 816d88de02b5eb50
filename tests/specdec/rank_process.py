"""A rank as a process of its own: ``python rank_process.py ROLE FOLDER NUM_RANKS RANK``.

``follow`` serves a target; ``keep`` too, in a process that goes on after an error, as Ray's do. ``lead`` and ``mate``
share no target, only barriers; ``MOMENT`` says where they stand when something happens: both idle, the mate in a
barrier, or the leader in a barrier. With ``forward`` the leader loads ``MODEL`` and runs it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from specbatch.specdec.ranks.group import Follower, Leader
from specbatch.specdec.ranks.meeting import Seat


def main() -> None:
    role, folder, num_ranks, rank = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    seat = Seat(folder, num_ranks, "cpu")
    torch.set_num_threads(1)
    moment = os.environ.get("MOMENT", "idle")
    if role == "lead":
        lead(seat, moment)
    elif role == "mate":
        mate(Follower(seat, rank, 0))
    else:
        from specbatch.specdec.ranks.parallel import follow

        try:
            follow(Follower(seat, rank, 1 << 40), torch.device("cpu"), num_ranks)
        except Exception:
            if role == "keep":
                time.sleep(600)
            raise


def lead(seat: Seat, moment: str) -> None:
    from specbatch.specdec.ranks.parallel import load_parallel

    leader = Leader(seat, lambda error: say(f"told: {error}"))
    leader.gather()
    if moment == "forward":
        target = load_parallel(
            leader,
            Path(os.environ["MODEL"]),
            torch.float64,
            torch.device("cpu"),
            num_slots=2,
            max_positions=16,
            context_length=16,
            vocab_size=16,
        )
        say("ready")
        try:
            target.canonical_logits(torch.arange(5))
        except Exception as error:
            say(f"raised: {error}")
        time.sleep(600)
    leader.tell(moment)
    say("ready")
    if moment == "overload":
        say(f"raised: {leader.fail(MemoryError())}")
    if moment != "wait":
        time.sleep(600)
    try:
        dist.barrier()
    except Exception as error:
        say(f"raised: {leader.fail(error)}")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def mate(follower: Follower) -> None:
    for moment in follower.messages():
        if moment == "collective":
            dist.barrier()
        elif moment == "wait":
            time.sleep(600)


if __name__ == "__main__":
    main()
