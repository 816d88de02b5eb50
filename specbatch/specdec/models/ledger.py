"""The memory ledger: what both models, their caches and a round will hold, known before anything is loaded.

Pure arithmetic over its lines. Figures are upper bounds where the truth depends on the run: a row counts with its full
length (prompt and ``max_new_tokens``), though most rows end sooner; admission by tokens uses what is left over.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a ledger."""

    name: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where the memory of one worker goes.

    Attributes:
        available_bytes: free before loading. memory_fraction: share of it that may be used.
        fixed: what is held whatever the batch: weights, process, prefill workspace.
        kv: bytes of keys and values per token, one entry for each model.
        row_bytes: workspace of a round for each row in flight.
        row_tokens: length of the row that capacities are counted in.
        batch_size: rows in flight.
    """

    available_bytes: int
    memory_fraction: float
    fixed: tuple[Entry, ...]
    kv: tuple[Entry, ...]
    row_bytes: int
    row_tokens: int
    batch_size: int

    @property
    def budget_bytes(self) -> int:
        """Bytes that may be used."""
        return int(self.available_bytes * self.memory_fraction)

    @property
    def fixed_bytes(self) -> int:
        """Bytes held before the first row comes."""
        return sum(entry.num_bytes for entry in self.fixed)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token, in all models."""
        return sum(entry.num_bytes for entry in self.kv)

    @property
    def row_capacity(self) -> int:
        """Rows of ``row_tokens`` tokens that fit at once."""
        row_bytes = self.row_bytes + self.row_tokens * self.kv_bytes_per_token
        return max((self.budget_bytes - self.fixed_bytes) // row_bytes, 0)

    @property
    def kv_token_budget(self) -> int:
        """Tokens whose keys and values fit beside a batch of ``batch_size`` rows: what admission may hand out.

        At least one row's where one row fits, so that a batch that was asked too large still goes on row by row.
        """
        free_bytes = self.budget_bytes - self.fixed_bytes - self.batch_size * self.row_bytes
        return max(free_bytes // self.kv_bytes_per_token, self.row_tokens if self.row_capacity else 0)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All lines for a full batch of rows of ``row_tokens`` tokens, or of as many tokens as fit."""
        num_tokens = min(self.batch_size * self.row_tokens, self.kv_token_budget)
        cached = tuple(Entry(entry.name, entry.num_bytes * num_tokens) for entry in self.kv)
        return (*self.fixed, *cached, Entry("round workspace", self.batch_size * self.row_bytes))

    @property
    def total_bytes(self) -> int:
        """Sum of all lines."""
        return sum(entry.num_bytes for entry in self.entries)
