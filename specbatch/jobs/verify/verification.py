"""One pass over an output: identity, plan, parts, manifest, ``_SUCCESS``; amendments are outputs of the same form.

Part of ``verify``, which shares no code with the writers.
"""

from __future__ import annotations

import math
from typing import Any

from specbatch.jobs.verify.files import (
    Absent,
    Source,
    Unsound,
    map_file,
    parse_json,
    read_bounded,
    sha256_hex,
)
from specbatch.jobs.verify.plan import JOB_NAME, PlannedShard, check_job, check_plan
from specbatch.jobs.verify.rows import check_part
from specbatch.jobs.verify.rules import PartRules, part_rules
from specbatch.jobs.verify.totals import Totals, expected_commit

_MAX_MANIFEST_BYTES = 256 << 20
_RELATIVE_TOLERANCE = 1e-9


class Verification:
    """Findings about one output: ``problems`` make it unsound, ``missing`` incomplete.

    Args:
        prefix: what its files are called in findings, such as ``"amendments/1/"``.

    Attributes:
        checked: how much was read: ``parts``, ``parts_planned``, ``rows``, ``rows_planned``, ``results``, ``ok``,
            ``errors``, ``completion_tokens``, ``bytes``.
        failed: (row, sample) -> error code of the results that failed.
        manifest_sha256: hex, once there is a manifest.
    """

    def __init__(self, source: Source, prefix: str = "") -> None:
        self.source = source
        self.prefix = prefix
        self._problems: list[str] = []
        self.missing: list[str] = []
        self.checked: dict[str, int] = {}
        self.failed: dict[tuple[int, int], str] = {}
        self.job: dict[str, Any] = {}
        self.shards: list[PlannedShard] = []
        self.manifest_sha256: str | None = None

    @property
    def problems(self) -> list[str]:
        """What is wrong, one sentence each."""
        return [f"{self.prefix}{problem}" for problem in self._problems]

    def run(self) -> None:
        """Check everything that the output says about itself."""
        try:
            self._check()
        except Unsound as finding:
            self._problems.append(str(finding))

    def _check(self) -> None:
        try:
            self.job = check_job(self.source, self._problems)
        except Absent:
            raise Unsound(f"{JOB_NAME} is missing") from None
        self.shards = check_plan(self.source, self.job, self._problems)
        manifest_data, manifest = self._read_manifest()
        if manifest is not None:
            self._check_manifest_head(manifest)
        totals = self._check_parts(part_rules(self.job, self._problems), manifest)
        self.failed = totals.failed
        if manifest is not None and manifest_data is not None:
            self.manifest_sha256 = sha256_hex(manifest_data)
            if self.checked["parts"] == self.checked["parts_planned"]:
                # Of a part that could not be read the sums are unknown: a line for each would hide the cause.
                self._check_commit(manifest["commit"], totals)
            self._check_success()
        elif self._exists("_SUCCESS"):
            self._problems.append("_SUCCESS exists without a manifest")
        else:
            parts = self.checked
            self.missing.append(
                f"there is no manifest yet: {parts['parts']:,} of {parts['parts_planned']:,} parts exist; "
                "`specbatch resume` finishes the job"
            )

    def _read_manifest(self) -> tuple[bytes | None, dict[str, Any] | None]:
        try:
            data = read_bounded(self.source, "manifest.json", _MAX_MANIFEST_BYTES)
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

    def _check_manifest_head(self, manifest: dict[str, Any]) -> None:
        for key in ("job_id", "identity"):
            if manifest.get(key) != self.job.get(key):
                self._problems.append(f"manifest.json: {key} is not that of job.json")
        stored = manifest.get("stored", {})
        plan = f"_specbatch/plan-{self.job['identity']['P']}.parquet"
        for name in (JOB_NAME, plan):
            digest = stored.get(name) if isinstance(stored, dict) else None
            if stored and digest != sha256_hex(read_bounded(self.source, name, _MAX_MANIFEST_BYTES)):
                self._problems.append(f"{name} is not the one that the manifest was made for")
        # The model's name may change from run to run, its files may not; the tokenizer's are digested apart.
        found, pinned = _lookup(manifest, "models.target.files"), _lookup(self.job, "identity.fields.model.files")
        if not (isinstance(found, dict) and isinstance(pinned, dict) and pinned.items() <= found.items()):
            self._problems.append("manifest.json: the target's files are not those of the identity")

    def _check_parts(self, rules: PartRules, manifest: dict[str, Any] | None) -> Totals:
        """Checks every part that exists; notes those that lack, and what else lies in the folder."""
        planned = {shard.name for shard in self.shards}
        foreign = [name for name in self.source.list("data") if name not in planned]
        self._problems += [f"data/{name} is not part of this job" for name in foreign]
        records = None if manifest is None else self._part_records(manifest["commit"]["parts"], planned)

        totals = Totals()
        num_bytes = num_parts = 0
        for shard in self.shards:
            try:
                record = None if records is None else records.get(shard.name)
                num_bytes += self._check_part(shard, rules, record, totals)
                num_parts += 1
            except Absent:
                if manifest is not None:
                    self._problems.append(f"data/{shard.name} is missing")
            except Unsound as finding:
                self._problems.append(str(finding))
        self.checked = {
            "parts": num_parts,
            "parts_planned": len(self.shards),
            "rows": totals.num_rows,
            "rows_planned": sum(shard.num_rows for shard in self.shards),
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
        with self.source.open(f"data/{shard.name}") as file, map_file(file) as data:
            if record is not None:
                found = {"sha256": sha256_hex(data), "bytes": len(data), "rows": shard.num_rows}
                for key, value in found.items():
                    if record.get(key) != value:
                        self._problems.append(f"data/{shard.name}: {key} is {value}, the manifest says otherwise")
            totals.add(check_part(data, shard, rules, self._problems))
            return len(data)

    def _check_commit(self, commit: dict[str, Any], totals: Totals) -> None:
        """Every sum of the manifest against the rows; near ties and seconds against the footers."""
        for name, value in expected_commit(totals).items():
            found = _lookup(commit, name)
            if not _matches(found, value):
                self._problems.append(
                    f"manifest.json: commit.{name} is {str(found)[:60]}, the parts give {str(value)[:60]}"
                )

    def _check_success(self) -> None:
        try:
            found = read_bounded(self.source, "_SUCCESS", 4096)
        except Absent:
            self.missing.append("the manifest is there, _SUCCESS is not; `specbatch resume` writes it")
            return
        if found != f"{self.manifest_sha256}  manifest.json\n".encode():
            self._problems.append("_SUCCESS is not the digest of manifest.json")

    def _exists(self, name: str) -> bool:
        try:
            with self.source.open(name):
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
