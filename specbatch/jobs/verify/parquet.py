"""Opening a Parquet file that may be hostile: its stored Arrow schema is searched before Arrow interprets it.

Part of ``verify``, which shares no code with the writers.
"""

from __future__ import annotations

import base64
import mmap
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from specbatch.jobs.verify.files import Unsound

_MAX_FOOTER_BYTES = 64 << 20
_EXTENSION_KEY = b"ARROW:extension:name"


def open_untrusted(data: bytes | mmap.mmap, name: str, *, dictionary_columns: Sequence[str] = ()) -> pq.ParquetFile:
    """Opens a Parquet file with page checksums verified and no extension type deserialised.

    Arrow gets memory, not a Python file: it would read that on a thread of its own, and where the thread lets go of the
    file while the interpreter ends, the process aborts (exit 134, about once in 200 runs on a busy machine).

    Args:
        dictionary_columns: string columns to keep dictionary-encoded, so that a small file whose cells repeat one
            long text does not grow in memory.

    Raises:
        Unsound: not Parquet, or it stores an extension type.
    """
    size_bytes, tail = len(data), data[-8:]
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length > size_bytes - 12:
        raise Unsound(f"{name} is not a whole Parquet file")
    if length > _MAX_FOOTER_BYTES:
        raise Unsound(f"{name} has a footer of {length:,} bytes")
    footer = data[size_bytes - 8 - length : size_bytes - 8]
    if any(fragment in footer for fragment in _base64_fragments(_EXTENSION_KEY)):
        raise Unsound(f"{name} stores an Arrow extension type, which no writer of ours does")
    try:
        return pq.ParquetFile(
            pa.BufferReader(data),
            read_dictionary=list(dictionary_columns),
            page_checksum_verification=True,
            arrow_extensions_enabled=False,
        )
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise Unsound(f"{name} cannot be opened as Parquet") from error


def _base64_fragments(needle: bytes) -> list[bytes]:
    """The characters that base64 text must hold wherever its contents hold ``needle``, one for each alignment."""
    fragments = []
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + needle)
        first_whole = -(-offset * 8 // 6)
        num_whole = (offset + len(needle)) * 8 // 6
        fragments.append(encoded[first_whole:num_whole])
    return fragments
