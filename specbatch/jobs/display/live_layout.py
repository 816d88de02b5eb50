"""What the live view shows, line by line, for a terminal of any size. Pure: a snapshot goes in, lines come out.

The most important comes first and stays longest: rows, then speed, errors, K, workers, news. Workers that are not well
stand before those that are, and those for which there is no room are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.display.cells import ELLIPSIS, head, tail, text_width
from specbatch.jobs.display.live_workers import GAP, WorkerLine, worker_line, workers_table
from specbatch.schemas.run import ProgressDocument

_MAX_NOTES = 4
_MIN_WORKER_LINES = 4
_MIN_BAR, _MAX_BAR = 8, 40
_MAX_NAME = 60
_DONE, _HALF, _LEFT = "━", "╸", "─"
LIVE_STATES = ("starting", "running", "draining")
"""Of a run that goes on; what others are called does not matter here."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that the live view shows.

    Attributes:
        silence_seconds: since the last sign of life of the run, where that is too long; else None.
        k_shares: pairs (K, share), lately, by K.
        errors: pairs (code, rows), the most frequent first.
        notes: pairs (time of day, words), the latest last.
    """

    output: str
    state: str
    elapsed_seconds: float | None
    rows_done: int
    num_rows: int
    parts_done: int
    num_parts: int
    eta_seconds: float | None = None
    tokens_per_second: float = 0.0
    tokens_per_second_overall: float | None = None
    acceptance_rate: float | None = None
    mean_accepted: float | None = None
    mean_emitted: float | None = None
    k_shares: tuple[tuple[int, float], ...] = ()
    workers: tuple[WorkerLine, ...] = ()
    num_errors: int = 0
    errors: tuple[tuple[str, int], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    silence_seconds: float | None = None

    @property
    def is_done(self) -> bool:
        """Whether every row of the job is done."""
        return self.rows_done >= self.num_rows


def snapshot_of(
    doc: ProgressDocument, *, rows_done: int, elapsed_seconds: float | None = None, silence_seconds: float | None = None
) -> Snapshot:
    """A progress document as it is shown; everything in it that came from outside is made fit for a terminal.

    Args:
        rows_done: rows of the whole job that are done.
        elapsed_seconds: since the run began; as the document has it if None.
    """
    errors = Counter({fmt.clean(code, 40): count for code, count in doc.errors_by_code.items()})
    shares = [(int(k), share) for k, share in doc.k_shares.items() if k.isdecimal()]
    return Snapshot(
        output=fmt.clean(doc.output),
        state=fmt.clean(doc.state, 24),
        elapsed_seconds=doc.elapsed_seconds if elapsed_seconds is None else elapsed_seconds,
        rows_done=rows_done,
        num_rows=doc.num_rows,
        parts_done=doc.parts_done,
        num_parts=doc.num_parts,
        eta_seconds=doc.eta_seconds,
        tokens_per_second=doc.tokens_per_second,
        tokens_per_second_overall=doc.tokens_per_second_overall,
        acceptance_rate=doc.acceptance_rate,
        mean_accepted=doc.mean_accepted,
        mean_emitted=doc.mean_emitted,
        k_shares=tuple(sorted(shares)),
        workers=tuple(worker_line(line) for line in doc.workers),
        num_errors=doc.num_errors,
        errors=tuple(errors.most_common()),
        notes=tuple((time_of_day(note.at), fmt.clean(note.message)) for note in doc.notes),
        silence_seconds=silence_seconds,
    )


def layout(snapshot: Snapshot, width: int, height: int) -> list[str]:
    """The view for so many columns and lines: never wider, never higher; trailing spaces are left out."""
    if width < 1 or height < 1:
        return []
    essential = [_rows_line(snapshot, width)]
    if height > 1:
        essential.insert(0, _header(snapshot, width))
    optional = [_speed_line(snapshot, width), _error_line(snapshot, width), _k_line(snapshot, width)]
    lines = essential + [line for line in optional if line][: max(height - len(essential), 0)]
    room = height - len(lines)
    notes = [head(f"{at} {words}", width) for at, words in snapshot.notes[-_MAX_NOTES:]]
    living = snapshot.workers if snapshot.state in LIVE_STATES else ()
    num_notes = min(len(notes), max(room - min(_MIN_WORKER_LINES, len(living) + 1), 0))
    workers = workers_table(living, width, room - num_notes)
    return [line.rstrip() for line in (*lines, *workers, *notes[len(notes) - num_notes :])]


def span(seconds: float) -> str:
    """``45 s``, ``3 min``, ``2 h``, ``3 d``: a time in one unit."""
    if seconds < 60:
        return f"{max(seconds, 0.0):.0f} s"
    if seconds < 7200:
        return f"{seconds // 60:.0f} min"
    return f"{seconds // 3600:.0f} h" if seconds < 172_800 else f"{seconds // 86_400:.0f} d"


def time_of_day(at: str) -> str:
    """``10:00:05`` of an ISO time; empty for what is no such time."""
    clock = at[11:19]
    return clock if len(clock) == 8 and clock.replace(":", "").isdecimal() else ""


# ---- single lines ----------------------------------------------------------------------------------------------------


def _header(snapshot: Snapshot, width: int) -> str:
    state = snapshot.state
    if snapshot.silence_seconds is not None:
        state = f"no sign of life for {span(snapshot.silence_seconds)}"
    fields = [state]
    if snapshot.elapsed_seconds is not None:
        fields.append(fmt.clock(snapshot.elapsed_seconds))
    words = _joined(fields, width)
    room = min(width - text_width(words) - len(GAP), _MAX_NAME)
    if not snapshot.output or room < _MIN_BAR:
        return words
    return tail(snapshot.output, room) + GAP + words


def _rows_line(snapshot: Snapshot, width: int) -> str:
    """Rows and their share, ETA and parts while there is room, and a bar in what is left."""
    share = snapshot.rows_done / snapshot.num_rows if snapshot.num_rows else 1.0
    fields = [f"rows {snapshot.rows_done:,}/{snapshot.num_rows:,}", f"{int(min(share, 1.0) * 100)} %"]
    if not snapshot.is_done and snapshot.state in LIVE_STATES:
        eta = "unknown" if snapshot.eta_seconds is None else fmt.clock(snapshot.eta_seconds)
        fields.append(f"ETA {eta}")
    fields.append(f"parts {snapshot.parts_done:,}/{snapshot.num_parts:,}")
    while len(fields) > 1 and text_width(GAP.join(fields)) + len(GAP) + _MIN_BAR > width:
        fields.pop()
    room = min(width - text_width(GAP.join(fields)) - len(GAP), _MAX_BAR)
    if room < _MIN_BAR:
        return head(fields[0], width)
    return GAP.join([fields[0], _bar(share, room), *fields[1:]])


def _bar(share: float, width: int) -> str:
    halves = round(max(0.0, min(share, 1.0)) * width * 2)
    return (_DONE * (halves // 2) + _HALF * (halves % 2)).ljust(width, _LEFT)


def _speed_line(snapshot: Snapshot, width: int) -> str:
    fields = []
    overall = snapshot.tokens_per_second_overall
    if snapshot.tokens_per_second or overall:
        fields.append(f"{fmt.rate(snapshot.tokens_per_second)} tok/s")
    if snapshot.acceptance_rate is not None:
        fields.append(f"acceptance {snapshot.acceptance_rate:.2f}")
    if overall:
        fields.append(f"{fmt.rate(overall)} tok/s overall")
    if snapshot.mean_accepted is not None:
        fields.append(f"{snapshot.mean_accepted:.2f} accepted/round")
    if snapshot.mean_emitted is not None:
        fields.append(f"{snapshot.mean_emitted:.2f} tok/round")
    return _joined(fields, width)


def _error_line(snapshot: Snapshot, width: int) -> str:
    if not snapshot.num_errors:
        return ""
    codes = [f"{code} {count:,}" for code, count in snapshot.errors]
    return _joined([fmt.plural(snapshot.num_errors, "error"), *codes], width)


def _k_line(snapshot: Snapshot, width: int) -> str:
    # Alone at K = 0 the job does not speculate: then there is nothing to tell.
    if not any(k for k, _ in snapshot.k_shares):
        return ""
    shares = [f"{k}: {100 * share:.0f} %" for k, share in snapshot.k_shares if share >= 0.005]
    return _joined(["K lately", *shares], width)


def _joined(fields: Sequence[str], width: int) -> str:
    """As many of the fields as fit, the first one cut if it must be; ``…`` where some are left out and it fits."""
    if not fields:
        return ""
    line = head(fields[0], width)
    for index, field in enumerate(fields[1:], 1):
        longer = line + GAP + field
        rest = 0 if index == len(fields) - 1 else len(GAP) + 1
        if text_width(longer) + rest > width:
            return line + GAP + ELLIPSIS if text_width(line) + len(GAP) + 1 <= width else line
        line = longer
    return line
