"""``--notify``: a summary of a run, posted to a webhook when the run has ended.

The address is often a secret. It is never stored or printed; messages name no more of it than its
host. What is posted holds counts and ratios, no prompt and no text. A failure to post is a warning.
"""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, MutableMapping
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel

from specbatch.jobs.running.job import JobOutcome
from specbatch.schemas import manifest as stored
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.log_lines import now_text

NOTICE_FORMAT = "specbatch/notice/1"
NOTIFY_VARIABLE = "SPECBATCH_NOTIFY_URL"
REQUEST_SECONDS = 10.0
TOTAL_SECONDS = 15.0

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

NoticeState = Literal["complete", "complete with error rows", "interrupted", "failed"]


class NoticeThroughput(BaseModel):
    wall_seconds: float
    output_tokens_per_second: float
    rows_per_second: float


class NoticeSpeedup(BaseModel):
    """Measured against plain decoding; ``low`` and ``high`` are its interval."""

    baseline: str
    ratio: float | None
    low: float | None
    high: float | None


class Notice(BaseModel):
    """How a run ended, for a webhook.

    Attributes:
        time: when it ended, UTC.
        job_id, counts, tokens, throughput, acceptance_rate, speedup: null unless the job is complete.
        output: null where a job was refused before its output was known.
        logical_date: the night that it was for; null where none was given.
        error_code: why it failed; null where it did not.
        was_complete: an earlier run had finished the job; this one did nothing.
    """

    format: Literal["specbatch/notice/1"] = "specbatch/notice/1"
    time: str
    job_id: str | None = None
    output: str | None = None
    logical_date: str | None = None
    state: NoticeState
    exit_code: int
    error_code: str | None = None
    was_complete: bool = False
    parts_done: int | None = None
    parts: int | None = None
    counts: stored.Counts | None = None
    tokens: stored.Tokens | None = None
    throughput: NoticeThroughput | None = None
    acceptance_rate: float | None = None
    speedup: NoticeSpeedup | None = None


class Notifier:
    """Posts how runs end; one without an address does nothing.

    Args:
        url: as ``check_notify_url`` lets it pass.
        say: takes a line for the user.
    """

    def __init__(self, url: str | None, say: Callable[[str], None]) -> None:
        self._url = url
        self._say = say
        self.output: str | None = None
        self.logical_date: str | None = None

    def check_waits(self, waits: bool) -> None:
        """Refuse to promise a summary where this process does not stay for the end.

        Raises:
            SpecbatchError: JOB_CONFIG.
        """
        if self._url is not None and not waits:
            self._url = None
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG,
                f"--notify (or {NOTIFY_VARIABLE}) needs --wait: the summary is posted by the command that waits for "
                "the end, and the address goes to no other machine",
            )

    def ended(self, outcome: JobOutcome) -> None:
        """Post how a run ended that gave an outcome."""
        self._post(outcome_notice(outcome, self.logical_date))

    def stopped(self, exit_code: int) -> None:
        """Post that a run was stopped at once."""
        self._post(self._short("interrupted", exit_code, None))

    def failed(self, error: Exception) -> None:
        """Post that a run failed; of the error only its code is told."""
        known = error if isinstance(error, SpecbatchError) else SpecbatchError(ErrorCode.JOB_INTERNAL, "")
        self._post(self._short("failed", int(known.exit_code), known.code))

    def _short(self, state: NoticeState, exit_code: int, code: ErrorCode | None) -> Notice:
        return Notice(
            time=now_text(),
            output=self.output,
            logical_date=self.logical_date,
            state=state,
            exit_code=exit_code,
            error_code=None if code is None else code.value,
        )

    def _post(self, notice: Notice) -> None:
        if self._url is None:
            return
        problem = post(self._url, notice.model_dump(mode="json"))
        if problem is not None:
            self._say(f"warning: the summary could not be posted to {shown_host(self._url)}: {problem}")


def make_notifier(given: str | None, environ: MutableMapping[str, str], say: Callable[[str], None]) -> Notifier:
    """The notifier of a command: what it was given over ``SPECBATCH_NOTIFY_URL``.

    The variable is taken out of the environment, so that no process that is started has it.

    Raises:
        SpecbatchError: JOB_CONFIG, an address that is not taken; nothing of it is repeated.
    """
    url = given or environ.get(NOTIFY_VARIABLE) or None
    environ.pop(NOTIFY_VARIABLE, None)
    if url is not None:
        check_notify_url(url)
    return Notifier(url, say)


def check_notify_url(url: str) -> None:
    """Refuse an address that would send a summary in the clear, or that is none.

    Raises:
        SpecbatchError: JOB_CONFIG. Nothing of the address is repeated: it may be a secret.
    """
    refused = SpecbatchError(
        ErrorCode.JOB_CONFIG,
        f"the address of --notify (or {NOTIFY_VARIABLE}) must be https://HOST/…, or http:// on this machine itself",
    )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise refused from None
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)
    if not host or not is_safe or not url.isprintable() or " " in url or not url.isascii():
        raise refused


def shown_host(url: str) -> str:
    """What of an address may be shown: its scheme and host."""
    parts: SplitResult = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}"


def outcome_notice(outcome: JobOutcome, logical_date: str | None) -> Notice:
    """The summary of a run that gave an outcome. Pure but for the time."""
    manifest = outcome.manifest
    common: dict[str, Any] = {
        "time": now_text(),
        "output": outcome.output,
        "logical_date": logical_date,
        "exit_code": int(outcome.exit_code),
        "was_complete": outcome.was_complete,
        "parts_done": outcome.parts_done,
        "parts": outcome.num_parts,
    }
    if manifest is None:
        return Notice(state="interrupted", **common)
    commit, observed = manifest.commit, manifest.observed
    return Notice(
        state="complete with error rows" if commit.counts.errors else "complete",
        job_id=manifest.job_id,
        counts=commit.counts,
        tokens=commit.tokens,
        throughput=NoticeThroughput(
            wall_seconds=observed.throughput.wall_seconds,
            output_tokens_per_second=observed.throughput.output_tokens_per_second,
            rows_per_second=observed.throughput.rows_per_second,
        ),
        acceptance_rate=commit.acceptance.rate,
        speedup=NoticeSpeedup(
            baseline=observed.speedup.baseline,
            ratio=observed.speedup.ratio,
            low=observed.speedup.low,
            high=observed.speedup.high,
        ),
        **common,
    )


def post(
    url: str,
    document: dict[str, Any],
    *,
    request_seconds: float = REQUEST_SECONDS,
    total_seconds: float = TOTAL_SECONDS,
) -> str | None:
    """Post a document; None if the webhook took it, else what went wrong, without a word of the address.

    Args:
        request_seconds: that the webhook may be silent for.
        total_seconds: that all of it may take; a webhook that answers byte by byte is given up then.
    """
    done: list[str | None] = []

    def send() -> None:
        done.append(_send(url, json.dumps(document).encode(), request_seconds))

    thread = threading.Thread(target=send, name="notify", daemon=True)
    thread.start()
    thread.join(total_seconds)
    return done[0] if done else f"no answer within {total_seconds:g} s"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A webhook that sends elsewhere has not taken it: where it sends to was not checked."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _send(url: str, data: bytes, seconds: float) -> str | None:
    handlers: list[Any] = [_NoRedirects()]
    if urlsplit(url).hostname in _LOOPBACK:
        handlers.append(urllib.request.ProxyHandler({}))
    headers = {"Content-Type": "application/json", "User-Agent": "specbatch"}
    request = urllib.request.Request(url, data=data, headers=headers, method="POST")  # noqa: S310 - https, or loopback
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=seconds):
            return None
    except urllib.error.HTTPError as error:
        status = error.code
        error.close()
        return f"it answered {status}"
    except Exception as error:  # whatever it is, it must not change how a job ends; its words may hold the address
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return type(reason).__name__ if isinstance(reason, Exception) else "it cannot be reached"
