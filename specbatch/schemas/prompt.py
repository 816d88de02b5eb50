"""How a prompt is made of a row, and which of the row's columns pass through to the results."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.suggest import did_you_mean

if TYPE_CHECKING:
    from specbatch.schemas.spec import InputSpec, JobSpec

ROW_PARAM_COLUMNS: tuple[str, ...] = ("max_new_tokens", "temperature", "top_p", "top_k", "seed")
"""Columns that override the settings of the same name under ``row_params``, where the dataset has them."""


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """How prompts, seeds and sampling come from rows. ``InputSpec`` says what the fields mean.

    Attributes:
        column: the prompt column; not used where there are messages or a template.
        truncate: at which end a prompt is cut that is too long.
    """

    column: str = "prompt"
    messages_column: str | None = None
    template: str | None = None
    system: str | None = None
    truncate: Literal["error", "left", "right"] = "error"
    row_params: bool = False
    seed_by: Literal["row", "id"] = "row"
    id_column: str | None = None

    @staticmethod
    def of(spec: JobSpec) -> PromptSpec:
        """The part of a job that says how prompts are made."""
        given = spec.input
        return PromptSpec(
            column=given.prompt_column,
            messages_column=given.messages_column,
            template=given.template,
            system=given.system,
            truncate=given.truncate_prompt,
            row_params=given.row_params,
            seed_by=spec.generation.seed_by,
            id_column=given.id_column,
        )

    @property
    def is_chat(self) -> bool:
        """Whether prompts are chats, which the chat template of the target renders."""
        return self.messages_column is not None or self.system is not None


@dataclass(frozen=True, slots=True)
class PassThrough:
    """The input columns that the parts hold: (name in the dataset, name in the parts), in the order of the parts."""

    columns: tuple[tuple[str, str], ...]

    @staticmethod
    def of(
        given: InputSpec, names: Sequence[str], reserved: Collection[str] = (), bookkeeping: Collection[str] = ()
    ) -> PassThrough:
        """What ``keep_columns`` and ``rename`` make of the columns of a dataset.

        Kept columns stand in the order in which they are named.

        Args:
            names: of all columns of the dataset.
            reserved: names that no column of a part may have but those that are added.
            bookkeeping: columns of an earlier job, where the dataset is one's output: they pass through only where they
                are kept or renamed by name.

        Raises:
            SpecbatchError: JOB_COLUMN_MISSING, a named column does not exist; JOB_COLUMN_RESERVED, a name is reserved;
                JOB_CONFIG, a name is given twice, or a column is renamed that is not kept.
        """
        pairs = [pair.partition("=") for pair in given.rename]
        renamed = {old: new for old, _, new in pairs}
        _require_once([old for old, _, _ in pairs], names, "--rename")
        if given.keep_columns is None:
            kept = [name for name in names if name not in bookkeeping or name in renamed]
        else:
            kept = list(given.keep_columns)
            _require_once(kept, names, "--keep-columns")
        if not kept and names:
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG, "no column passes through; name at least one with --keep-columns"
            )
        for old, new in renamed.items():
            if old not in kept:
                raise SpecbatchError(
                    ErrorCode.JOB_CONFIG, f"--rename {old}={new}: {old!r} is not kept; add --keep-columns {old}"
                )
        columns = tuple((name, renamed.get(name, name)) for name in kept)
        _check_names([new for _, new in columns], renamed, reserved)
        return PassThrough(columns)

    @property
    def old(self) -> tuple[str, ...]:
        """Names in the dataset."""
        return tuple(old for old, _ in self.columns)

    @property
    def new(self) -> tuple[str, ...]:
        """Names in the parts."""
        return tuple(new for _, new in self.columns)


def missing_column(name: str, names: Sequence[str], option: str) -> SpecbatchError:
    """JOB_COLUMN_MISSING for a column that ``option`` names."""
    return SpecbatchError(
        ErrorCode.JOB_COLUMN_MISSING,
        f"the dataset has no column {name!r} ({option}); its columns are {listed(names)}; "
        + did_you_mean(name, names, "name one of these"),
    )


def listed(names: Sequence[str]) -> str:
    """Names for a message; of very many the first."""
    shown = ", ".join(map(repr, names[:_MAX_LISTED]))
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return shown + more or "none at all"


_MAX_LISTED = 40


def _require_once(wanted: Sequence[str], names: Sequence[str], option: str) -> None:
    for place, name in enumerate(wanted):
        if name not in names:
            raise missing_column(name, names, option)
        if name in wanted[:place]:
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"{option} names {name!r} twice; name it once")


def _check_names(new: Sequence[str], renamed: dict[str, str], reserved: Collection[str]) -> None:
    if taken := [name for name in new if name in reserved]:
        if (name := taken[0]) in renamed.values():
            raise SpecbatchError(
                ErrorCode.JOB_COLUMN_RESERVED,
                f"--rename to {name!r}: specbatch writes a column of that name; choose another, or --output-prefix",
            )
        raise SpecbatchError(
            ErrorCode.JOB_COLUMN_RESERVED,
            f"input column {listed(taken)} has a name that specbatch writes; give it another one, for example with "
            f"--rename {name}=input_{name}, or put --output-prefix before the names of specbatch",
        )
    if doubled := next((name for place, name in enumerate(new) if name in new[:place]), None):
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG, f"two columns would be called {doubled!r}; choose other --rename names"
        )


class ChatText(str):
    """What a chat template wrote: special tokens in it are commands, unlike in a plain prompt.

    Attributes:
        literals: ranges [start, stop) that came from the row and only look like special tokens: they stay text.
    """

    literals: tuple[tuple[int, int], ...]

    def __new__(cls, text: str, literals: Sequence[tuple[int, int]] = ()) -> ChatText:
        made = super().__new__(cls, text)
        made.literals = tuple(literals)
        return made

    def __getnewargs__(self) -> tuple[str, tuple[tuple[int, int], ...]]:  # type: ignore[override]  # as pickle has it
        return (str(self), self.literals)

    def pieces(self) -> list[tuple[str, bool]]:
        """(text, whether special tokens in it are commands), in order, nothing empty."""
        found: list[tuple[str, bool]] = []
        at = 0
        for start, stop in self.literals:
            found += [(self[at:start], True), (self[start:stop], False)]
            at = stop
        return [(text, is_command) for text, is_command in [*found, (self[at:], True)] if text]
