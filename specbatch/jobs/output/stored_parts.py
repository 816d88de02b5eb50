"""The parts that an output holds: found by their names, each read for what its footer says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.messages import PartReceipt
from specbatch.schemas.plan import Shard, part_name
from specbatch.storage.store import NotFound, Store

DATA_FOLDER = "data"
_NUM_FOOTER_READERS = 8
_FEW_SHARDS = 32
"""So many are looked for by name: a listing of all parts costs more."""


def find_parts(
    store: Store,
    plan: str,
    shards: Sequence[Shard],
    among: Collection[int] | None = None,
    on_part: Callable[[], None] = lambda: None,
) -> dict[int, PartReceipt]:
    """Parts of a plan that exist, by shard, each with a valid footer; ``sha256`` is left empty.

    Args:
        plan: P. shards: all of it.
        among: look for these shards only; for all of the plan if None.
        on_part: called in this thread behind every part that was looked at; what it raises ends the search.

    Raises:
        SpecbatchError: JOB_INTEGRITY for a file under a part's name that is not that part.
    """
    wanted = list(shards) if among is None else [shard for shard in shards if shard.index in among]
    if len(wanted) > _FEW_SHARDS or among is None:
        present = set(store.list(DATA_FOLDER))
        wanted = [shard for shard in wanted if part_name(shard.index, plan) in present]
    found: dict[int, PartReceipt] = {}
    for receipt in _read_receipts(store, plan, wanted):
        if receipt is not None:
            found[receipt.shard] = receipt
        on_part()
    return found


def _read_receipts(store: Store, plan: str, shards: Sequence[Shard]) -> Iterator[PartReceipt | None]:
    if len(shards) < _NUM_FOOTER_READERS:
        yield from (_read_receipt(store, plan, shard) for shard in shards)
        return
    with ThreadPoolExecutor(_NUM_FOOTER_READERS) as pool:
        yield from pool.map(lambda shard: _read_receipt(store, plan, shard), shards)


def _read_receipt(store: Store, plan: str, shard: Shard) -> PartReceipt | None:
    """What the part of a shard says about itself; None where there is none."""
    from specbatch.storage.parts import read_part_meta

    path = part_name(shard.index, plan)
    try:
        file = store.open(path)
    except NotFound:
        return None
    with file:
        try:
            meta = read_part_meta(file)
        except SpecbatchError as error:
            if error.code is ErrorCode.JOB_INTEGRITY:
                raise _unsound_part(path, store.uri, error.message) from error
            if error.code is ErrorCode.JOB_FORMAT:
                raise SpecbatchError(error.code, f"{path} in {store.uri}: {error.message}") from error
            raise
        num_bytes = file.seek(0, 2)
    described = (meta.plan, meta.shard, meta.row_start, meta.row_stop)
    if described != (plan, shard.index, shard.row_start, shard.row_stop):
        reason = f"it says that it is shard {meta.shard} of plan {meta.plan}, rows {meta.row_start} to {meta.row_stop}"
        raise _unsound_part(path, store.uri, reason)
    if meta.stats.num_rows != shard.num_rows:
        reason = f"it holds {meta.stats.num_rows} rows, {shard.num_rows} are planned"
        raise _unsound_part(path, store.uri, reason)
    return PartReceipt(
        shard=shard.index,
        path=path,
        num_rows=meta.stats.num_rows,
        num_bytes=num_bytes,
        sha256="",
        token=meta.token,
        created=False,
        stats=meta.stats,
    )


def _unsound_part(path: str, uri: str, reason: str) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_INTEGRITY,
        f"{path} in {uri} is not the part that was planned: {reason}; specbatch verify says more, and "
        f"specbatch repair {uri} --output NEW makes a sound copy",
    )
