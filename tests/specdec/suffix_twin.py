"""Slow twin of the suffix index: lists, loops, and nothing forgotten."""

from __future__ import annotations

from specbatch.specdec.drafters.suffix import CONTEXT_LENGTH


def common_suffix(first: list[int], second: list[int]) -> int:
    """Tokens that two texts have in common at their ends, as far as the index compares."""
    count = 0
    while count < min(len(first), len(second), CONTEXT_LENGTH) and first[-1 - count] == second[-1 - count]:
        count += 1
    return count


class NaiveIndex:
    """Every text ever opened, and the places of their tokens in the order in which they came."""

    def __init__(self, ngram_lengths: tuple[int, ...]) -> None:
        self.lengths = sorted(ngram_lengths, reverse=True)
        self.texts: list[list[int]] = []
        self.places: list[tuple[int, int]] = []
        self.row_of_slot: dict[int, int] = {}

    def text(self, slot: int) -> list[int]:
        """All that the row of a slot has said."""
        return self.texts[self.row_of_slot[slot]]

    def open(self, slot: int, prompt: list[int]) -> None:
        """Begin a row."""
        self.row_of_slot[slot] = len(self.texts)
        self.texts.append([])
        self.append(slot, prompt)

    def append(self, slot: int, tokens: list[int]) -> None:
        """Add tokens to a row."""
        row = self.row_of_slot[slot]
        for token in tokens:
            self.places.append((row, len(self.texts[row])))
            self.texts[row].append(token)

    def propose(self, slot: int, max_drafts: int) -> tuple[list[int], int, bool]:
        """Drafts, length of the match, and whether it is the row's own: longest match, own before other, latest."""
        mine = self.row_of_slot[slot]
        text = self.texts[mine]
        best: tuple[int, bool, list[int]] = (0, False, [])
        for is_own in (True, False):
            for n in self.lengths:
                place = self._latest(text, n, mine if is_own else None)
                if place is None:
                    continue
                row, position = place
                match = common_suffix(self.texts[row][:position], text)
                if (match, is_own) > best[:2]:
                    drafts: list[int] = []
                    source = self.texts[row] if row != mine else list(text)
                    for j in range(max_drafts):
                        if position + j == len(source):
                            break
                        drafts.append(source[position + j])
                        if row == mine:
                            source.append(drafts[-1])
                    best = (match, is_own, drafts)
        return best[2], best[0], best[1]

    def _latest(self, text: list[int], n: int, only_row: int | None) -> tuple[int, int] | None:
        """Latest place behind the last n tokens of a text."""
        if len(text) < n:
            return None
        for row, position in reversed(self.places):
            is_allowed = only_row is None or row == only_row
            if is_allowed and position >= n and self.texts[row][position - n : position] == text[-n:]:
                return row, position
        return None

    def explains(self, slot: int, drafts: list[int], match: int) -> bool:
        """Whether the drafts follow an occurrence of the row's last ``match`` tokens in some text ever seen."""
        mine = self.row_of_slot[slot]
        context = self.texts[mine][-match:]
        for row, text in enumerate(self.texts):
            source = text + drafts if row == mine else text
            for position in range(match, len(text)):
                is_there = source[position - match : position] == context
                if is_there and source[position : position + len(drafts)] == drafts:
                    return True
        return False
