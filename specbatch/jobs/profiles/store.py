"""Profiles: what ``calibrate`` measured of a pair on a machine, kept as JSON for the jobs that come after it.

A profile is found by its key, a digest of what decides how fast the pair is: the files of both models, dtype, device,
threads, version. ``submit`` and ``plan`` look into the user's cache folder
(``$XDG_CACHE_HOME/specbatch/profiles/<key>.json``) or read the file that ``--profile`` names. There are no prompts and
no completions in it.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from specbatch._version import __version__
from specbatch.schemas.canonical import canonical_json, sha256_hex
from specbatch.schemas.errors import ErrorCode, SpecbatchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from specbatch.schemas.plan import InputFile
    from specbatch.schemas.spec import JobSpec
    from specbatch.specdec.models.folders import ModelFolder

PROFILE_FORMAT = "specbatch/profile/1"
_KEY_LENGTH = 16
_MAX_BYTES = 8 << 20

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Circumstances(_Document):
    """What a profile holds for. ``device_name`` is the model of the CPU or GPU; threads count on CPU alone."""

    target_sha256: str
    draft_sha256: str | None
    dtype: str
    device: str
    device_name: str
    num_threads: int | None
    version: str

    @property
    def key(self) -> str:
        """Name of the profile in the cache folder."""
        return sha256_hex(canonical_json(self.model_dump(mode="json")))[:_KEY_LENGTH]


class PositionRecord(_Document):
    """One draft position: how often it was judged (all before it were accepted), and how often it was accepted."""

    reached: Count
    accepted: Count

    @model_validator(mode="after")
    def _none_is_accepted_unjudged(self) -> Self:
        if self.accepted > self.reached:
            raise ValueError("accepted must not be more than reached")
        return self


class StepRecord(_Document):
    """Rounds with one batch size and one K.

    Attributes:
        rows: mean of the rows that took part. seconds: median of a round. spread: half of the middle half of the
            rounds, as a share of the median.
    """

    batch_size: Annotated[int, Field(ge=1)]
    draft_length: Count
    num_rounds: Annotated[int, Field(ge=1)]
    rows: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    spread: Seconds


class TrialRecord(_Document):
    """Rows of the dataset decoded from beginning to end as a job would do it.

    Attributes:
        lengths: tokens of each row that began, and whether its completion ended by itself: one that was cut by
            ``max_new_tokens``, by the context or by the end of the trial would have become longer.
        seconds: of decoding. load_seconds: of importing and loading both models.
        prefill_seconds: reading prompts, without what rode along with rounds.
        overhead: how much longer the rest took than the table of steps says.
        speed_error: relative standard error of the speed, from the scatter over the trial.
    """

    batch_size: Annotated[int, Field(ge=1)]
    speculation: int | str
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    load_seconds: Seconds
    prefill_seconds: Seconds
    num_prompt_tokens: Count
    num_completion_tokens: Annotated[int, Field(ge=1)]
    overhead: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    speed_error: Seconds
    lengths: Annotated[tuple[tuple[Annotated[int, Field(ge=1)], bool], ...], Field(min_length=1)]


class Profile(_Document):
    """What was measured.

    Attributes:
        made_at: UTC, ISO 8601. target, draft: names as they were given. draft_bytes: weights and caches of the draft.
        inputs_sha256, generation: of the dataset and the sampling that it was measured with.
        acceptance: by draft position. steps: by batch size and K, ascending.
    """

    format: str
    made_at: str
    circumstances: Circumstances
    target: str
    draft: str | None
    draft_bytes: Count
    inputs_sha256: str
    generation: dict[str, Any]
    acceptance: tuple[PositionRecord, ...]
    steps: Annotated[tuple[StepRecord, ...], Field(min_length=1)]
    trial: TrialRecord

    @model_validator(mode="after")
    def _has_plain_steps(self) -> Self:
        if all(step.draft_length > 0 for step in self.steps):
            raise ValueError("steps must have one with draft_length 0")
        return self

    @property
    def key(self) -> str:
        """Name in the cache folder."""
        return self.circumstances.key


def circumstances_of(
    target: ModelFolder, draft: ModelFolder | None, *, dtype: str, device: str, device_name: str, num_threads: int
) -> Circumstances:
    """What a job's profile must have been measured under."""
    return Circumstances(
        target_sha256=_files_sha256(target),
        draft_sha256=None if draft is None else _files_sha256(draft),
        dtype=dtype,
        device=device,
        device_name=device_name,
        num_threads=num_threads if device == "cpu" else None,
        version=__version__,
    )


def inputs_sha256(inputs: Sequence[InputFile]) -> str:
    """Digest that tells datasets apart; places of files do not matter."""
    return sha256_hex(canonical_json([[file.name, file.size_bytes, file.footer_sha256] for file in inputs]))


def generation_of(spec: JobSpec) -> dict[str, Any]:
    """The sampling of a job as a profile records it; the seed makes no difference to speed."""
    return {name: value for name, value in spec.generation.model_dump(mode="json").items() if name != "seed"}


def find_profile(setting: str, circumstances: Circumstances) -> tuple[Profile, Path] | None:
    """The profile that ``--profile`` means, and where it is; None for ``none``, and where ``auto`` finds none.

    Raises:
        SpecbatchError: JOB_CONFIG; a named file cannot be read, is no profile of this version's format, or was measured
            under other circumstances.
    """
    if setting == "none":
        return None
    if setting == "auto":
        path = cache_path(circumstances.key)
        try:
            profile = None if path is None else read_profile(path)
        except SpecbatchError:
            return None  # a cache that cannot be read is none
        is_ours = profile is not None and profile.circumstances == circumstances
        return (profile, path) if profile is not None and path is not None and is_ours else None
    path = Path(setting).expanduser()
    profile = read_profile(path)
    if changes := differences(profile.circumstances, circumstances):
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"--profile {setting} was measured under other circumstances ({'; '.join(changes)}); "
            "run specbatch calibrate with these settings on this machine, or use --profile none",
        )
    return profile, path


def differences(measured: Circumstances, here: Circumstances) -> tuple[str, ...]:
    """``what: measured with, here`` of everything that differs, in words."""
    names = {
        "target_sha256": "target",
        "draft_sha256": "draft",
        "dtype": "dtype",
        "device": "device",
        "device_name": "device name",
        "num_threads": "threads",
        "version": "version of specbatch",
    }
    return tuple(
        f"{word}: {_short(getattr(measured, name))} there, {_short(getattr(here, name))} here"
        for name, word in names.items()
        if getattr(measured, name) != getattr(here, name)
    )


def read_profile(path: Path) -> Profile:
    """Read a profile.

    Raises:
        SpecbatchError: JOB_CONFIG; it cannot be read, or is none of this format.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _unusable(path, (error.strerror or type(error).__name__).lower()) from None
    if len(data) > _MAX_BYTES:
        raise _unusable(path, f"it is larger than {_MAX_BYTES} bytes")
    try:
        profile = Profile.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise _unusable(path, f"{where}: {first['msg']}") from None
    if profile.format != PROFILE_FORMAT:
        raise _unusable(path, f"its format is {profile.format[:60]!r}, this version reads {PROFILE_FORMAT!r}")
    return profile


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile, whole or not at all.

    Raises:
        SpecbatchError: JOB_OUTPUT_UNWRITABLE.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        spool = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        spool.write_text(profile.model_dump_json(indent=1) + "\n")
        spool.replace(path)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise SpecbatchError(
            ErrorCode.JOB_OUTPUT_UNWRITABLE, f"the profile cannot be written to {path}: {reason}; give --save FILE"
        ) from None


def cache_path(key: str) -> Path | None:
    """Where the profile of a key lies in the user's cache folder; None where this user has none."""
    top = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(top) if Path(top).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return folder / "specbatch" / "profiles" / f"{key}.json"


def _files_sha256(folder: ModelFolder) -> str:
    """Digest of a model as it is loaded: what is done to its weights on loading changes how fast it is."""
    files: dict[str, object] = dict(folder.files)
    if folder.quantization is not None and folder.quantization.on_load is not None:
        files["quantization"] = folder.quantization.on_load
    return sha256_hex(canonical_json(files))


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text[:12] if len(text) == 64 else text


def _unusable(path: Path, reason: str) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_CONFIG,
        f"the profile {path} cannot be used: {reason}; make one with specbatch calibrate, or use --profile none",
    )
