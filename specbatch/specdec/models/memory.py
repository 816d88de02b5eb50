"""What is loaded and how many rows decode at once, decided by ledgers before anything is loaded.

Pure, and without torch, so that ``plan`` can print it on any machine. ``plan_memory`` compares the ledger of the pair
with that of the target alone, and refuses with the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.specdec.models.division import rank_kv_bytes_per_token, rank_weight_bytes
from specbatch.specdec.models.folders import ModelFolder
from specbatch.specdec.models.footprint import (
    BYTES_PER_LOGIT,
    activation_bytes,
    dtype_bytes_of,
    held_by_rounds,
    kv_number_bytes,
    rotary_bytes,
    text_config,
)
from specbatch.specdec.models.ledger import Entry, Ledger

if TYPE_CHECKING:
    from specbatch.schemas.spec import KvCacheDtype

AUTO_MAX_ROWS: Mapping[str, int] = {"cpu": 32, "cuda": 256}
"""Most rows that ``auto`` puts in flight; behind some 32 rows a CPU is bound by arithmetic, and more gain nothing."""
AUTO_DRAFT_LENGTH = 8
"""Most drafts per row and round where K is chosen by measurement, and what room is kept for. More would pay only for
one or two rows with drafts that are almost always right."""
EXPECTED_PROMPT_TOKENS = 256
"""Length of a prompt where nothing is known about the prompts."""
TYPICAL_ROW_TOKENS = 1024
"""Length of a row, prompt and completion, where nothing is known about either."""
PROCESS_BYTES = 512 << 20
"""What a worker holds beside models and rows: interpreter and libraries on CPU, the device context on CUDA."""
DEFAULT_MEMORY_FRACTION = 0.9

_PREFILL_TOKENS: Mapping[str, int] = {"cpu": 1024, "cuda": 4608}
"""Tokens of one forward with a chunk of prompts, at most; canonical evaluation runs a whole prefix at once."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What will be loaded and how many rows it takes.

    Attributes:
        with_draft: the ledger of the pair, None where no draft was asked for. without_draft: of the target alone, with
            the batch that the draft's memory would allow.
        uses_draft: whether the draft is loaded.
        note: what the user should know, in one line; None where all is as asked.
    """

    with_draft: Ledger | None
    without_draft: Ledger
    uses_draft: bool
    note: str | None

    @property
    def ledger(self) -> Ledger:
        """The ledger of what is loaded."""
        return self.with_draft if self.uses_draft and self.with_draft is not None else self.without_draft

    @property
    def batch_size(self) -> int:
        """Rows in flight."""
        return self.ledger.batch_size

    @property
    def kv_token_budget(self) -> int:
        """Tokens that may be in the caches at once."""
        return self.ledger.kv_token_budget


def plan_memory(
    target: ModelFolder,
    draft: ModelFolder | None,
    *,
    dtype: str,
    device: str,
    available_bytes: int,
    memory_fraction: float = DEFAULT_MEMORY_FRACTION,
    batch_size: int | Literal["auto"] = "auto",
    speculation: int | Literal["auto", "off"] = "auto",
    row_tokens: int = TYPICAL_ROW_TOKENS,
    process_bytes: int = PROCESS_BYTES,
    num_ranks: int = 1,
    kv_cache_dtype: KvCacheDtype = "auto",
) -> MemoryPlan:
    """Decide what is loaded, before it is.

    Args:
        dtype: resolved, never ``auto``. device: ``cpu`` or ``cuda``.
        available_bytes: free now, for one worker: ``host_available_bytes`` or what the device says.
        batch_size: rows in flight; ``auto`` takes ``auto_batch_size``. A number is never changed: rows that do not fit
            at once wait.
        speculation: a fixed K insists on the draft; ``auto`` goes without it where only the pair does not fit.
        row_tokens: expected length of a row, prompt and completion.
        process_bytes: what the process will hold beside models and rows and does not hold yet.
        num_ranks: devices that share the target; the ledger is that of the one that holds the draft too.

    Raises:
        SpecbatchError: JOB_MEMORY with the numbers, where not even one row fits.
    """

    def ledger(pair_draft: ModelFolder | None) -> Ledger:
        made = make_ledger(
            target,
            pair_draft,
            dtype=dtype,
            device=device,
            available_bytes=available_bytes,
            memory_fraction=memory_fraction,
            draft_length=_most_drafts(speculation) if pair_draft is not None else 0,
            row_tokens=row_tokens,
            process_bytes=process_bytes,
            num_ranks=num_ranks,
            kv_cache_dtype=kv_cache_dtype,
        )
        rows = auto_batch_size(made, device) if batch_size == "auto" else batch_size
        return replace(made, batch_size=rows)

    without_draft = ledger(None)
    if without_draft.row_capacity == 0:
        raise _does_not_fit(f"target {target.name}", without_draft, "use a smaller target or --dtype, or more memory")
    if draft is None or speculation == "off":
        return MemoryPlan(None, without_draft, False, _crowding(without_draft))
    with_draft = ledger(draft)
    if with_draft.row_capacity > 0:
        return MemoryPlan(with_draft, without_draft, True, _crowding(with_draft))
    refusal = _does_not_fit(
        f"target {target.name} with draft {draft.name}",
        with_draft,
        "the target alone fits: use --speculation auto or off, or a smaller draft",
    )
    if speculation != "auto":
        raise refusal
    return MemoryPlan(with_draft, without_draft, False, f"decoding without the draft: {refusal.message}")


def make_ledger(
    target: ModelFolder,
    draft: ModelFolder | None,
    *,
    dtype: str,
    device: str = "cpu",
    available_bytes: int,
    memory_fraction: float = DEFAULT_MEMORY_FRACTION,
    draft_length: int = 0,
    row_tokens: int = TYPICAL_ROW_TOKENS,
    batch_size: int = 1,
    process_bytes: int = PROCESS_BYTES,
    num_ranks: int = 1,
    kv_cache_dtype: KvCacheDtype = "auto",
) -> Ledger:
    """The ledger of one worker; where ranks share the target, of the rank that holds the draft.

    Args:
        dtype: resolved, never ``auto``. device: ``cpu`` or ``cuda``.
        draft_length: most drafts of a row in one round.
        row_tokens: expected length of a row, prompt and completion.
        num_ranks: devices that share the target. kv_cache_dtype: what keys and values are kept in.
    """
    ranks = {"target": num_ranks, "draft": 1}
    dtype_bytes = dtype_bytes_of(dtype)
    folders = {"target": target} if draft is None else {"target": target, "draft": draft}
    configs = {role: text_config(folder.config) for role, folder in folders.items()}
    kv_bytes = {role: kv_number_bytes(folder, dtype, kv_cache_dtype) for role, folder in folders.items()}
    chunk_tokens = _PREFILL_TOKENS[device]
    prefill_tokens = max(chunk_tokens, row_tokens)
    prefill_bytes = max(prefill_tokens * activation_bytes(config, dtype_bytes) for config in configs.values())
    vocab_rows = max(int(config["vocab_size"]) for config in configs.values())
    return Ledger(
        available_bytes=available_bytes,
        memory_fraction=memory_fraction,
        fixed=(
            *(
                Entry(
                    f"{role} weights",
                    rank_weight_bytes(folder, dtype, ranks[role])
                    + (rotary_bytes(folder, dtype, device) if ranks[role] == 1 else 0),
                )
                for role, folder in folders.items()
            ),
            # The mask of a prefill has a row for each of its tokens, as wide as the longest row.
            Entry("prefill workspace", prefill_bytes + chunk_tokens * row_tokens * dtype_bytes),
            *(Entry(name, num_bytes) for name, num_bytes in held_by_rounds(device, num_ranks).items()),
            Entry("process", process_bytes),
        ),
        kv=tuple(
            Entry(f"{role} KV", rank_kv_bytes_per_token(config, kv_bytes[role], ranks[role]))
            for role, config in configs.items()
        ),
        row_bytes=(draft_length + 1) * vocab_rows * BYTES_PER_LOGIT[device],
        row_tokens=row_tokens,
        batch_size=batch_size,
    )


def auto_batch_size(ledger: Ledger, device: str) -> int:
    """Rows in flight where the user leaves it open: as many as fit, at most ``AUTO_MAX_ROWS``, at least 1."""
    return max(min(AUTO_MAX_ROWS[device], ledger.row_capacity), 1)


def _most_drafts(speculation: int | Literal["auto", "off"]) -> int:
    if speculation == "off":
        return 0
    return AUTO_DRAFT_LENGTH if speculation == "auto" else speculation


def _does_not_fit(what: str, ledger: Ledger, remedy: str) -> SpecbatchError:
    row_bytes = ledger.row_bytes + ledger.row_tokens * ledger.kv_bytes_per_token
    lines = [*ledger.fixed, Entry(f"one row of {ledger.row_tokens:,} tokens", row_bytes)]
    needed = ", ".join(f"{entry.name} {_size(entry.num_bytes)}" for entry in lines)
    return SpecbatchError(
        ErrorCode.JOB_MEMORY,
        f"{what} needs {_size(ledger.fixed_bytes + row_bytes)} ({needed}); {_size(ledger.available_bytes)} are free, "
        f"of which --memory-fraction {ledger.memory_fraction:g} gives {_size(ledger.budget_bytes)}; {remedy}",
    )


def _crowding(ledger: Ledger) -> str | None:
    if ledger.row_capacity >= ledger.batch_size:
        return None
    return (
        f"of {ledger.batch_size} rows in flight, {ledger.row_capacity} fit in the memory at {ledger.row_tokens:,} "
        "tokens each; long rows wait for room"
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
