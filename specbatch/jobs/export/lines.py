"""Exports line by line: JSON Lines of all columns, and the lines of OpenAI's batch output."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from specbatch.jobs.export.export import Exported, Source
from specbatch.jobs.export.values import json_line, json_rows
from specbatch.jobs.output.jobdocument import JOB_KEY, decode_job
from specbatch.storage.sinks import open_sink

_OPENAI_COLUMNS = (
    "row_id",
    "sample_index",
    "status",
    "completion",
    "finish_reason",
    "error_code",
    "error_message",
    "num_prompt_tokens",
    "num_completion_tokens",
)


def export_jsonl(source: Source, place: str, *, overwrite: bool = False) -> Exported:
    """Write one JSON object a line; ``.gz`` and ``.zst`` at the end of the name compress it.

    Raises:
        SpecbatchError: what reading and the place raise.
    """
    done = Exported(place, num_files=1)
    with open_sink(place, overwrite=overwrite) as sink:
        with _compressed(sink, place) as file:
            for table in source.tables():
                for row in json_rows(table):
                    file.write(json_line(row).encode())
                done.num_rows += table.num_rows
        done.num_bytes = sink.tell()
    return done


def export_openai(source: Source, place: str, *, errors: str | None = None, overwrite: bool = False) -> Exported:
    """Write a line for each input row in the form of OpenAI's batch output; its samples are the choices.

    A row of which some samples failed has both a response, with the choices that there are, and an error.

    Args:
        errors: a file of its own for errors; otherwise they stand in the same file.

    Raises:
        SpecbatchError: what reading and the place raise.
    """
    places = [place] if errors is None else [place, errors]
    done = Exported(place, num_files=1, others=places[1:])
    with ExitStack() as stack:
        sinks = [stack.enter_context(open_sink(name, overwrite=overwrite)) for name in places]
        with ExitStack() as inner:
            pairs = zip(sinks, places, strict=True)
            files = [inner.enter_context(_compressed(sink, name)) for sink, name in pairs]
            for head, response, error in _Requests(source):
                done.num_rows += 1
                if len(files) == 1:
                    files[0].write(json_line({**head, "response": response, "error": error}).encode())
                    continue
                if response is not None:
                    files[0].write(json_line({**head, "response": response, "error": None}).encode())
                if error is not None:
                    files[1].write(json_line({**head, "response": None, "error": error}).encode())
        done.num_bytes = sum(sink.tell() for sink in sinks)
    return done


class _Requests:
    """The rows of a job as answered requests: (ids, response or None, error or None)."""

    def __init__(self, source: Source) -> None:
        self._source = source
        fields, manifest = source.fields, source.manifest
        prompt = fields.get("prompt", {})
        self._is_chat = prompt.get("messages_column") is not None or prompt.get("system") is not None
        name = manifest.models.target.name
        self._model = Path(name).name if name.startswith("/") else name  # where it lay is nobody's business
        self._fingerprint = f"specbatch-{manifest.identity.S[:12]}"
        self._job = manifest.job_id.replace("-", "")[:12]
        document = decode_job(source.store.read(JOB_KEY), source.store.uri)
        self._created = int(datetime.fromisoformat(document.created_at).timestamp())
        self._id_column = _id_column(fields.get("output", {}), source.full_schema.names)

    def __iter__(self) -> Iterator[tuple[dict[str, str], dict[str, Any] | None, dict[str, str] | None]]:
        names = [self._source.column(name) for name in _OPENAI_COLUMNS]
        if self._id_column is not None:
            names.append(self._id_column)
        row_id = names[0]
        rows = (row for table in self._source.tables(names) for row in json_rows(table.select(names)))
        for number, samples in groupby(rows, lambda row: row[row_id]):
            yield self._request(number, list(samples))

    def _request(
        self, number: int, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, str], dict[str, Any] | None, dict[str, str] | None]:
        samples = [{name: row[self._source.column(name)] for name in _OPENAI_COLUMNS} for row in rows]
        ok = [sample for sample in samples if sample["status"] == "ok"]
        failed = [sample for sample in samples if sample["status"] != "ok"]
        given = None if self._id_column is None else rows[0][self._id_column]
        head = {"id": f"batch_req_{self._job}_{number}", "custom_id": _custom_id(given, number)}
        response = None
        if ok:
            request_id = f"req_{self._job}_{number}"
            response = {"status_code": 200, "request_id": request_id, "body": self._body(number, ok)}
        return head, response, _error(failed, len(samples))

    def _body(self, number: int, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        prompt = samples[0]["num_prompt_tokens"]
        completion = sum(sample["num_completion_tokens"] for sample in samples)
        return {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{self._job}-{number}",
            "object": "chat.completion" if self._is_chat else "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [self._choice(sample) for sample in samples],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
            "system_fingerprint": self._fingerprint,
        }

    def _choice(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        text = sample["completion"]
        said = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        return {
            "index": sample["sample_index"],
            **said,
            "logprobs": None,
            "finish_reason": sample["finish_reason"],
        }


def _error(failed: Sequence[Mapping[str, Any]], num_samples: int) -> dict[str, str] | None:
    if not failed:
        return None
    first = failed[0]
    message = str(first["error_message"])
    if num_samples > 1:
        message = (
            f"{len(failed)} of {num_samples} samples failed, the first is sample {first['sample_index']}: {message}"
        )
    return {"code": str(first["error_code"]), "message": message}


def _id_column(output: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The column with the user's ids under the name that it has in the results; None where it was not kept."""
    old = output.get("id_column")
    renamed = dict(pair.split("=", 1) for pair in output.get("rename", ()))
    name = renamed.get(old, old)
    return name if name in names else None


def _custom_id(value: Any, number: int) -> str:
    if value is None:
        return f"row-{number}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class _Unclosed:
    """A sink that outlives what is written through it."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self.write, self.tell = sink.write, sink.tell
        self.closed = False

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        """There is nothing to flush here: the sink is flushed when it ends."""

    def close(self) -> None:
        self.closed = True


@contextmanager
def _compressed(sink: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """The sink, through the compression that the name asks for. Equal lines give equal bytes."""
    if name.endswith(".gz"):
        with gzip.GzipFile(filename="", mode="wb", fileobj=sink, mtime=0) as file:
            yield cast(BinaryIO, file)
    elif name.endswith(".zst"):
        with pa.CompressedOutputStream(pa.PythonFile(_Unclosed(sink), mode="w"), "zstd") as file:
            yield file
    else:
        yield sink
