"""Watches every change of the service and every claim of an actor; the first that breaks the promise ends the run.

I1 at most one object for each (plan, shard), and it never changes. I2 a part holds exactly its planned rows in order,
equal to those of the undisturbed run. I3 ranges partition 0 to N-1. I4 the manifest lists every shard's part by its
digest. I5 one manifest for ever. And: success is claimed only behind the manifest, a receipt stands for a part.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from specbatch.jobs.output.manifest import MANIFEST_NAME, SUCCESS_NAME, success_digest
from specbatch.schemas.canonical import sha256_hex
from specbatch.schemas.messages import PartReceipt
from specbatch.schemas.plan import part_name

from .environment import part_token, read_part
from .jobs import TEXT_COLUMNS, SimulatedJob, expected_row
from .network import Objects, Stored
from .scheduler import Scheduler

DATA = "data/"
_CREATED_ONCE = ("data/", "manifest.json", "_SUCCESS", "_specbatch/job.json", "_specbatch/plan-")


def is_created_once(key: str) -> bool:
    """Whether an object, once there, must stay as it is."""
    return key.startswith(_CREATED_ONCE)


class Violation(AssertionError):  # noqa: N818 - what was found, not what went wrong in a program
    """The promise was broken. ``rule`` names which part of it."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


class Checker:
    """Judges one run.

    Args:
        jobs: every job that may write here, in all its cuts.
        job_number: the one that must be complete in the end.
        poison: rows that kill whoever decodes them.
    """

    def __init__(
        self, scheduler: Scheduler, jobs: Collection[SimulatedJob], job_number: int, poison: Collection[int]
    ) -> None:
        self._scheduler = scheduler
        self._job_number = job_number
        self._jobs = {job.identity.P: job for job in jobs}
        self._poison = poison
        self._parts: dict[tuple[str, int], str] = {}
        self.objects = Objects(self.on_change)
        self.num_successes = 0

    def violate(self, rule: str, text: str) -> None:
        """End the run."""
        self._scheduler.note(f"VIOLATION {rule}: {text}")
        self._scheduler.fail(Violation(rule, text))

    def wipe(self) -> None:
        """The user empties the prefix."""
        self.objects.all.clear()
        self._parts.clear()

    def remove_foreign_parts(self) -> None:
        """The user removes what another job left, or its zombies put there again."""
        for (plan, shard), key in list(self._parts.items()):
            if self._jobs[plan].number != self._job_number:
                del self.objects.all[key], self._parts[plan, shard]

    # ---- changes ---------------------------------------------------------------------------------------------------

    def on_change(self, key: str, old: Stored | None, new: Stored | None) -> None:
        """After every change of the service."""
        digest = "gone" if new is None else sha256_hex(new.data)[:8]
        self._scheduler.note(f"  {key} {'was' if old is None else 'over ' + sha256_hex(old.data)[:8]} -> {digest}")
        if not is_created_once(key):
            return
        if new is None:
            return self._check_removal(key)
        if old is not None and old.data != new.data:
            return self.violate("changed", f"{key} changed after it was created")
        if old is not None:
            return None
        if key.startswith(DATA):
            self._check_part(key, new.data)
        elif key == MANIFEST_NAME:
            self._check_manifest(new.data)
        elif key == SUCCESS_NAME:
            self._check_success(new.data)
        return None

    def _check_removal(self, key: str) -> None:
        for (plan, shard), part in list(self._parts.items()):
            if part == key and self._jobs[plan].number != self._job_number:
                del self._parts[plan, shard]  # of a job whose prefix was emptied
                return
        self.violate("changed", f"{key} was deleted")

    def _check_part(self, key: str, data: bytes) -> None:
        try:
            meta, rows = read_part(data)
        except ValueError as error:
            return self.violate("part", f"{key}: {error}")
        job = self._jobs.get(meta.plan)
        if job is None or meta.shard >= len(job.shards):
            return self.violate("part", f"{key} is shard {meta.shard} of plan {meta.plan}, which nobody made")
        shard = job.shards[meta.shard]
        if (meta.row_start, meta.row_stop) != (shard.row_start, shard.row_stop):
            return self.violate("part", f"{key} says rows {meta.row_start} to {meta.row_stop}")
        if other := self._parts.get((meta.plan, meta.shard)):
            return self.violate("twice", f"{key} and {other} are the same shard")
        self._parts[meta.plan, meta.shard] = key
        wanted = [expected_row(job, row_id, self._poison) for row_id in range(shard.row_start, shard.row_stop)]
        if [_text(row) for row in rows] != wanted:
            return self.violate("rows", f"{key} does not hold the rows of the undisturbed run")
        return None

    def _check_manifest(self, data: bytes) -> None:
        document = json.loads(data)
        job = self._jobs[document["identity"]["P"]]
        listed = {part["path"]: part for part in document["commit"]["parts"]}
        if sorted(listed) != sorted(self._key_of(job, shard.index) for shard in job.shards):
            return self.violate("manifest", f"it lists {sorted(listed)}, the plan has {len(job.shards)} shards")
        for path, part in listed.items():
            stored = self.objects.all.get(path)
            if stored is None:
                return self.violate("manifest", f"it lists {path}, which does not exist")
            if (sha256_hex(stored.data), len(stored.data)) != (part["sha256"], part["bytes"]):
                return self.violate("manifest", f"it lists another digest or size of {path}")
        if document["commit"]["counts"]["rows"] != job.num_rows:
            return self.violate("manifest", f"it counts {document['commit']['counts']['rows']} rows")
        return None

    def _key_of(self, job: SimulatedJob, shard: int) -> str:
        return self._parts.get((job.identity.P, shard), part_name(shard, job.identity.P))

    def _check_success(self, data: bytes) -> None:
        manifest = self.objects.all.get(MANIFEST_NAME)
        if manifest is None or success_digest(manifest.data) != data:
            self.violate("success", "_SUCCESS is not that of the manifest that is there")

    # ---- claims ----------------------------------------------------------------------------------------------------

    def on_receipt(self, receipt: PartReceipt) -> None:
        """A coordinator takes a receipt for true."""
        stored = self.objects.all.get(receipt.path)
        if stored is None:
            return self.violate("receipt", f"{receipt.path} was taken for done and does not exist")
        if part_token(stored.data) != receipt.token:
            return self.violate("receipt", f"{receipt.path} is of another attempt than its receipt")
        if receipt.sha256 and receipt.sha256 != sha256_hex(stored.data):
            return self.violate("receipt", f"{receipt.path} has another digest than its receipt")
        return None

    def on_success(self) -> None:
        """A coordinator tells the user that the job is complete."""
        self.num_successes += 1
        for key in (MANIFEST_NAME, SUCCESS_NAME):
            if key not in self.objects.all:
                self.violate("success", f"success was reported without {key}")

    def on_manifest_seen(self, data: bytes) -> None:
        """A reader was given these bytes as the manifest."""
        stored = self.objects.all.get(MANIFEST_NAME)
        if stored is None or stored.data != data:
            self.violate("manifest", "a reader saw another manifest")

    def on_part_seen(self, path: str, sha256: str, data: bytes | None) -> None:
        """A reader asked for a part that a manifest lists."""
        if data is None or sha256_hex(data) != sha256:
            self.violate("reader", f"{path} is not what the manifest says")

    # ---- the end ---------------------------------------------------------------------------------------------------

    def final(self, num_slots: int) -> None:
        """When nothing can happen any more: the files alone prove the result.

        Raises:
            Violation: they do not.
        """
        if self.num_successes < num_slots:
            raise Violation("liveness", f"{self.num_successes} of {num_slots} coordinators reported success")
        document = json.loads(self.objects.all[MANIFEST_NAME].data)
        job = self._jobs[document["identity"]["P"]]
        if job.number != self._job_number:
            raise Violation("manifest", f"it is of job {job.number}")
        self._check_manifest(self.objects.all[MANIFEST_NAME].data)
        self._check_success(self.objects.all[SUCCESS_NAME].data)
        union: list[dict[str, Any]] = []
        for key in sorted(self.objects.all):
            if key.startswith(DATA):
                meta, rows = read_part(self.objects.all[key].data)
                if self._jobs[meta.plan].number != self._job_number:
                    continue  # of a job whose prefix was emptied; its name says so
                if meta.plan != job.identity.P:
                    raise Violation("part", f"{key} is of a plan that was given up")
                union += map(_text, rows)
        if union != [expected_row(job, row_id, self._poison) for row_id in range(job.num_rows)]:
            raise Violation("rows", "the union of the parts is not the undisturbed run")


def _text(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in TEXT_COLUMNS}
