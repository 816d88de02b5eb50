"""Others who use the output while it is made: a reader, and somebody who removes garbage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specbatch.jobs.output.manifest import MANIFEST_NAME, decode_manifest
from specbatch.jobs.upkeep.gc import collect_garbage
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.store import NotFound, Store

if TYPE_CHECKING:
    from .world import World

_GC_MAY_FAIL_WITH = frozenset({ErrorCode.JOB_LIVE, ErrorCode.JOB_OUTPUT_MISSING, ErrorCode.JOB_STORE_LOST})


def read_output(world: World) -> None:
    """Look at the output now and then; once there is a manifest, everything that it lists must be there."""
    store = world.open_store()
    for _ in range(6):
        world.scheduler.sleep(world.uniform(1.0, 40.0))
        try:
            data = store.read(MANIFEST_NAME)
        except (NotFound, SpecbatchError):
            continue
        world.checker.on_manifest_seen(data)
        for part in decode_manifest(data).commit.parts:
            _read_listed(world, store, part.path, part.sha256)


def _read_listed(world: World, store: Store, path: str, sha256: str) -> None:
    try:
        with store.open(path) as file:
            data: bytes | None = file.read()
    except NotFound:
        data = None
    except SpecbatchError:
        return
    world.checker.on_part_seen(path, sha256, data)


def remove_garbage(world: World) -> None:
    """Run ``gc`` now and then, with leave to remove the parts of other plans; the checker sees what it removes."""
    for _ in range(4):
        world.scheduler.sleep(world.uniform(1.0, 60.0))
        try:
            collect_garbage(world.open_store().uri, remove_foreign=True, sleep=world.scheduler.sleep)
        except SpecbatchError as error:
            world.scheduler.note(f"gc ends with {error}")
            if error.code not in _GC_MAY_FAIL_WITH:
                world.checker.violate("gc", str(error))
