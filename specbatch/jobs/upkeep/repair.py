"""``specbatch repair``: a sound copy of a damaged output; the output itself is never touched.

Sound parts are copied byte for byte to a new output with the same job and plan; the others are decoded again there, by
an ordinary run that finds them missing.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.output.amended import AMENDMENTS_FOLDER
from specbatch.jobs.output.lease import find_holder
from specbatch.jobs.output.ledger import Ledger, StoredJob, check_same_job
from specbatch.jobs.output.manifest import MANIFEST_NAME, SUCCESS_NAME, decode_manifest, success_digest
from specbatch.jobs.planning.prepare import PreparedJob
from specbatch.jobs.spec.settings import Layer
from specbatch.jobs.upkeep.resume import StoredOutput, open_output, prepare_stored, resume_settings
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import Shard, part_name
from specbatch.storage.local import write_errors
from specbatch.storage.store import NotFound, Store, open_store

_NUM_COPIERS = 4
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Repair:
    """A repair whose sound parts are copied, ready to run.

    Attributes:
        num_copied: parts that are sound, copied by this or an earlier call.
        unsound: what is wrong with the others, one sentence each.
    """

    prepared: PreparedJob
    num_copied: int
    unsound: tuple[str, ...]


def prepare_repair(
    uri: str, new_uri: str, overrides: Layer, *, say: Callable[[str], None] = lambda line: None
) -> Repair:
    """Copy the sound parts of an output to a new one, which a run of the result then completes.

    With a manifest that its ``_SUCCESS`` vouches for a part is sound if it has the manifest's digest; without one it
    is read whole. Doing it again goes on with a copy that was cut short.

    Args:
        overrides: what may change (``free_layer``).
        say: takes single lines for the user.

    Raises:
        SpecbatchError: JOB_LIVE, a run holds the output; JOB_URI_OVERLAP; JOB_PREFIX_TAKEN, JOB_SPEC_CHANGED, the new
            output holds something else; what ``prepare_resume`` raises.
    """
    output = open_output(uri)
    _refuse(output, uri, new_uri)
    settings = resume_settings(output.stored, overrides, output=new_uri)
    prepared = prepare_stored(output.stored, settings)
    new = Ledger(open_store(new_uri, single_writer=settings.spec.execution.single_writer))
    document = output.stored.document
    found = new.find_job()
    if found is None:
        found = new.begin_job(document.identity, document.models, document.spec, output.stored.shards)
    check_same_job(found, document.identity, new_uri)
    if found.plan != output.stored.plan:
        raise SpecbatchError(
            ErrorCode.JOB_PREFIX_TAKEN,
            f"{new_uri} holds the same job cut into other shards, which cannot take these parts; choose a new --output",
        )
    problems = _copy_sound_parts(output, new.store, _trusted_digests(output.store, output.stored, say))
    for problem in problems:
        say(problem)
    if output.store.list(AMENDMENTS_FOLDER):
        say(f"amendments are not copied, they amend the damaged output; afterwards: specbatch retry-failed {new_uri}")
    num_copied = len(output.stored.shards) - len(problems)
    say(
        f"{num_copied} of {fmt.plural(len(output.stored.shards), 'part')} are sound and copied to {new_uri}; "
        + (f"{fmt.count(len(problems))} will be decoded again" if problems else "there is nothing to decode again")
    )
    return Repair(prepared, num_copied, tuple(problems))


def _refuse(output: StoredOutput, uri: str, new_uri: str) -> None:
    if output.is_amendment:
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"{uri} is an amendment; repair the job that it belongs to")
    old, new = f"{output.uri.rstrip('/')}/", f"{open_store(new_uri).uri.rstrip('/')}/"
    if old.startswith(new) or new.startswith(old):
        raise SpecbatchError(
            ErrorCode.JOB_URI_OVERLAP, f"--output {new_uri} and {uri} lie in each other; a repair needs a place apart"
        )
    liveness, holder = find_holder(output.store)
    if liveness == "live" and holder is not None:
        raise SpecbatchError(
            ErrorCode.JOB_LIVE,
            f"a run works on {uri} (host {holder.host}, process {holder.pid}); wait for it, or specbatch cancel {uri}",
        )


def _trusted_digests(store: Store, stored: StoredJob, say: Callable[[str], None]) -> Mapping[str, str] | None:
    """Digests of the parts by path, as the manifest has them; None where there is none that can be trusted."""
    try:
        data = store.read(MANIFEST_NAME)
    except NotFound:
        say("there is no manifest: every part is read whole")
        return None
    try:
        manifest = decode_manifest(data)
        if store.read(SUCCESS_NAME) == success_digest(data) and manifest.identity == stored.document.identity:
            return {part.path: part.sha256 for part in manifest.commit.parts}
    except (SpecbatchError, NotFound):
        pass
    say("the manifest cannot be trusted (it is not what _SUCCESS or job.json say): every part is read whole")
    return None


def _copy_sound_parts(output: StoredOutput, new: Store, digests: Mapping[str, str] | None) -> list[str]:
    """Copies what is sound and tells what is not, in the order of the shards."""

    def copy(shard: Shard) -> str | None:
        return _copy_part(output, new, shard, digests)

    with ThreadPoolExecutor(_NUM_COPIERS) as pool:
        return [problem for problem in pool.map(copy, output.stored.shards) if problem is not None]


def _copy_part(output: StoredOutput, new: Store, shard: Shard, digests: Mapping[str, str] | None) -> str | None:
    """Copy one part if it is sound; the bytes that are judged are those that are copied."""
    key = part_name(shard.index, output.stored.plan)
    spool = new.spool_path()
    try:
        try:
            with output.store.open(key) as source, write_errors(spool), spool.open("xb") as target:
                digest = hashlib.sha256()
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    target.write(chunk)
        except NotFound:
            return f"{key} is missing"
        if digests is None:
            problem = _find_problem(spool.read_bytes(), output, shard)
        else:
            problem = None if digest.hexdigest() == digests.get(key) else f"{key} has not the digest of the manifest"
        if problem is None:
            new.create(key, spool)
        return problem
    finally:
        spool.unlink(missing_ok=True)


def _find_problem(data: bytes, output: StoredOutput, shard: Shard) -> str | None:
    """The first thing that a full check finds wrong with a part's bytes.

    Every page is read, which checks its checksum; what the rows say is judged by the checker of ``verify``.
    """
    import pyarrow as pa

    from specbatch.jobs.verify.files import Unsound
    from specbatch.jobs.verify.plan import PlannedShard
    from specbatch.jobs.verify.rows import check_part
    from specbatch.jobs.verify.rules import part_rules
    from specbatch.storage.footer import NotParquet, open_parquet, read_footer

    problems: list[str] = []
    name = part_name(shard.index, output.stored.plan).rpartition("/")[2]
    planned = PlannedShard(shard.index, name, shard.row_start, shard.row_stop)
    try:
        file = io.BytesIO(data)
        for _ in open_parquet(file, read_footer(file)).iter_batches(use_threads=False):
            pass
        rules = part_rules(output.stored.document.model_dump(mode="json"), problems)
        check_part(data, planned, rules, problems)
    except Unsound as finding:
        problems.append(str(finding))
    except (NotParquet, pa.ArrowException, OSError) as error:
        problems.append(f"{name} cannot be read ({(str(error).splitlines() or [type(error).__name__])[0]})")
    return problems[0] if problems else None
