"""What a run is about: all of it follows from the seed."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from .checker import Violation
from .jobs import SimulatedJob, make_job
from .network import S3_FAULTS, STORE_FAULTS, Fault

Layer = Literal["store", "s3"]
JOB = 2
OLDER_JOB = 1
LAYERS: tuple[Layer, ...] = ("store", "s3")


@dataclass(frozen=True)
class Scenario:
    """What a run is about. All of it follows from the seed, unless a test wants something in particular.

    Attributes:
        cuts: shard sizes that the runs ask for in turn; the first one that begins the job decides.
        num_slots: coordinators that somebody keeps running, each started again until the job is complete.
        uses_lease: without it both coordinators work all the time: correctness must not need it.
        reader: somebody who reads the output all the while.
        gc: somebody who removes garbage all the while.
        poison: rows that kill whoever decodes them.
        reuse: the prefix is emptied while an older job's workers live, and given to another job.
    """

    seed: int
    layer: Layer = "store"
    num_rows: int = 7
    cuts: tuple[int, ...] = (3,)
    num_slots: int = 1
    num_workers: int = 2
    fault_rate: float = 0.15
    num_faults: int = 5
    uses_lease: bool = True
    reader: bool = False
    gc: bool = False
    poison: tuple[int, ...] = ()
    reuse: bool = False

    @property
    def jobs(self) -> list[SimulatedJob]:
        """Every job and cut that may be met."""
        numbers = (OLDER_JOB, JOB) if self.reuse else (JOB,)
        return [make_job(number, self.num_rows, cut) for number in numbers for cut in dict.fromkeys(self.cuts)]

    @property
    def fault_kinds(self) -> frozenset[Fault]:
        kinds = STORE_FAULTS if self.layer == "store" else S3_FAULTS
        if self.reuse:  # a late request of the old job's coordinator would be the user's own doing
            kinds -= {Fault.LATE, Fault.REPEAT}
        if self.poison:  # a worker that hangs on an innocent row is blamed on that row
            kinds -= {Fault.STALL_BEFORE, Fault.STALL_AFTER, Fault.OTHER_STALLS}
        return kinds


def scenario_of(seed: int, layer: Layer) -> Scenario:
    """The scenario that a seed stands for."""
    generator = random.Random(f"scenario {seed}")
    num_rows = generator.randint(1, 9)
    cut = generator.randint(1, 4)
    kind = generator.random()
    return Scenario(
        seed,
        layer,
        num_rows=num_rows,
        cuts=(cut,) if generator.random() < 0.6 else (cut, generator.randint(1, 4)),
        num_slots=generator.choice((1, 2, 2)),
        num_workers=generator.randint(1, 3),
        fault_rate=generator.choice((0.1, 0.25, 0.5)),
        num_faults=generator.choice((0, 2, 4, 6, 8)),
        uses_lease=generator.random() < 0.7,
        reader=generator.random() < 0.3,
        gc=generator.random() < 0.2,
        poison=(generator.randrange(num_rows),) if kind < 0.08 else (),
        reuse=0.08 <= kind < 0.2,
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run."""

    scenario: Scenario
    trace: tuple[str, ...]
    faults_met: Counter[Fault]
    objects: dict[str, bytes]
    violation: BaseException | None

    @property
    def rule(self) -> str | None:
        """Which rule was broken; None if none was."""
        if self.violation is None:
            return None
        return self.violation.rule if isinstance(self.violation, Violation) else type(self.violation).__name__
