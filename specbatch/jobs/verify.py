"""``specbatch verify``: a second opinion on an output, from its bytes alone.

It shares no code with what wrote them and takes nothing on trust: digests are computed anew, rows are counted, the
bookkeeping of every row is added up, and the sums in the manifest are compared with the rows. What is read may be
hostile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from specbatch.jobs import formatting as fmt
from specbatch.jobs.verify_files import (
    Absent,
    Unsound,
    list_folder,
    map_file,
    open_regular,
    parse_json,
    read_bounded,
    sha256_hex,
)
from specbatch.schemas.errors import ErrorCode, SpecbatchError, VerifyExit

if TYPE_CHECKING:
    from specbatch.jobs.verify_plan import PartRules, PlannedShard
    from specbatch.jobs.verify_totals import Totals

_MAX_MANIFEST_BYTES = 256 << 20
_MAX_PROBLEMS = 1000
_MAX_SHOWN = 20
_RELATIVE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The verdict on an output.

    Attributes:
        problems: what is wrong, one sentence each; for an incomplete output what is missing.
        checked: how much was read: ``parts``, ``parts_planned``, ``rows``, ``rows_planned``, ``results``, ``ok``,
            ``errors``, ``completion_tokens``, ``bytes``.
    """

    output: str
    state: Literal["sound", "incomplete", "not sound"]
    problems: tuple[str, ...] = ()
    checked: dict[str, int] = field(default_factory=dict)

    @property
    def exit_code(self) -> VerifyExit:
        """The documented exit code."""
        return {
            "sound": VerifyExit.SOUND,
            "incomplete": VerifyExit.INCOMPLETE,
            "not sound": VerifyExit.NOT_SOUND,
        }[self.state]


def verify_output(output: str) -> VerifyReport:
    """Checks everything that an output says about itself.

    Raises:
        SpecbatchError: ``JOB_OUTPUT_MISSING``, no folder or no job in it; ``JOB_URI_INVALID``, not a local path.
    """
    if "://" in output or not output.strip() or "\0" in output:
        raise SpecbatchError(ErrorCode.JOB_URI_INVALID, f"{fmt.clean(output)!r} is no local path; give a local folder")
    root = Path(output).expanduser().absolute()
    try:
        is_output = root.is_dir() and any((root / name).exists() for name in ("_specbatch", "manifest.json", "data"))
    except OSError:
        is_output = False
    if not is_output:
        raise SpecbatchError(
            ErrorCode.JOB_OUTPUT_MISSING,
            f"{output} is no output of specbatch; give the folder that `specbatch submit` named",
        )
    return _Verification(output, root).run()


def render_verify(report: VerifyReport) -> str:
    """The verdict as text for people; ends with a line break."""
    lines = [f"{fmt.clean(report.output)}: {report.state}"]
    checked = report.checked
    if checked:
        has_samples = checked["results"] != checked["rows"]
        results = f"{fmt.plural(checked['results'], 'result')}: " if has_samples else ""
        lines.append(
            f"  read {fmt.count(checked['parts'])} of {fmt.plural(checked['parts_planned'], 'part')}, "
            f"{fmt.count(checked['rows'])} of {fmt.plural(checked['rows_planned'], 'row')} "
            f"({results}{fmt.count(checked['ok'])} ok, {fmt.plural(checked['errors'], 'error')}), "
            f"{fmt.plural(checked['completion_tokens'], 'output token')}, {fmt.size(checked['bytes'])}"
        )
    if report.state == "sound":
        samples = " with all its samples" if checked["results"] != checked["rows"] else ""
        lines.append(
            f"  every input row is there exactly once{samples}; identity, plan, digests and sums were computed anew"
        )
    lines += [f"  - {fmt.clean(problem)}" for problem in report.problems[:_MAX_SHOWN]]
    if len(report.problems) > _MAX_SHOWN:
        lines.append(f"  and {fmt.plural(len(report.problems) - _MAX_SHOWN, 'more problem')}")
    return "\n".join(lines) + "\n"


class _Verification:
    """One pass over an output; findings collect in ``problems``, gaps in ``missing``."""

    def __init__(self, output: str, root: Path) -> None:
        self._output = output
        self._root = root
        self._problems: list[str] = []
        self._missing: list[str] = []
        self._checked: dict[str, int] = {}

    def run(self) -> VerifyReport:
        try:
            self._check()
        except Unsound as finding:
            self._problems.append(str(finding))
        if self._problems:
            found = self._problems
            more = [f"more than {_MAX_PROBLEMS} problems"] if len(found) > _MAX_PROBLEMS else []
            return VerifyReport(self._output, "not sound", (*found[:_MAX_PROBLEMS], *more), self._checked)
        if self._missing:
            return VerifyReport(self._output, "incomplete", tuple(self._missing), self._checked)
        return VerifyReport(self._output, "sound", (), self._checked)

    def _check(self) -> None:
        from specbatch.jobs.verify_plan import JOB_NAME, check_job, check_plan, part_rules

        try:
            job = check_job(self._root, self._problems)
        except Absent:
            raise Unsound(f"{JOB_NAME} is missing") from None
        shards = check_plan(self._root, job, self._problems)
        manifest_data, manifest = self._read_manifest()
        if manifest is not None:
            self._check_manifest_head(manifest, job)
        totals = self._check_parts(shards, part_rules(job, self._problems), manifest)
        if manifest is not None and manifest_data is not None:
            self._check_commit(manifest["commit"], totals)
            self._check_success(manifest_data)
        elif self._exists("_SUCCESS"):
            self._problems.append("_SUCCESS exists without a manifest")
        else:
            parts = self._checked
            self._missing.append(
                f"there is no manifest yet: {parts['parts']:,} of {parts['parts_planned']:,} parts exist; "
                "run the same `specbatch submit` command again to finish"
            )

    def _read_manifest(self) -> tuple[bytes | None, dict[str, Any] | None]:
        try:
            data = read_bounded(self._root, "manifest.json", _MAX_MANIFEST_BYTES)
        except Absent:
            return None, None
        manifest = parse_json(data, "manifest.json")
        if manifest.get("format") != "specbatch/manifest/1":
            raise Unsound(f"manifest.json has format {str(manifest.get('format'))[:60]!r}, not 'specbatch/manifest/1'")
        commit = manifest.get("commit")
        parts = commit.get("parts") if isinstance(commit, dict) else None
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise Unsound("manifest.json has no commit with parts")
        return data, manifest

    def _check_manifest_head(self, manifest: dict[str, Any], job: dict[str, Any]) -> None:
        for key in ("job_id", "identity"):
            if manifest.get(key) != job.get(key):
                self._problems.append(f"manifest.json: {key} is not that of job.json")
        # The model's name may change from run to run, its files may not; the tokenizer's are digested apart.
        found, pinned = _lookup(manifest, "models.target.files"), _lookup(job, "identity.fields.model.files")
        if not (isinstance(found, dict) and isinstance(pinned, dict) and pinned.items() <= found.items()):
            self._problems.append("manifest.json: the target's files are not those of the identity")

    def _check_parts(self, shards: list[PlannedShard], rules: PartRules, manifest: dict[str, Any] | None) -> Totals:
        """Checks every part that exists; notes those that lack, and what else lies in the folder."""
        from specbatch.jobs.verify_totals import Totals

        names = list_folder(self._root, "data")
        planned = {shard.name for shard in shards}
        foreign = [name for name in names if name not in planned]
        self._problems += [f"data/{name} is not part of this job" for name in foreign]
        records = None if manifest is None else self._part_records(manifest["commit"]["parts"], planned)

        totals = Totals()
        num_bytes = num_parts = 0
        for shard in shards:
            try:
                num_bytes += self._check_part(
                    shard, rules, None if records is None else records.get(shard.name), totals
                )
                num_parts += 1
            except Absent:
                if manifest is not None:
                    self._problems.append(f"data/{shard.name} is missing")
            except Unsound as finding:
                self._problems.append(str(finding))
        self._checked = {
            "parts": num_parts,
            "parts_planned": len(shards),
            "rows": totals.num_rows,
            "rows_planned": sum(shard.row_stop - shard.row_start for shard in shards),
            "ok": totals.num_ok,
            "results": totals.num_results,
            "errors": totals.num_results - totals.num_ok,
            "completion_tokens": totals.counts["num_completion_tokens"],
            "bytes": num_bytes,
        }
        return totals

    def _part_records(self, parts: list[dict[str, Any]], planned: set[str]) -> dict[str, dict[str, Any]]:
        paths = [str(part.get("path")) for part in parts]
        if paths != sorted(f"data/{name}" for name in planned):
            self._problems.append("manifest.json: its parts are not the planned ones, each once and in order")
        return {path.removeprefix("data/"): part for path, part in zip(paths, parts, strict=True)}

    def _check_part(self, shard: PlannedShard, rules: PartRules, record: dict[str, Any] | None, totals: Totals) -> int:
        from specbatch.jobs.verify_rows import check_part

        with open_regular(self._root, f"data/{shard.name}") as file, map_file(file) as data:
            if record is not None:
                found = {"sha256": sha256_hex(data), "bytes": len(data), "rows": shard.row_stop - shard.row_start}
                for key, value in found.items():
                    if record.get(key) != value:
                        self._problems.append(f"data/{shard.name}: {key} is {value}, the manifest says otherwise")
            totals.add(check_part(data, shard, rules, self._problems))
            return len(data)

    def _check_commit(self, commit: dict[str, Any], totals: Totals) -> None:
        """Every sum of the manifest against the rows; near ties and seconds against the footers."""
        from specbatch.jobs.verify_totals import expected_commit

        for name, value in expected_commit(totals).items():
            found = _lookup(commit, name)
            if not _matches(found, value):
                self._problems.append(
                    f"manifest.json: commit.{name} is {str(found)[:60]}, the parts give {str(value)[:60]}"
                )

    def _check_success(self, manifest_data: bytes) -> None:
        try:
            found = read_bounded(self._root, "_SUCCESS", 4096)
        except Absent:
            self._missing.append(
                "the manifest is there, _SUCCESS is not; run the same `specbatch submit` command again"
            )
            return
        if found != f"{sha256_hex(manifest_data)}  manifest.json\n".encode():
            self._problems.append("_SUCCESS is not the digest of manifest.json")

    def _exists(self, name: str) -> bool:
        try:
            with open_regular(self._root, name):
                return True
        except Absent:
            return False


def _lookup(document: dict[str, Any], name: str) -> Any:
    value: Any = document
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _matches(found: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        return (
            isinstance(found, list)
            and len(found) == len(expected)
            and all(_matches(left, right) for left, right in zip(found, expected, strict=True))
        )
    if isinstance(expected, float):
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        return is_number and math.isclose(found, expected, rel_tol=_RELATIVE_TOLERANCE, abs_tol=1e-12)
    return type(found) is type(expected) and bool(found == expected)
