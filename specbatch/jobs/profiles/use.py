"""What a job takes from a profile: its batch size where that is left open, and the forecast. Never its text.

K is not taken: a job measures step times and acceptance anew, on its own rows, and what it learns in its first second
would outweigh what a profile says of another day.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbatch.jobs.profiles.store import Circumstances, Profile, find_profile, generation_of, inputs_sha256
from specbatch.jobs.profiles.table import best_batch, cells, describe_doubt
from specbatch.schemas.errors import SpecbatchError

if TYPE_CHECKING:
    from specbatch.jobs.planning.prepare import PreparedJob
    from specbatch.jobs.profiles.forecast import Forecast, Prompts
    from specbatch.schemas.spec import ExecutionSpec, Speculation
    from specbatch.specdec.models.memory import MemoryPlan


@dataclass(frozen=True, slots=True)
class UsedProfile:
    """A profile and what is taken from it.

    Attributes:
        batch_size: rows in flight; None where the usual number is kept, or the user has given one.
    """

    profile: Profile
    path: Path
    batch_size: int | None

    def document(self) -> dict[str, Any]:
        """JSON values for the record of a run."""
        return {
            "key": self.profile.key,
            "made_at": self.profile.made_at,
            "path": str(self.path),
            "batch_size": self.batch_size,
        }


def use_profile(
    execution: ExecutionSpec,
    here: Circumstances,
    *,
    speculation: Speculation,
    memory: MemoryPlan | None,
    is_stored: bool = False,
) -> UsedProfile | None:
    """The profile that the settings mean and what is taken from it; None where there is none.

    On a cluster ``auto`` takes none: its machines are not this one. The batch size stays as it would be without a
    profile unless another one was measured to be clearly faster, and never grows beyond the memory.

    Args:
        is_stored: the setting is that of a job that goes on, here perhaps on another machine: a profile that cannot be
            used is none then.

    Raises:
        SpecbatchError: JOB_CONFIG; a named profile cannot be used.
    """
    if execution.address is not None and execution.profile == "auto":
        return None
    try:
        found = find_profile(execution.profile, here)
    except SpecbatchError:
        if not is_stored:
            raise
        found = None
    if found is None:
        return None
    profile, path = found
    batch_size = None
    if execution.batch_size == "auto" and memory is not None:
        usual, most = memory.batch_size, max(memory.ledger.row_capacity, 1)
        chosen = best_batch(cells(profile.steps, profile.acceptance), speculation, usual, most)
        batch_size = chosen if chosen != usual else None
    return UsedProfile(profile, path, batch_size)


def profile_notes(prepared: PreparedJob) -> tuple[str, ...]:
    """How this job differs from what its profile was measured with, in words."""
    used = prepared.execution.profile
    if used is None:
        return ()
    doubt = describe_doubt(used.profile)
    notes = [] if doubt is None else [f"its profile is in doubt: {doubt}"]
    if used.profile.inputs_sha256 != inputs_sha256(prepared.inputs):
        notes.append("it was measured with another dataset: lengths and acceptance may differ")
    before, now = used.profile.generation, generation_of(prepared.spec)
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        notes.append(f"it was measured with other settings: {', '.join(changed)}")
    if prepared.execution.device == "cpu" and prepared.execution.num_workers > 1:
        notes.append("workers on one CPU share its memory, which a profile of one worker does not show")
    return tuple(notes)


def forecast_job(prepared: PreparedJob, found: Prompts | None = None) -> Forecast | None:
    """What a job is expected to take; None where there is no profile.

    Args:
        found: a look at the prompts. Without one nothing is read: prompts are taken to be as long as those that the
            profile was measured with, and none to fail.
    """
    from specbatch.jobs.profiles.forecast import forecast

    used = prepared.execution.profile
    if used is None:
        return None
    return forecast(used.profile, found or _like_those_of(used.profile, prepared), prepared.execution)


@dataclass(frozen=True, slots=True)
class _Prompts:
    num_results: int
    num_prompt_tokens: int


def _like_those_of(profile: Profile, prepared: PreparedJob) -> _Prompts:
    num_rows = sum(shard.num_rows for shard in prepared.shards)
    mean = profile.trial.num_prompt_tokens / len(profile.trial.lengths)
    return _Prompts(num_rows * prepared.spec.generation.num_samples, round(num_rows * mean))
