"""What an option of a job is: its name, its kind, and what ``--help`` shows of it. The options stand in ``options``.

Nothing is imported here: ``--help`` must be quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Kind = Literal["text", "choice", "flag", "int", "float", "scalar", "scalars", "texts"]
"""``scalar``: a number or a word such as auto. ``scalars``: several, apart by commas or repeated. ``texts``: repeated,
for items that may hold commas."""


class Group(StrEnum):
    """Headings of ``--help``, in its order."""

    DATA = "Data"
    RESULTS = "Results"
    MODELS = "Models"
    GENERATION = "Generation"
    SPECULATION = "Speculation"
    RESOURCES = "Resources"
    CLUSTER = "Cluster"
    JOB = "Job"
    COMMAND = "Command"


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        name: as in Python; ``--name`` with dashes on the command line.
        path: of the setting in ``JobSpec``.
        shape: what ``--help`` shows for its value.
        choices: of a ``choice``.
        is_free: may be changed when a job is resumed.
    """

    name: str
    path: str
    group: Group
    kind: Kind
    help: str
    shape: str | None = None
    choices: tuple[str, ...] = ()
    is_free: bool = False
