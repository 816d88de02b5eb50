"""A job with its amendments applied: each is a child job below ``amendments/<n>/`` that decoded failed results again.

The parent never changes. An amendment's result takes the place of the one of the same (row, sample), and amendments
apply in the order of their numbers; each says in its identity which manifests it builds on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from specbatch.jobs.output.manifest import MANIFEST_NAME, decode_manifest
from specbatch.schemas.canonical import sha256_hex
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import Counts, Manifest
from specbatch.storage.store import NotFound, Store

AMENDMENTS_FOLDER = "amendments"
AMENDS_FIELD = "amends"
"""The field of an amendment's identity: ``{manifest, amendments, codes}``: the digest of the parent's manifest, those
of the amendments before it, and how many failed results of which code it decodes again."""


def amendment_key(number: int, key: str) -> str:
    """The key of an amendment's object in the store of its parent."""
    return f"{AMENDMENTS_FOLDER}/{number}/{key}"


def amendment_uri(uri: str, number: int) -> str:
    """The output of an amendment."""
    return f"{uri.rstrip('/')}/{AMENDMENTS_FOLDER}/{number}"


def read_amendments(store: Store) -> tuple[Manifest, ...]:
    """Manifests of the finished amendments of a finished job, in the order in which they apply.

    Raises:
        SpecbatchError: JOB_INTEGRITY for one that builds on another manifest than the one that is there; JOB_FORMAT.
    """
    return tuple(manifest for manifest, _ in read_chain(store))


def read_chain(store: Store) -> list[tuple[Manifest, str]]:
    """As ``read_amendments``, each with the hex SHA-256 of its manifest."""
    try:
        parent = sha256_hex(store.read(MANIFEST_NAME))
    except NotFound:
        return []
    found: list[tuple[Manifest, str]] = []
    while True:
        key = amendment_key(len(found) + 1, MANIFEST_NAME)
        try:
            data = store.read(key)
        except NotFound:
            return found
        manifest = decode_manifest(data)
        amends = manifest.identity.fields.get(AMENDS_FIELD)
        before = [digest for _, digest in found]
        if not isinstance(amends, dict) or (amends.get("manifest"), amends.get("amendments")) != (parent, before):
            raise SpecbatchError(
                ErrorCode.JOB_INTEGRITY,
                f"{store.uri}/{key} amends another manifest than the one that is there; "
                f"see specbatch verify {store.uri}",
            )
        found.append((manifest, sha256_hex(data)))


def amended_counts(manifest: Manifest, amendments: Sequence[Manifest]) -> Counts:
    """The counts of a job with its amendments applied. Pure: from the manifests alone."""
    counts = manifest.commit.counts
    num_ok = counts.ok
    by_code = Counter(counts.errors_by_code)
    for amendment in amendments:
        num_ok += amendment.commit.counts.ok
        by_code.subtract(amendment.identity.fields[AMENDS_FIELD].get("codes", {}))
        by_code.update(amendment.commit.counts.errors_by_code)
    return Counts(
        rows=counts.rows,
        results=counts.results,
        ok=num_ok,
        errors=counts.results - num_ok,
        errors_by_code={code: count for code, count in sorted(by_code.items()) if count > 0},
    )
