"""A rank as a process of its own: ``python rank_process.py ROLE FOLDER NUM_RANKS RANK``.

``follow`` serves a target. ``lead`` and ``mate`` share no target, only barriers; ``MOMENT`` says where they stand when
something happens: both idle, the mate in a barrier, the leader in a barrier, or the mate out of memory meanwhile.
"""

from __future__ import annotations

import os
import sys
import time

import torch
import torch.distributed as dist

from specbatch.specdec.rank_meeting import Seat
from specbatch.specdec.ranks import Follower, Leader


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
        from specbatch.specdec.parallel import follow

        follow(Follower(seat, rank, 1 << 40), torch.device("cpu"), num_ranks)


def lead(seat: Seat, moment: str) -> None:
    leader = Leader(seat, lambda error: say(f"told: {error}"))
    leader.gather()
    leader.tell(moment)
    say("ready")
    if moment == "overload":
        say(f"raised: {leader.fail(MemoryError())}")
    if moment not in ("wait", "fail"):
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
        elif moment == "fail":
            follower.answer(torch.OutOfMemoryError("no room"))
            raise SystemExit(1)


if __name__ == "__main__":
    main()
