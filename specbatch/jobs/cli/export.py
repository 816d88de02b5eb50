"""``specbatch export``: results in another form, for people and for the programs that come after."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from specbatch.jobs.cli.options import GroupedCommand
from specbatch.schemas.errors import ErrorCode, SpecbatchError

if TYPE_CHECKING:
    from specbatch.jobs.export.export import Exported

_PLACE, _ROWS, _CARD = "Where", "What", "Dataset card"


class _Only(StrEnum):
    ALL = "all"
    OK = "ok"
    ERROR = "error"


class _Format(StrEnum):
    HUMAN = "human"
    JSON = "json"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("export", cls=GroupedCommand)(export)


def export(
    output: Annotated[
        str, typer.Argument(metavar="OUT", help="The output of a finished job: a folder or s3://bucket/prefix.")
    ],
    parquet: Annotated[
        str | None,
        typer.Option(
            "--parquet",
            metavar="NEW",
            help="One merged Parquet file; a folder under --max-file-bytes or --partition-by.",
            rich_help_panel=_PLACE,
        ),
    ] = None,
    jsonl: Annotated[
        str | None,
        typer.Option(
            "--jsonl", metavar="NEW", help="JSON Lines; .gz or .zst at the end compresses.", rich_help_panel=_PLACE
        ),
    ] = None,
    openai: Annotated[
        str | None,
        typer.Option(
            "--openai",
            metavar="NEW",
            help="Lines as OpenAI's batch output has them; samples become choices.",
            rich_help_panel=_PLACE,
        ),
    ] = None,
    card: Annotated[
        str | None,
        typer.Option(
            "--card",
            metavar="NEW",
            help="The dataset card with your licence and names, instead of results.",
            rich_help_panel=_PLACE,
        ),
    ] = None,
    errors: Annotated[
        str | None,
        typer.Option(
            "--errors",
            metavar="NEW",
            help="With --openai: errors go to a file of their own.",
            rich_help_panel=_PLACE,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace what an earlier export wrote there.", rich_help_panel=_PLACE),
    ] = False,
    max_file_bytes: Annotated[
        int | None,
        typer.Option(
            "--max-file-bytes",
            metavar="N",
            min=1 << 20,
            help="With --parquet: a folder of files of at most so many bytes.",
            rich_help_panel=_PLACE,
        ),
    ] = None,
    partition_by: Annotated[
        list[str] | None,
        typer.Option(
            "--partition-by",
            metavar="COLUMN",
            help="With --parquet: a folder COLUMN=VALUE for each value; may repeat.",
            rich_help_panel=_PLACE,
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="NAME", help="Only this column; may repeat. [all]", rich_help_panel=_ROWS),
    ] = None,
    only: Annotated[_Only, typer.Option("--only", help="Results with this status.", rich_help_panel=_ROWS)] = _Only.ALL,
    drop_bookkeeping: Annotated[
        bool,
        typer.Option(
            "--drop-bookkeeping",
            help="Leave out min_margin and the counters of speculation.",
            rich_help_panel=_ROWS,
        ),
    ] = False,
    license: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="Such as cc-by-4.0, or other. [unknown]", rich_help_panel=_CARD),
    ] = None,
    license_name: Annotated[
        str | None, typer.Option("--license-name", metavar="TEXT", help="Of another one.", rich_help_panel=_CARD)
    ] = None,
    license_link: Annotated[
        str | None, typer.Option("--license-link", metavar="URL", help="Of another one.", rich_help_panel=_CARD)
    ] = None,
    pretty_name: Annotated[
        str | None, typer.Option("--pretty-name", metavar="TEXT", help="Title.", rich_help_panel=_CARD)
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option("--language", metavar="CODE", help="Such as en; may repeat.", rich_help_panel=_CARD),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="TEXT", help="May repeat.", rich_help_panel=_CARD)
    ] = None,
    format: Annotated[_Format, typer.Option("--format", help="How to print what was written.")] = _Format.HUMAN,
) -> None:
    """Write the results of a finished job in another form, amendments applied, in the order of the rows.

    The job itself is never changed. What is written appears whole or not at all.
    """
    places = {"--parquet": parquet, "--jsonl": jsonl, "--openai": openai, "--card": card}
    (form,) = _one(places)
    own = {
        "--errors": ("--openai", errors),
        "--max-file-bytes": ("--parquet", max_file_bytes),
        "--partition-by": ("--parquet", partition_by),
        "--license": ("--card", license),
        "--license-name": ("--card", license_name),
        "--license-link": ("--card", license_link),
        "--pretty-name": ("--card", pretty_name),
        "--language": ("--card", language),
        "--tag": ("--card", tag),
    }
    for name, (wanted, value) in own.items():
        if value and form != wanted:
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"{name} goes with {wanted}, not with {form}")
    if form == "--openai" and (columns or drop_bookkeeping):
        raise SpecbatchError(ErrorCode.JOB_CONFIG, "--openai has columns of its own; leave --columns and such out")
    if form == "--card" and (columns or drop_bookkeeping or only is not _Only.ALL):
        raise SpecbatchError(ErrorCode.JOB_CONFIG, "--card writes no results; leave --columns, --only and such out")

    from specbatch.jobs.export.export import Selection, Source, check_place
    from specbatch.jobs.output.card import CardOptions

    place = places[form]
    assert place is not None
    for each in filter(None, (place, errors)):
        check_place(each, output)
    if errors == place:
        raise SpecbatchError(ErrorCode.JOB_CONFIG, "--errors and --openai name the same file; give them different ones")
    if form == "--card":
        options = CardOptions(
            license=license or ("other" if license_name else "unknown"),
            license_name=license_name,
            license_link=license_link,
            pretty_name=pretty_name,
            languages=tuple(language or ()),
            tags=tuple(tag or ()),
        )
        _print(_export_card(output, place, options, overwrite=overwrite), format)
        return
    selection = Selection(tuple(columns) if columns else None, only.value, drop_bookkeeping)
    source = Source(output, selection, lambda line: typer.echo(line, err=True))
    if form == "--parquet":
        from specbatch.jobs.export.parquet import export_parquet

        done = export_parquet(
            source,
            place,
            overwrite=overwrite,
            max_file_bytes=max_file_bytes,
            partition_by=tuple(partition_by or ()),
        )
    else:
        from specbatch.jobs.export.lines import export_jsonl, export_openai

        if form == "--jsonl":
            done = export_jsonl(source, place, overwrite=overwrite)
        else:
            done = export_openai(source, place, errors=errors, overwrite=overwrite)
    _print(done, format)


def _one(places: dict[str, str | None]) -> tuple[str]:
    given = [name for name, place in places.items() if place is not None]
    if len(given) != 1:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"{' and '.join(given) or 'nothing'} given; say with one of {', '.join(places)} what to write and where",
        )
    return (given[0],)


def _export_card(output: str, place: str, options: object, *, overwrite: bool) -> Exported:
    from specbatch.jobs.export.export import Exported
    from specbatch.jobs.output.card import CardOptions, render_card
    from specbatch.jobs.output.jobdocument import JOB_KEY, decode_job
    from specbatch.jobs.output.manifest import MANIFEST_NAME
    from specbatch.jobs.reports.report import load_amendments, load_manifest
    from specbatch.schemas.canonical import sha256_hex
    from specbatch.storage.sinks import open_sink
    from specbatch.storage.store import open_store

    assert isinstance(options, CardOptions)
    manifest = load_manifest(output)
    store = open_store(output)
    document = decode_job(store.read(JOB_KEY), output)
    digest = sha256_hex(store.read(MANIFEST_NAME))
    amendments = load_amendments(output)
    text = render_card(manifest, document, manifest_sha256=digest, amendments=amendments, options=options).encode(
        "utf-8", "replace"
    )
    with open_sink(place, overwrite=overwrite) as sink:
        sink.write(text)
    return Exported(place, num_files=1, num_bytes=len(text), num_rows=manifest.commit.counts.rows)


def _print(done: Exported, format: _Format) -> None:
    from specbatch.jobs.display.formatting import clean

    if format is _Format.JSON:
        typer.echo(json.dumps(asdict(done), indent=2))
    else:
        typer.echo(clean(done.sentence()))
