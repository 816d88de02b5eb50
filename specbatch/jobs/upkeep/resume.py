"""Go on with a job from its output alone: what it is comes from ``job.json``, how it runs may be changed.

The spec in ``job.json`` is only where to look: the identity is computed anew from the models and the files that are
found, and another one is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from specbatch.jobs.output.amended import AMENDS_FIELD
from specbatch.jobs.output.identity import identity_sha256
from specbatch.jobs.output.jobdocument import JOB_KEY
from specbatch.jobs.output.ledger import Ledger, StoredJob, check_same_job
from specbatch.jobs.planning.normalise import known_bad_files
from specbatch.jobs.planning.prepare import PreparedJob, prepare
from specbatch.jobs.spec.address import is_jobs_endpoint
from specbatch.jobs.spec.options import FREE_OPTIONS, OPTIONS, PATHS
from specbatch.jobs.spec.settings import Layer, Settings, environment_layer, flag_layer, resolve
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError
from specbatch.schemas.manifest import Identity
from specbatch.schemas.spec import JobSpec
from specbatch.storage.store import Store, open_store

if TYPE_CHECKING:
    from specbatch.jobs.running.job import JobOutcome

_FREE_PATHS = frozenset(OPTIONS[name] for name in FREE_OPTIONS)


@dataclass(frozen=True, slots=True)
class StoredOutput:
    """An output that holds a job."""

    ledger: Ledger
    stored: StoredJob

    @property
    def store(self) -> Store:
        return self.ledger.store

    @property
    def uri(self) -> str:
        return self.store.uri

    @property
    def is_amendment(self) -> bool:
        return AMENDS_FIELD in self.stored.document.identity.fields


def open_output(uri: str) -> StoredOutput:
    """The job of an output.

    Raises:
        SpecbatchError: JOB_OUTPUT_MISSING, there is none; JOB_FORMAT, JOB_INTEGRITY, JOB_URI_INVALID.
    """
    try:
        ledger = Ledger(open_store(uri))
        stored = ledger.find_job()
        if stored is not None and _spec(stored, uri).execution.single_writer:
            ledger = Ledger(open_store(uri, single_writer=True))
    except SpecbatchError as error:
        if error.code is not ErrorCode.JOB_PREFIX_TAKEN:
            raise
        stored = None
    if stored is None:
        raise SpecbatchError(
            ErrorCode.JOB_OUTPUT_MISSING,
            f"{uri} is no output of specbatch: it has no {JOB_KEY}; give the folder that `specbatch submit` named",
        )
    return StoredOutput(ledger, stored)


def free_layer(options: Mapping[str, Any], environ: Mapping[str, str], *, spelling: str = "--{}") -> Layer:
    """The settings that a resume may change: given options over ``SPECBATCH_*`` variables of the execution.

    Variables that name other settings (models, sampling) are for new jobs and are passed over.

    Raises:
        SpecbatchError: JOB_CONFIG for an option that is not free to change.
    """
    given = flag_layer(options, spelling=spelling)
    for path in given.values:
        if path not in _FREE_PATHS:
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG,
                f"{given.origins[path]} cannot be changed: {path} decides what the job is; "
                "submit a new job with it to a new output",
            )
    found = environment_layer(environ)
    values = {path: value for path, value in found.values.items() if path.startswith("execution.")}
    return Layer({**values, **given.values}, {**found.origins, **given.origins})


def free_values(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Of a whole spec the values that a resume may change; what is None there was not given."""
    return {path: value for path in _FREE_PATHS if (value := _lookup(spec, path)) is not None}


def resume_settings(stored: StoredJob, overrides: Layer, *, output: str) -> Settings:
    """The settings of a run that goes on with a job.

    Args:
        overrides: what may change (``free_layer``).
        output: where the job lies, or goes on; not necessarily the output that ``job.json`` names.

    Raises:
        SpecbatchError: JOB_CONFIG for a value that does not fit; JOB_FORMAT for a ``job.json`` of another version.
    """
    document = _spec(stored, output).model_dump(mode="json")
    values = {path: value for path in PATHS if (value := _lookup(document, path)) is not None}
    del values["results.partitions"]  # the output that is given is the folder that they led to
    # What ``auto`` came to when the job began: on another device it might come to something else.
    if dtype := stored.document.identity.fields.get("model", {}).get("dtype"):
        values["models.dtype"] = dtype
    _drop_elsewhere(values, overrides.values.get("execution.address", values.get("execution.address")))
    kept = Layer(values, dict.fromkeys(values, JOB_KEY))
    return resolve([Layer({"output": output}, {"output": "argument"}), overrides, kept])


def _drop_elsewhere(values: dict[str, Any], address: str | None) -> None:
    """Leave out stored settings that mean nothing at the address where the job goes on. To wait is no one's to keep."""
    del values["execution.wait"]
    names = [] if is_jobs_endpoint(address) else ["entrypoint_num_cpus", "entrypoint_memory"]
    if address in (None, "local"):
        names += ["memory_per_worker", "node_labels", "accelerator_type"]
    for name in names:
        values.pop(f"execution.{name}", None)


def prepare_stored(stored: StoredJob, settings: Settings) -> PreparedJob:
    """A run that goes on with a stored job, or with an amendment: the stored plan, if the identity is the same.

    Raises:
        SpecbatchError: JOB_SPEC_CHANGED with the fields that differ; what ``prepare`` raises.
    """
    identity = stored.document.identity
    prepared = prepare(settings, known_bad=known_bad_files(identity.fields))
    fields = prepared.identity.fields
    if AMENDS_FIELD in identity.fields:  # comes from the parent's results, not from the settings
        fields = {**fields, AMENDS_FIELD: identity.fields[AMENDS_FIELD]}
    check_same_job(stored, Identity(S=identity_sha256(fields), P=identity.P, fields=fields), prepared.output)
    return replace(prepared, identity=identity, shards=stored.shards)


def complete_outcome(output: StoredOutput, settings: Settings) -> JobOutcome | None:
    """How a job ended that is complete, None where it is not; ``_SUCCESS`` is added where a kill left it out.

    Asks for no model and no input: there is nothing to be done with them.
    """
    from specbatch.jobs.running.job import JobOutcome

    manifest = output.ledger.find_manifest()
    if manifest is None:
        return None
    output.ledger.seal()
    has_errors = manifest.commit.counts.errors > 0 and not settings.spec.execution.row_errors_ok
    num_parts = len(manifest.commit.parts)
    exit_code = ExitCode.ROW_ERRORS if has_errors else ExitCode.COMPLETE
    return JobOutcome(output.uri, exit_code, manifest, True, num_parts, num_parts)


def prepare_resume(uri: str, overrides: Layer) -> PreparedJob:
    """A run that goes on with the job of an output.

    Raises:
        SpecbatchError: what ``open_output`` and ``prepare_stored`` raise.
    """
    output = open_output(uri)
    return prepare_stored(output.stored, resume_settings(output.stored, overrides, output=output.uri))


def _spec(stored: StoredJob, uri: str) -> JobSpec:
    try:
        return JobSpec.model_validate(stored.document.spec)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(key) for key in first["loc"])
        raise SpecbatchError(
            ErrorCode.JOB_FORMAT,
            f"the spec in {JOB_KEY} of {uri} cannot be read by this version ({where}: {first['msg']}); "
            "use the version of specbatch that wrote it",
        ) from None


def _lookup(document: Mapping[str, Any], path: str) -> Any:
    value: Any = document
    for key in path.split("."):
        value = value[key]
    return value
