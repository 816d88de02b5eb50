"""``specbatch retry-failed``: a child job that decodes the failed results of a finished one again.

The parent is never edited. The child is a whole job of the same form below ``amendments/<n>/``: the parent's identity
with what it amends, the same row seeds, and a plan that picks out the failed samples.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.output.amended import AMENDS_FIELD, amendment_key, amendment_uri, read_chain
from specbatch.jobs.output.identity import identity_sha256
from specbatch.jobs.output.ledger import Ledger, StoredJob
from specbatch.jobs.planning.planning import choose_shard_rows
from specbatch.jobs.planning.prepare import PreparedJob
from specbatch.jobs.reports.report import load_manifest
from specbatch.jobs.spec.settings import Layer
from specbatch.jobs.upkeep.resume import StoredOutput, open_output, prepare_stored, resume_settings
from specbatch.schemas.canonical import sha256_hex
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import Identity, Manifest
from specbatch.schemas.plan import Segment, Shard, plan_digest
from specbatch.storage.store import open_store


@dataclass(frozen=True, slots=True)
class Retry:
    """An amendment that is ready to run.

    Attributes:
        number: of the amendment.
        parent: the output that it amends.
    """

    prepared: PreparedJob
    number: int
    parent: str


def prepare_retry(
    uri: str, overrides: Layer, *, codes: Collection[str] = (), say: Callable[[str], None] = lambda line: None
) -> Retry | None:
    """Begin the next amendment of a finished job, or find the one that was begun and not finished.

    Args:
        overrides: what may change (``free_layer``).
        codes: only results that failed with one of these codes; all that failed if empty.
        say: takes single lines for the user.

    Returns:
        None where nothing failed.

    Raises:
        SpecbatchError: JOB_INCOMPLETE, the job is not finished; what ``prepare_resume`` raises.
    """
    output = open_output(uri)
    if output.is_amendment:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG, f"{uri} is an amendment itself; name the job above amendments/ that it belongs to"
        )
    load_manifest(uri)
    chain = read_chain(output.store)
    number = len(chain) + 1
    # Failed before, every result may fail again: the job's budget of errors is not for these, unless it is asked for.
    overrides = Layer(
        {"execution.max_error_rate": 1.0, **overrides.values},
        {"execution.max_error_rate": "retry-failed", **overrides.origins},
    )
    settings = resume_settings(output.stored, overrides, output=amendment_uri(output.uri, number))
    single_writer = settings.spec.execution.single_writer
    child = Ledger(open_store(amendment_uri(output.uri, number), single_writer=single_writer))
    stored = child.find_job()
    if stored is not None:
        say(f"amendment {number} was begun before and is not finished: going on with it")
        return Retry(prepare_stored(stored, settings), number, output.uri)
    failed = find_failures(output, [manifest for manifest, _ in chain])
    chosen = {pair: code for pair, code in failed.items() if not codes or code in codes}
    if not chosen:
        say(_nothing_failed(uri, failed, codes))
        return None
    parent = prepare_stored(output.stored, settings)
    fields = {
        **output.stored.document.identity.fields,
        AMENDS_FIELD: {
            "manifest": sha256_hex(output.store.read("manifest.json")),
            "amendments": [digest for _, digest in chain],
            "codes": dict(sorted(Counter(chosen.values()).items())),
        },
    }
    shards = plan_retry(
        output.stored.shards,
        chosen,
        num_samples=settings.spec.generation.num_samples,
        shard_rows=settings.spec.execution.shard_rows,
    )
    s = identity_sha256(fields)
    stored = _begin(child, Identity(S=s, P=plan_digest(s, shards), fields=fields), parent, shards)
    say(f"amendment {number} decodes {fmt.plural(len(chosen), 'failed result')} again ({_by_code(chosen)})")
    prepared = replace(parent, identity=stored.document.identity, shards=stored.shards)
    return Retry(prepared, number, output.uri)


def find_failures(output: StoredOutput, amendments: Sequence[Manifest]) -> dict[tuple[int, int], str]:
    """(row_id, sample_index) -> error code of every result that is failed with the amendments applied.

    Raises:
        SpecbatchError: JOB_INTEGRITY, a part is missing or cannot be read.
    """
    from specbatch.jobs.output.results import read_failures, read_outcomes, result_prefix

    prefix = result_prefix(output.stored.document.identity.fields)
    parts = output.ledger.find_parts(output.stored).values()
    failed = read_failures(output.store, [part.path for part in parts if part.stats.num_errors], prefix)
    for number, amendment in enumerate(amendments, start=1):
        keys = [amendment_key(number, part.path) for part in amendment.commit.parts]
        for pair, code in read_outcomes(output.store, keys, prefix):
            if code is None:
                failed.pop(pair, None)
            else:
                failed[pair] = code
    return failed


def plan_retry(
    shards: Sequence[Shard],
    failed: Collection[tuple[int, int]],
    *,
    num_samples: int,
    shard_rows: Literal["auto"] | int = "auto",
) -> tuple[Shard, ...]:
    """The plan of an amendment. Pure: the failed (row, sample) pairs, picked out of the parent's plan in order.

    Args:
        shards: the parent's plan.
        num_samples: of every row of the parent; a row whose samples all failed is planned with ``samples`` None.
        shard_rows: most rows of a shard.
    """
    samples: dict[int, list[int]] = {}
    for row_id, sample in sorted(failed):
        samples.setdefault(row_id, []).append(sample)
    segments = [segment for shard in shards for segment in shard.segments]
    first_rows = [segment.first_row_id for segment in segments]
    most = choose_shard_rows(len(samples), shard_rows)
    planned: list[list[Segment]] = []
    for count, (row_id, wanted) in enumerate(samples.items()):
        segment = segments[bisect_right(first_rows, row_id) - 1]
        row = segment.row_start + row_id - segment.first_row_id
        assert segment.row_start <= row < segment.row_stop, f"row {row_id} is not planned"
        if count % most == 0:
            planned.append([])
        one = replace(
            segment,
            row_start=row,
            row_stop=row + 1,
            first_row_id=row_id,
            samples=None if len(wanted) == num_samples else tuple(wanted),
        )
        _append(planned[-1], one)
    return tuple(Shard(index, tuple(picked)) for index, picked in enumerate(planned))


def _append(segments: list[Segment], one: Segment) -> None:
    """Join a row to the last segment where it follows it with the same samples."""
    last = segments[-1] if segments else None
    if (
        last is not None
        and (last.path, last.row_stop, last.samples) == (one.path, one.row_start, one.samples)
        and last.first_row_id + last.num_rows == one.first_row_id
    ):
        segments[-1] = replace(last, row_stop=one.row_stop)
    else:
        segments.append(one)


def _begin(child: Ledger, identity: Identity, parent: PreparedJob, shards: Sequence[Shard]) -> StoredJob:
    """Write plan and ``job.json`` of the amendment; of two that begin it at once the later adopts the other's."""
    spec: dict[str, Any] = parent.spec.model_dump(mode="json")
    try:
        return child.begin_job(identity, parent.models, spec, shards)
    except SpecbatchError as error:
        if error.code is not ErrorCode.JOB_SPEC_CHANGED:
            raise
    stored = child.find_job()
    assert stored is not None, "job.json was there a moment ago, and nothing removes it"
    return stored


def _nothing_failed(uri: str, failed: Mapping[tuple[int, int], str], codes: Collection[str]) -> str:
    if not failed:
        return f"{uri}: nothing failed; there is nothing to retry"
    return f"{uri}: nothing failed with {', '.join(codes)}; the failed results are {_by_code(failed)}"


def _by_code(failed: Mapping[tuple[int, int], str]) -> str:
    counts = Counter(failed.values())
    return ", ".join(f"{code} {fmt.count(count)}" for code, count in sorted(counts.items()))
