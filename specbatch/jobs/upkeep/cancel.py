"""``specbatch cancel``: ask the run that works on an output to stop, and say what will happen."""

from __future__ import annotations

from specbatch.jobs.output.amended import amendment_uri, read_chain
from specbatch.jobs.output.cancel import request_cancel
from specbatch.jobs.output.submissions import cancel_submission, find_waiting
from specbatch.jobs.upkeep.resume import open_output
from specbatch.storage.store import open_store


def cancel_output(uri: str) -> str:
    """Ask the run that works on an output, or on its unfinished amendment, to stop.

    Returns:
        What was done and what will happen, one line.

    Raises:
        SpecbatchError: JOB_OUTPUT_MISSING, there is no job.
    """
    output = open_output(uri)
    stores = [output.store]
    if not output.is_amendment:
        stores.append(open_store(amendment_uri(output.uri, len(read_chain(output.store)) + 1)))
    for store in stores:
        outcome = request_cancel(store)
        if outcome.holder is not None:
            run = f"the run on {store.uri} (host {outcome.holder.host}, process {outcome.holder.pid})"
            asked = "was asked to stop" if outcome.state == "asked" else "had been asked to stop before"
            # That may be this run before it has its epoch; or a run elsewhere that is gone, and the other one waits.
            if (waiting := find_waiting(store)) is not None:
                cancel_submission(store, waiting.number)
                asked += f", and so was {waiting.submission_id} at {waiting.address}, which has not begun"
            return (
                f"{run} {asked}: within seconds it takes no new shards, finishes those in flight and ends with exit "
                f"143; what is done is kept, and specbatch resume {uri} goes on with it"
            )
    for store in stores:
        if (waiting := find_waiting(store)) is not None:
            asked = "was asked not to begin" if cancel_submission(store, waiting.number) else "had been asked so before"
            return (
                f"{waiting.submission_id}, which waits in Ray Jobs at {waiting.address}, {asked}: its driver ends as "
                f"soon as it starts, with exit 143; specbatch resume {uri} goes on with the job"
            )
    if output.ledger.find_manifest() is not None:
        return f"nothing runs on {uri}: the job is complete"
    return f"nothing runs on {uri}; there is nothing to stop, and specbatch resume {uri} goes on with it"
