"""Progress files of made-up runs, for the tests of what shows them."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

from finished_output import Output

from specbatch.schemas.run import ProgressDocument

NOW = datetime(2026, 11, 23, 10, 0, 0, tzinfo=UTC)

DOCUMENT: dict[str, Any] = {
    "format": "specbatch/progress/1",
    "epoch": 1,
    "host": "node-1",
    "pid": 1,
    "updated_at": "2026-11-23T10:00:00+00:00",
    "state": "running",
    "num_rows": 256,
    "num_parts": 16,
    "parts_done": 0,
    "rows_in_parts": 0,
    "rows_done": 0,
    "num_errors": 0,
    "completion_tokens": 0,
    "tokens_per_second": 0.0,
    "acceptance_rate": None,
    "mean_emitted": None,
    "eta_seconds": None,
    "workers": [],
}
"""As the first version wrote it."""

BUSY: dict[str, Any] = {
    "completion_tokens": 5000,
    "tokens_per_second": 245.2,
    "acceptance_rate": 0.712,
    "mean_emitted": 2.846,
    "eta_seconds": 31.2,
    "workers": [{}, {}],
}


def document(**changes: Any) -> ProgressDocument:
    return ProgressDocument.model_validate({**DOCUMENT, **changes})


def write_progress(output: Output, **changes: Any) -> None:
    """The progress file of a run on this host, four seconds old."""
    document = ProgressDocument.model_validate(
        {
            "format": "specbatch/progress/1",
            "epoch": 3,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "updated_at": (NOW - timedelta(seconds=4)).isoformat(timespec="seconds"),
            "state": "running",
            "num_rows": 20,
            "num_parts": 4,
            "parts_done": 2,
            "rows_in_parts": 12,
            "rows_done": 14,
            "num_errors": 1,
            "completion_tokens": 200,
            "tokens_per_second": 245.2,
            "acceptance_rate": 0.712,
            "mean_emitted": 2.85,
            "eta_seconds": 31.0,
            "workers": [{}, {}],
            **changes,
        }
    )
    made = output.root / "_specbatch/progress.json.made"
    made.write_text(document.model_dump_json())
    made.replace(made.with_suffix(""))  # whoever looks meanwhile sees the one or the other
