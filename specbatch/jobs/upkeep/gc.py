"""``specbatch gc``: removes what killed runs left in an output. Parts of the job's own plan are never removed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.output.amended import amendment_uri
from specbatch.jobs.output.lease import Liveness, find_holder
from specbatch.jobs.output.stored_parts import DATA_FOLDER
from specbatch.jobs.planning.normalise import unused_copies
from specbatch.jobs.upkeep.resume import StoredOutput, open_output
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import part_name
from specbatch.storage.store import SPOOL_FOLDER, Store

STALE_SECONDS = 86_400.0
_SPOOL_NAME = re.compile(r"[0-9a-f]{32}")
_PROBE_KEY = re.compile(r"_specbatch/probe-[0-9a-f]+/")
_PART_KEY = re.compile(r"data/part-\d{6,}-([0-9a-f]{16})\.parquet")


@runtime_checkable
class AbortsUploads(Protocol):
    """A store that can hold uploads that were begun and never completed."""

    def abort_uploads(self, older_than_seconds: float) -> int:
        """Abort the multipart uploads below the root that are older than this; returns how many."""


@dataclass(slots=True)
class GcReport:
    """What was found and removed.

    Attributes:
        num_spool_files, spool_bytes: local spool files that were removed.
        num_probe_objects: objects of a killed probe that were removed.
        num_copies: copies of inputs that the job does not read, left by a beginning with other ones.
        num_uploads: multipart uploads that were aborted.
        foreign: parts of other plans in ``data/``; readers of the manifest do not see them, readers of all files do.
        removed_foreign: whether these were removed.
        unknown: other keys in ``data/`` that specbatch did not write; left alone.
    """

    output: str
    num_spool_files: int = 0
    spool_bytes: int = 0
    num_probe_objects: int = 0
    num_copies: int = 0
    num_uploads: int = 0
    foreign: list[str] = field(default_factory=list)
    removed_foreign: bool = False
    unknown: list[str] = field(default_factory=list)


def collect_garbage(uri: str, *, remove_foreign: bool = False, sleep: Callable[[float], None] = time.sleep) -> GcReport:
    """Clean an output and its amendments.

    Args:
        remove_foreign: also remove the parts of other plans.

    Raises:
        SpecbatchError: JOB_LIVE, a run holds the output or one of its amendments; what ``open_output`` raises.
    """
    outputs = list(_with_amendments(uri))
    # Listed before anybody is looked for: a run that starts later has other files.
    spools = [_spool_files(output.store) for output in outputs]
    liveness = [_refuse_live(output, sleep) for output in outputs]
    report = GcReport(outputs[0].uri, removed_foreign=remove_foreign)
    for output, files, life in zip(outputs, spools, liveness, strict=True):
        _clean(output, files, life, report)
    return report


def render_gc(report: GcReport) -> str:
    """What was done, as text for people; ends with a line break."""
    lines = [f"{fmt.clean(report.output)}:"]
    if report.num_spool_files:
        lines.append(f"  removed {fmt.plural(report.num_spool_files, 'spool file')} ({fmt.size(report.spool_bytes)})")
    if report.num_probe_objects:
        lines.append(f"  removed {fmt.plural(report.num_probe_objects, 'object')} of a probe that was killed")
    if report.num_copies:
        lines.append(f"  removed {fmt.plural(report.num_copies, 'input file')} that the job does not read")
    if report.num_uploads:
        lines.append(f"  aborted {fmt.plural(report.num_uploads, 'upload')} that nobody completed")
    if report.foreign:
        done = "removed" if report.removed_foreign else "found, remove with --yes:"
        lines.append(f"  {done} {fmt.plural(len(report.foreign), 'part')} of other plans")
        lines += [f"    {fmt.clean(key)}" for key in report.foreign]
    if report.unknown:
        lines.append(f"  left alone {fmt.plural(len(report.unknown), 'file')} in data/ that specbatch did not write")
        lines += [f"    {fmt.clean(key)}" for key in report.unknown]
    if len(lines) == 1:
        lines.append("  nothing to remove")
    return "\n".join(lines) + "\n"


def _with_amendments(uri: str) -> Iterator[StoredOutput]:
    output = open_output(uri)
    yield output
    number = 1
    while not output.is_amendment:
        try:
            yield open_output(amendment_uri(output.uri, number))
        except SpecbatchError as error:
            if error.code is not ErrorCode.JOB_OUTPUT_MISSING:
                raise
            return
        number += 1


def _refuse_live(output: StoredOutput, sleep: Callable[[float], None]) -> Liveness:
    life, holder = find_holder(output.store, sleep=sleep)
    if life == "live" and holder is not None:
        raise SpecbatchError(
            ErrorCode.JOB_LIVE,
            f"a run works on {output.uri} (host {holder.host}, process {holder.pid}); "
            f"wait for it, or end it with: specbatch cancel {output.uri}",
        )
    return life


def _spool_files(store: Store) -> list[Path]:
    folder = Path(store.uri) / SPOOL_FOLDER
    if not store.is_local or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _SPOOL_NAME.fullmatch(path.name))


def _clean(output: StoredOutput, spool_files: list[Path], life: Liveness, report: GcReport) -> None:
    store = output.store
    # A silent holder on another host may yet wake: what it has in hand is younger than a day.
    youngest_seconds = 0.0 if life == "none" else STALE_SECONDS
    for path in spool_files:
        try:
            status = path.stat()
            if time.time() - status.st_mtime >= youngest_seconds:
                path.unlink()
                report.num_spool_files += 1
                report.spool_bytes += status.st_size
        except FileNotFoundError:
            continue
    if life == "none":
        keys = store.list("_specbatch")
        for key in keys:
            if _PROBE_KEY.match(key):
                store.delete(key)
                report.num_probe_objects += 1
        paths = [segment.path for shard in output.stored.shards for segment in shard.segments]
        for key in unused_copies(keys, paths, output.stored.plan):
            store.delete(key)
            report.num_copies += 1
    if isinstance(store, AbortsUploads):
        report.num_uploads += store.abort_uploads(STALE_SECONDS)
    _clean_data(output, report)


def _clean_data(output: StoredOutput, report: GcReport) -> None:
    plan = output.stored.plan
    own = {part_name(shard.index, plan) for shard in output.stored.shards}
    for key in output.store.list(DATA_FOLDER):
        if key in own:
            continue
        named = _PART_KEY.fullmatch(key)
        if named is None or named.group(1) == plan:
            report.unknown.append(f"{output.uri}/{key}")
            continue
        report.foreign.append(f"{output.uri}/{key}")
        if report.removed_foreign:
            output.store.delete(key)
