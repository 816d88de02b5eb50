"""Where a job's output goes: the default beside the dataset, and what a chosen place must not be."""

from __future__ import annotations

import glob
import os
import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import InputFile
from specbatch.storage.store import is_s3, local_path, s3_location

_HIVE_ESCAPED = frozenset("\"#%'*/:=?\\{[]^")


def default_output(dataset: str, identity_digest: str, inputs: Sequence[InputFile] = ()) -> str:
    """``<stem>-<S[:8]>`` beside a file or a folder; in the fixed folder of a glob.

    Args:
        dataset: the first dataset argument.
        identity_digest: S.
        inputs: what the datasets hold: an object on S3 is told from a folder by being among them.
    """
    suffix = f"-{identity_digest[:8]}"
    if is_s3(dataset):
        return _default_on_s3(dataset, suffix, inputs)
    path = Path(dataset).expanduser().absolute()
    if glob.has_magic(dataset) and not path.exists():
        fixed = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
        return str(fixed / f"{fixed.name or 'dataset'}{suffix}")
    if path.is_dir():
        path = path.resolve()
        return str(path.parent / f"{path.name or 'dataset'}{suffix}")
    return str(path.parent / f"{path.stem}{suffix}")


def _default_on_s3(dataset: str, suffix: str, inputs: Sequence[InputFile]) -> str:
    bucket, key = s3_location(dataset, "dataset")
    uris = [file.path for file in inputs]
    if f"s3://{bucket}/{key}" in uris:
        return f"s3://{bucket}/{posixpath.splitext(key)[0]}{suffix}"
    if not glob.has_magic(key) or any(uri.startswith(f"s3://{bucket}/{key}/") for uri in uris):
        return f"s3://{bucket}/{key or bucket}{suffix}"
    segments = key.split("/")
    fixed = segments[: next(index for index, segment in enumerate(segments) if glob.has_magic(segment))]
    name = fixed[-1] if fixed else bucket
    return "/".join(["s3:/", bucket, *fixed, f"{name}{suffix}"])


def with_partitions(output: str, partitions: Sequence[str], columns: Iterable[str]) -> str:
    """The folder of a job below its output: ``OUT/KEY=VALUE/...``, as tables by night have them.

    Args:
        partitions: ``KEY=VALUE``, in the order of the folders.
        columns: of the parts. A key that is one of them would make readers of the folders see that column twice.

    Raises:
        SpecbatchError: ``JOB_CONFIG``, a key is there twice or is a column; capitals do not tell keys apart.
    """
    taken = {name.casefold(): name for name in columns}
    seen: set[str] = set()
    segments = []
    for pair in partitions:
        key, _, value = (text.strip() for text in pair.partition("="))
        if key.casefold() in seen:
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"--partition {key}=...: this key is given twice; give it once")
        if key.casefold() in taken:
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG,
                f"--partition {key}=...: the data have a column {taken[key.casefold()]!r} already; "
                "choose another key, or give the column another name with --rename",
            )
        seen.add(key.casefold())
        segments.append(f"{hive_escaped(key)}={hive_escaped(value)}")
    return "/".join([output.rstrip("/"), *segments]) if segments else output


def hive_escaped(text: str) -> str:
    """A name or value as Hive writes it into a path: what means something there becomes ``%XX``.

    Other characters that cannot be printed are escaped too, byte by byte in UTF-8: no store takes them all.
    """
    return "".join(
        "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
        if char in _HIVE_ESCAPED or not char.isprintable()
        else char
        for char in text
    )


def check_output(output: str, datasets: Sequence[str]) -> str:
    """The output as an absolute path or URI that is no file, no dataset and not inside of one.

    A folder that is a dataset must not hold the output: other readers of the dataset would take the parts for data.
    Globs are left alone, whoever writes one says which files are meant, and outputs are skipped in them.

    Raises:
        SpecbatchError: ``JOB_URI_INVALID``, ``JOB_URI_OVERLAP``, ``JOB_PREFIX_TAKEN`` (it is a file); for S3 also
            ``JOB_STORE_LOST``, ``JOB_STORE_DENIED``.
    """
    return _check_on_s3(output, datasets) if is_s3(output) else _check_local(output, datasets)


def why_unwritable(output: str) -> str | None:
    """Why nothing can be written to a local output, from a look at the folder that is there already.

    None where the look finds nothing against it, which is no promise: it writes nothing. None for S3 too, whose rights
    only a write would show.
    """
    if is_s3(output):
        return None
    path = local_path(output, "output")
    there = next(place for place in (path, *path.parents) if os.access(place, os.F_OK))
    if not there.is_dir():
        return f"{there} is no folder"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} is not writable"


def _check_local(output: str, datasets: Sequence[str]) -> str:
    path = local_path(output, "output")
    resolved = path.resolve()
    for dataset in datasets:
        if is_s3(dataset):
            continue
        place = local_path(dataset, "dataset").resolve()
        if place == resolved:
            raise _is_dataset(str(path))
        if place in resolved.parents and place.is_dir():
            raise _is_inside(str(path), str(place))
    if path.exists() and not path.is_dir():
        raise _is_file(str(path))
    return str(path)


def _check_on_s3(output: str, datasets: Sequence[str]) -> str:
    from specbatch.storage.s3_client import bucket_of
    from specbatch.storage.store import NotFound

    bucket, key = bucket_of(output)
    uri = f"s3://{bucket.name}/{key}".removesuffix("/")
    for dataset in filter(is_s3, datasets):
        bucket_name, place = s3_location(dataset, "dataset")
        if bucket_name != bucket.name:
            continue
        if place == key:
            raise _is_dataset(uri)
        if not place or key.startswith(f"{place}/"):
            raise _is_inside(uri, dataset)
    if key:
        try:
            bucket.head(key)
        except NotFound:
            return uri
        raise _is_file(uri)
    return uri


def _is_dataset(output: str) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_URI_OVERLAP, f"output and dataset are both {output}; give --output a folder of its own"
    )


def _is_inside(output: str, dataset: str) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_URI_OVERLAP,
        f"output {output} lies inside the dataset {dataset}, whose readers would take its parts for data; "
        "give --output a folder beside it",
    )


def _is_file(output: str) -> SpecbatchError:
    return SpecbatchError(ErrorCode.JOB_PREFIX_TAKEN, f"output {output} is a file; choose a new folder with --output")
