"""The dataset card: ``README.md`` beside the data, with the YAML header that dataset hubs read.

A pure function of manifest and ``job.json``. No prompt, template or completion is ever in it. It is no part of the
commit: whoever publishes the data edits it, above all its licence.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.output import card_text as md
from specbatch.jobs.output.amended import AMENDS_FIELD, amended_counts
from specbatch.jobs.output.manifest import MANIFEST_NAME, encode_manifest
from specbatch.jobs.spec.options import JOB_OPTIONS
from specbatch.schemas.canonical import sha256_hex
from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.manifest import Counts, JobDocument, Manifest, ModelRecord
from specbatch.schemas.spec import GenerationSpec, JobSpec
from specbatch.storage.store import NotFound, Store

CARD_NAME = "README.md"

_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)
_SECRET_PATHS = frozenset({"input.template", "input.system"})
"""Texts that go into prompts; the card says that there were some, and their digest."""


@dataclass(frozen=True, slots=True)
class CardOptions:
    """What only the user knows. ``license`` is an identifier of the hub, such as ``cc-by-4.0``.

    Attributes:
        license_name, license_link: of a licence that has no identifier (``license`` is ``other`` then).
        languages: ISO 639-1 codes.
    """

    license: str = "unknown"
    license_name: str | None = None
    license_link: str | None = None
    pretty_name: str | None = None
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


_PLAIN = CardOptions()


def render_card(
    manifest: Manifest,
    document: JobDocument,
    *,
    manifest_sha256: str | None = None,
    amendments: Sequence[Manifest] = (),
    options: CardOptions = _PLAIN,
) -> str:
    """The card of a finished job. Pure.

    Args:
        manifest_sha256: hex, of ``manifest.json`` as it is stored; of this version's spelling if None.
        amendments: applied to the counts.
    """
    manifest_sha256 = manifest_sha256 or sha256_hex(encode_manifest(manifest))
    counts = amended_counts(manifest, amendments)
    sections = [
        _header(counts, manifest, options),
        f"# {md.text(options.pretty_name or _title(document))}",
        _summary(manifest, document, counts, amendments),
        "## How it was made\n\n" + md.table(("", ""), _facts(manifest, document)),
        "The same text again, for the same dataset and models:\n\n```\n" + _command(document) + "\n```",
        "## Results\n\n" + _results(manifest, counts),
        "## Speculative decoding\n\n" + _speculation(manifest),
        "## Columns\n\n" + md.columns(document),
        "## Provenance\n\n" + md.table(("", ""), _provenance(manifest, manifest_sha256)),
    ]
    return "\n\n".join(sections) + "\n"


def write_card(store: Store, manifest: Manifest, document: JobDocument) -> bool:
    """Write the card beside the data of a job, over an older one; amendments have none.

    Returns:
        False where it could not be written: no job fails for its card.
    """
    if AMENDS_FIELD in manifest.identity.fields:
        return False
    try:
        digest = sha256_hex(store.read(MANIFEST_NAME))
        card = render_card(manifest, document, manifest_sha256=digest)
        store.replace(CARD_NAME, card.encode("utf-8", "replace"))
    except (SpecbatchError, NotFound):
        return False
    return True


def ensure_card(store: Store, manifest: Manifest, document: JobDocument) -> bool:
    """Write the card where there is none; one that is there may have been edited.

    Returns:
        Whether there is one now.
    """
    try:
        store.size(CARD_NAME)
    except NotFound:
        return write_card(store, manifest, document)
    except SpecbatchError:
        return False
    return True


def _header(counts: Counts, manifest: Manifest, options: CardOptions) -> str:
    size = next((name for most, name in _SIZES if counts.rows < most), "1B<n<10B")
    entries: dict[str, Any] = {"license": options.license}
    for name in ("license_name", "license_link", "pretty_name"):
        if (value := getattr(options, name)) is not None:
            entries[name] = value
    if options.languages:
        entries["language"] = list(options.languages)
    entries["task_categories"] = ["text-generation"]
    entries["size_categories"] = [size]
    entries["tags"] = ["synthetic", "specbatch", *options.tags]
    # JSON strings are YAML strings, whatever stands in a name.
    lines = [f"{name}: {json.dumps(value, ensure_ascii=True)}" for name, value in entries.items()]
    files = '[{"config_name": "default", "data_files": "data/*.parquet"}]'
    return "\n".join(["---", *lines, f"configs: {files}", "---"])


def _title(document: JobDocument) -> str:
    datasets = document.spec.get("input", {}).get("datasets", ())
    return f"Completions of {md.last(str(datasets[0])) if datasets else document.job_id}"


def _summary(manifest: Manifest, document: JobDocument, counts: Counts, amendments: Sequence[Manifest]) -> str:
    samples = document.identity.fields.get("generation", {}).get("num_samples", 1)
    each = f", {samples} samples each" if isinstance(samples, int) and samples > 1 else ""
    amended = f" ({fmt.plural(len(amendments), 'amendment')} applied)" if amendments else ""
    target = md.text(md.place(manifest.models.target.name))
    return (
        f"{fmt.plural(counts.rows, 'row')}{each}: {fmt.count(counts.ok)} completions by {target}, "
        f"{fmt.plural(counts.errors, 'error')}{amended}. Generated by "
        f"specbatch on {md.text(document.created_at[:10])}, row by row the text that the model alone would have given."
    )


def _facts(manifest: Manifest, document: JobDocument) -> list[tuple[str, str]]:
    fields = document.identity.fields
    generation = fields.get("generation", {})
    observed = manifest.observed
    facts = [
        ("target", _model(manifest.models.target)),
        ("draft", "none" if manifest.models.draft is None else _model(manifest.models.draft)),
        (
            "arithmetic",
            md.text(f"{fields.get('model', {}).get('dtype')}, {fields.get('model', {}).get('path')} model code"),
        ),
        ("prompts", md.text(_prompts(fields.get("prompt", {})))),
        ("sampling", md.text(", ".join(f"{name} {md.short(value)}" for name, value in _sampling(generation)))),
    ]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(observed.versions.items()))
    if versions:
        facts.append(("versions", md.text(versions)))
    return facts


def _sampling(generation: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What decides the text: the settings that everybody asks for, and those that are not at their default."""
    default = GenerationSpec().model_dump(mode="json")
    asked = ("max_new_tokens", "num_samples", "seed", "temperature")
    return [(name, value) for name, value in sorted(generation.items()) if name in asked or value != default.get(name)]


def _model(record: ModelRecord) -> str:
    revision = f", revision {record.revision}" if record.revision else ""
    weights = next((digest for name, digest in sorted(record.files.items()) if name.endswith(".safetensors")), None)
    digest = f", weights {weights[:12]}" if weights else ""
    return md.text(f"{md.place(record.name)} ({fmt.parameters(record.parameters)} parameters{revision}{digest})")


def _prompts(prompt: Mapping[str, Any]) -> str:
    """Where they came from; what they say is not repeated."""
    if prompt.get("messages_column") is not None:
        source = f"chats of column {prompt['messages_column']}, by the target's chat template"
    elif prompt.get("template") is not None:
        source = f"a template ({_digest(prompt['template'])})"
    else:
        source = f"column {prompt.get('column')}"
    if prompt.get("system") is not None:
        source += f", under a system prompt ({_digest(prompt['system'])})"
    if prompt.get("row_params"):
        source += "; some sampling settings row by row"
    return source


def _digest(text: object) -> str:
    return f"{len(str(text))} characters, SHA-256 {sha256_hex(str(text).encode('utf-8', 'surrogatepass'))[:12]}"


def _command(document: JobDocument) -> str:
    """The command that makes the same results. Texts that go into prompts are named, not shown."""
    try:
        spec = JobSpec.model_validate(document.spec)
    except ValueError:
        return "specbatch submit ..."  # of a version that had other settings
    default, given = JobSpec().model_dump(mode="json"), spec.model_dump(mode="json")
    words = ["specbatch", "submit", *(shlex.quote(fmt.clean(md.place(name))) for name in spec.input.datasets)]
    for option in JOB_OPTIONS:
        section, _, name = option.path.partition(".")
        if not name or section == "execution":
            continue
        value = given[section][name]
        if value == default[section][name]:
            continue
        flag = "--" + option.name.replace("_", "-")
        if option.path in _SECRET_PATHS:
            words.append(f"{flag} @{option.name}.txt")
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list):
            words += [f"{flag} {shlex.quote(fmt.clean(_word(item)))}" for item in value]
        else:
            words.append(f"{flag} {shlex.quote(fmt.clean(md.place(_word(value))))}")
    return " \\\n  ".join([" ".join(words[:2]), *words[2:]]).replace("`", "'")


def _word(value: Any) -> str:
    return ":".join(map(str, value)) if isinstance(value, list) else str(value)


def _results(manifest: Manifest, counts: Counts) -> str:
    tokens = manifest.commit.tokens
    rows = [
        ("input rows", fmt.count(counts.rows)),
        ("results", fmt.count(counts.results)),
        ("completions", fmt.count(counts.ok)),
        ("errors", fmt.count(counts.errors)),
        ("prompt tokens", fmt.count(tokens.prompt)),
        ("completion tokens", fmt.count(tokens.completion)),
    ]
    text = md.table(("", ""), rows)
    if counts.errors_by_code:
        errors = [(f"`{md.code(code)}`", fmt.count(count)) for code, count in sorted(counts.errors_by_code.items())]
        text += "\n\n" + md.table(("error", "results"), errors)
    return text


def _speculation(manifest: Manifest) -> str:
    acceptance, speedup = manifest.commit.acceptance, manifest.observed.speedup
    rows = [
        ("draft tokens", fmt.count(manifest.commit.tokens.draft)),
        ("acceptance", fmt.percent(acceptance.rate)),
        ("mean accepted length", md.number(acceptance.mean_accepted)),
        ("tokens per round and row", md.number(acceptance.mean_emitted)),
        ("output tokens per second", fmt.rate(manifest.observed.throughput.output_tokens_per_second)),
    ]
    if speedup.ratio is None:
        rows.append(("speed-up", md.text(f"not measured: {speedup.note or 'there was nothing to compare'}")))
    else:
        interval = ""
        if speedup.low is not None and speedup.high is not None:
            interval = f" (95 % interval {speedup.low:.2f} to {speedup.high:.2f})"
        rows.append(("speed-up", md.text(f"{speedup.ratio:.2f}{interval} over {speedup.baseline}")))
    return md.table(("", ""), rows)


def _provenance(manifest: Manifest, manifest_sha256: str) -> list[tuple[str, str]]:
    rows = [
        ("job", f"`{md.code(manifest.job_id)}`"),
        ("identity S", f"`{md.code(manifest.identity.S)}`"),
        ("plan P", f"`{md.code(manifest.identity.P)}`"),
        (f"SHA-256 of `{MANIFEST_NAME}`", f"`{manifest_sha256}`"),
    ]
    inputs = manifest.identity.fields.get("inputs", ())
    rows += [
        (f"input {md.text(entry[0])}", f"{fmt.count(int(entry[3]))} rows, footer `{md.code(entry[2])}`")
        for entry in inputs[:_MAX_INPUTS]
        if isinstance(entry, list | tuple) and len(entry) == 4
    ]
    if len(inputs) > _MAX_INPUTS:
        rows.append(("more inputs", f"{fmt.count(len(inputs) - _MAX_INPUTS)}, listed in `{MANIFEST_NAME}`"))
    return rows


_MAX_INPUTS = 20
