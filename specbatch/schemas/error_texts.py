"""What each error code and each exit code means and what to do about it: the one list.

``docs/errors.md`` and ``specbatch explain`` are made from it. Apart from ``errors``, so that only who prints it pays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from specbatch.schemas.errors import ErrorCode, ExitCode


@dataclass(frozen=True, slots=True)
class Explanation:
    """One code in words, in Markdown: what happened, and what to do."""

    meaning: str
    remedy: str


_E = ErrorCode
_RESUME = "run the same command again: it goes on where it was"

EXPLANATIONS: Mapping[ErrorCode, Explanation] = MappingProxyType(
    {
        _E.JOB_CONFIG: Explanation(
            "a setting is unknown, of the wrong type or out of bounds, or two settings contradict each other",
            "correct the setting that the line names; `specbatch config show` lists all",
        ),
        _E.JOB_URI_INVALID: Explanation(
            "a path has a scheme or a form that this version does not take, or holds credentials",
            "give a local path or `s3://bucket/prefix`",
        ),
        _E.JOB_URI_OVERLAP: Explanation("the output would lie in the way of the input", "choose another `--output`"),
        _E.JOB_INPUT_MISSING: Explanation("no such file or folder", "check the path"),
        _E.JOB_INPUT_EMPTY: Explanation(
            "nothing to do: no files, or no rows", "check the dataset; `--allow-empty` where none is fine"
        ),
        _E.JOB_INPUT_CORRUPT: Explanation(
            "a file is damaged, or not of the kind that its name says",
            "replace the file; `--on-bad-file quarantine` goes on without it",
        ),
        _E.JOB_INPUT_EXTENSION: Explanation(
            "a column has an Arrow extension type, which could run code when read", "store the column as a plain type"
        ),
        _E.JOB_INPUT_UNSUPPORTED: Explanation(
            "a file is encrypted, or compressed in a way that cannot be read here",
            "write it again, plain or with zstd",
        ),
        _E.JOB_INPUT_LIMIT: Explanation(
            "a file's footer announces more than is taken: a bomb, or absurd row groups",
            "write it again with row groups of ordinary size",
        ),
        _E.JOB_INPUT_CHANGED: Explanation(
            "an input file is not the one that was planned", "restore it, or submit to a new output"
        ),
        _E.JOB_SCHEMA_MISMATCH: Explanation(
            "two input files have different columns", "submit them separately, or align them"
        ),
        _E.JOB_COLUMN_MISSING: Explanation(
            "a named column does not exist; the line lists those that do",
            "name another, for prompts with `--prompt-column`",
        ),
        _E.JOB_COLUMN_TYPE: Explanation("a named column does not hold what it is named for", "cast it"),
        _E.JOB_COLUMN_RESERVED: Explanation(
            "an input column has the name of an output column",
            "`--rename OLD=NEW`, `--output-prefix`, or drop the column",
        ),
        _E.JOB_ID_DUPLICATE: Explanation(
            "two rows have the same id, and under `--seed-by id` they would have the same seeds; the line has both",
            "make the ids unique, or name another `--id-column`",
        ),
        _E.JOB_MODEL_MISSING: Explanation("no such model", "check the name; give a folder"),
        _E.JOB_MODEL_ACCESS: Explanation("the model is gated", "accept its terms and set `HF_TOKEN`"),
        _E.JOB_MODEL_UNSUPPORTED: Explanation(
            "a family or a kind of layer that the tests do not prove", "use another model"
        ),
        _E.JOB_MODEL_LOAD: Explanation(
            "the files of a model are damaged, or no worker could load it", "fetch the model again"
        ),
        _E.JOB_PACKAGE_MISSING: Explanation(
            "quantized weights need a package that is not installed", "install the packages that the line names"
        ),
        _E.JOB_UNSAFE_WEIGHTS: Explanation(
            "only pickle weights, which can run code when loaded", "convert them to safetensors"
        ),
        _E.JOB_REMOTE_CODE: Explanation("the model asks for code of its own", "use a model that does not"),
        _E.JOB_VOCAB_MISMATCH: Explanation(
            "target and draft have different tokenizers",
            "use a draft with the target's tokenizer, or `--draft none`",
        ),
        _E.JOB_OUTPUT_MISSING: Explanation("there is no job at this output", "check the path"),
        _E.JOB_OUTPUT_UNWRITABLE: Explanation(
            "the output cannot be written: permission, full disk", "free space, or choose another `--output`"
        ),
        _E.JOB_PREFIX_TAKEN: Explanation("the output folder holds something else", "choose another `--output`"),
        _E.JOB_SPEC_CHANGED: Explanation(
            "the output belongs to another job; the line lists the differences",
            "undo them, or choose another `--output`",
        ),
        _E.JOB_FORMAT: Explanation(
            "a file was written by a newer or a foreign version", "use the version that wrote it"
        ),
        _E.JOB_HELD: Explanation("another run is alive on this output", "wait for it"),
        _E.JOB_LIVE: Explanation(
            "a run is alive on an output that this command would work on",
            "wait for it, or `specbatch cancel` it",
        ),
        _E.JOB_DEADLINE: Explanation(
            "`--deadline` has come; finished parts are kept", "`specbatch resume`, with a later deadline"
        ),
        _E.JOB_NO_CAPACITY: Explanation("the machine has no room for a worker", "free it, or ask for less"),
        _E.JOB_MEMORY: Explanation(
            "the models, or the pair under a fixed K, do not fit in the free memory; the line has the numbers",
            "use a smaller model or `--dtype`, `--speculation auto`, fewer `--workers`, or a larger machine",
        ),
        _E.JOB_ERROR_RATE: Explanation(
            "more rows failed than `--max-error-rate` allows",
            "look at `error_code` in the parts; resume with a larger rate",
        ),
        _E.JOB_INTEGRITY: Explanation("something stored is not what was written", "run `specbatch verify`"),
        _E.JOB_INCOMPLETE: Explanation(
            "the job has not finished", "`specbatch resume` it; `specbatch report` says why it ended"
        ),
        _E.JOB_CLUSTER_LOST: Explanation("Ray did not start or went away", _RESUME),
        _E.JOB_CLUSTER_DENIED: Explanation(
            "the Ray cluster refuses the token of this machine, or wants one and got none",
            "set `RAY_AUTH_MODE=token` and `RAY_AUTH_TOKEN` or `RAY_AUTH_TOKEN_PATH` as the cluster's owner says",
        ),
        _E.JOB_PATH_NOT_SHARED: Explanation(
            "a local path of the job is not there, or is something else, on a node that would run a"
            " worker or the driver",
            "put dataset, output and models on S3, or on a file system that every node mounts under the same name",
        ),
        _E.JOB_VERSION_SKEW: Explanation(
            "a node has another specbatch than the driver, lacks one of its libraries or what kernels of a GPU are "
            "built with, or has another version than the other nodes of one that may show in the text",
            "install what the line names, the same versions on every node; Ray Jobs (`--address http://HEAD:8265`) "
            "bring specbatch along",
        ),
        _E.JOB_STORE_LOST: Explanation("the store did not answer", _RESUME),
        _E.JOB_STORE_DENIED: Explanation(
            "the store refuses these credentials for a read or a write that the job needs",
            "grant what the line names, or use other credentials",
        ),
        _E.STORE_NOT_ATOMIC: Explanation(
            "the store lets two writers create one object",
            "use another store, or `--single-writer` and see to it that only one run writes",
        ),
        _E.STORE_UNFIT: Explanation(
            "the store failed another check of `specbatch doctor`; the line names it",
            "use another store, or update this one",
        ),
        _E.STORE_CLOCK_SKEW: Explanation("this machine's clock is too far from the store's", "set the clock"),
        _E.JOB_DEVICE: Explanation(
            "a row's logits were not finite, and the device no longer computes what it computed at start",
            "take the device out of service; run the same command again",
        ),
        _E.JOB_INTERNAL: Explanation(
            "a defect in specbatch; the line names the log with details", "report it with that log"
        ),
        _E.SHARD_FAILED: Explanation(
            "a shard failed three times; the line has the last reason", "mend the reason, run the same command again"
        ),
        _E.SHARD_INPUT_CORRUPT: Explanation(
            "a page of an input file is damaged behind a sound footer", "replace the file"
        ),
        _E.SHARD_DISK_FULL: Explanation(
            "a worker had no disk space for a part, on every attempt", "free space in its folder for temporary files"
        ),
        _E.SHARD_OOM: Explanation(
            "a worker had no memory for a shard's rows, on every attempt",
            "a smaller `--shard-rows` (new output), or fewer workers per machine",
        ),
        _E.ROW_PROMPT_NULL: Explanation("the prompt is null", "fill it in, or leave the row out"),
        _E.ROW_PROMPT_EMPTY: Explanation("the prompt is empty or only white space", "fill it in, or leave the row out"),
        _E.ROW_TOO_LONG: Explanation(
            "the prompt leaves no room in the target's context; the message has both lengths",
            "shorten it, or `--truncate-prompt left` or `right`",
        ),
        _E.ROW_TOO_LARGE: Explanation(
            "the prompt has more bytes than are taken; it was not even tokenized", "shorten it"
        ),
        _E.ROW_ENCODING: Explanation(
            "the prompt is not valid UTF-8; its bytes are not repeated", "write the column as UTF-8"
        ),
        _E.ROW_TEMPLATE: Explanation(
            "the template cannot be rendered with this row: a column that it uses is null or of another kind, "
            "or it takes too long",
            "correct the row, or let the template say what to do without: `{{ title or 'untitled' }}`",
        ),
        _E.ROW_MESSAGES: Explanation(
            "the chat is none: no list of messages, or one without a role or without text; the message says which",
            "correct the row: every message is an object with `role` and `content`",
        ),
        _E.ROW_PARAMS: Explanation(
            "under `--row-params` a value of this row is out of bounds; the message names the column and the rule",
            "correct the row; null takes the setting of the job",
        ),
        _E.ROW_ID_NULL: Explanation(
            "the row has no id, and `--seed-by id` makes its seed from it", "fill it in, or leave `--seed-by id` out"
        ),
        _E.ROW_NUMERIC: Explanation(
            "the target's logits were not finite", "another `--dtype`; if many rows have it, check the target's files"
        ),
        _E.ROW_MEMORY: Explanation(
            "the row alone does not fit in the memory; the message has both lengths",
            "`specbatch retry-failed` on a larger machine, or without the draft",
        ),
        _E.ROW_POISON: Explanation(
            "decoding this row killed its worker again and again; it was found by bisection and left out",
            "look at the row; `specbatch retry-failed` tries it again, on another machine if need be",
        ),
    }
)
"""Every code of ``ErrorCode``, in its order; a test holds both together."""

_X = ExitCode

EXIT_TEXTS: Mapping[ExitCode, Explanation] = MappingProxyType(
    {
        _X.COMPLETE: Explanation("complete", "nothing"),
        _X.FAILED: Explanation("failed", "the error line has a code; finished parts are kept"),
        _X.USAGE: Explanation("usage, invalid spec or unfit store", "correct what the line names; nothing was started"),
        _X.ROW_ERRORS: Explanation(
            "complete, with error rows (0 under `--row-errors-ok`)",
            "`specbatch report` counts them by code; `specbatch retry-failed` decodes them again",
        ),
        _X.ERROR_BUDGET: Explanation(
            "error budget exceeded: parts kept, no manifest",
            "look at `error_code` in the parts; resume with a larger `--max-error-rate`",
        ),
        _X.NO_CAPACITY: Explanation("no capacity, or the deadline has come", "`specbatch resume` later"),
        _X.HELD: Explanation("another live run holds the output", "wait for it, or `specbatch cancel` it"),
        _X.INTEGRITY: Explanation(
            "integrity failure", "`specbatch verify` says what; `specbatch repair` makes a sound copy"
        ),
        _X.INFRASTRUCTURE: Explanation("infrastructure lost (cluster, store)", "the same command, later"),
        _X.INTERRUPTED: Explanation("interrupted by SIGINT (Ctrl-C)", "`specbatch resume`"),
        _X.TERMINATED: Explanation("interrupted by SIGTERM or `specbatch cancel`", "`specbatch resume`"),
    }
)
