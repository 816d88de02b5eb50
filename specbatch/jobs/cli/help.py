"""What ``--help`` teaches: the commands in the order of a job's life, and examples for each of them.

Nothing is imported: this runs before every command. Tests parse each example, and the reference of the command line in
the documents is made from the same tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """One command of ``specbatch``.

    Attributes:
        module: of ``specbatch.jobs``; its ``register`` adds the command. Imported when the command is asked for.
        summary: a few words for the list of ``specbatch --help``.
    """

    name: str
    group: str
    module: str
    summary: str


_RUN, _BEFORE, _DURING, _AFTER, _TOOL = (
    "Run a job",
    "Before a run",
    "During a run",
    "After a run",
    "The tool itself",
)

COMMANDS: tuple[CommandEntry, ...] = (
    CommandEntry("submit", _RUN, "job", "run a job: one result for every row of a dataset"),
    CommandEntry("resume", _RUN, "outputs", "go on with a job: decode what is missing"),
    CommandEntry("cancel", _RUN, "outputs", "ask a running job to stop; what is done is kept"),
    CommandEntry("retry-failed", _RUN, "outputs", "decode the error rows of a finished job again"),
    CommandEntry("repair", _RUN, "outputs", "make a sound copy of a damaged output"),
    CommandEntry("schedule", _RUN, "schedule", "jobs that come again every night"),
    CommandEntry("plan", _BEFORE, "job", "check everything, print settings and plan"),
    CommandEntry("preview", _BEFORE, "before", "decode the first rows and show them"),
    CommandEntry("calibrate", _BEFORE, "before", "does the draft pay here? what will the job take?"),
    CommandEntry("doctor", _BEFORE, "outputs", "is this machine, store and pair fit for a job?"),
    CommandEntry("status", _DURING, "watch", "how far a job is, from any machine; --watch live"),
    CommandEntry("logs", _DURING, "watch", "what happened in a run; -f goes on"),
    CommandEntry("list", _DURING, "watch", "all jobs below a folder or prefix"),
    CommandEntry("report", _AFTER, "report", "what a job did; several jobs side by side"),
    CommandEntry("verify", _AFTER, "outputs", "prove that every row is there exactly once"),
    CommandEntry("export", _AFTER, "export", "results as JSONL, Parquet, OpenAI lines, a card"),
    CommandEntry("gc", _AFTER, "outputs", "remove what killed runs left behind"),
    CommandEntry("config", _TOOL, "about", "show settings with their origin; schema of job files"),
    CommandEntry("explain", _TOOL, "about", "what an error code or exit code means"),
)
"""Every command, in the order of the help."""

EXAMPLES: Mapping[str, tuple[tuple[str, str], ...]] = MappingProxyType(
    {
        "": (
            ("specbatch submit prompts.parquet", "the whole job; everything else has a default"),
            ("specbatch report prompts-1a2b3c4d", "what it did: throughput, acceptance, measured speed-up"),
            ("specbatch explain ROW_TOO_LONG", "what a code means and what to do"),
        ),
        "submit": (
            ("specbatch submit prompts.parquet", "with the bundled pair, results beside the dataset"),
            (
                "specbatch submit prompts.parquet --target ./target --draft ./draft --max-new-tokens 256",
                "with models of your own",
            ),
            (
                "specbatch submit chats.jsonl --messages-column messages --temperature 0.7 --num-samples 4",
                "chats through the model's template, four answers each",
            ),
            (
                "specbatch submit s3://bucket/prompts/ --output s3://bucket/answers --config job.yaml",
                "on S3, with settings from a file",
            ),
            (
                "specbatch submit prompts.parquet --output 'answers/{date}' --logical-date 2026-11-24",
                "one night of many, in a folder of its own",
            ),
            (
                "specbatch submit s3://bucket/prompts/ --output s3://bucket/answers "
                "--address http://head:8265 --no-wait",
                "through Ray Jobs of a cluster; status, logs and cancel tell and stop it from anywhere",
            ),
            (
                "specbatch submit s3://bucket/prompts/ --output s3://bucket/answers --address head:6379 --device cuda "
                "--gpus-per-worker 0.5",
                "on a cluster that this machine is a node of, two workers on each GPU",
            ),
        ),
        "plan": (
            ("specbatch plan prompts.parquet", "checks everything, starts nothing"),
            ("specbatch plan prompts.parquet --config job.yaml --set generation.seed=3", "with the settings of a job"),
            ("specbatch plan prompts.parquet --format json", "for a program"),
        ),
        "preview": (("specbatch preview prompts.parquet -n 3", "the first rows, decoded and shown"),),
        "calibrate": (
            (
                "specbatch calibrate prompts.parquet --target ./target --draft ./draft",
                "does this draft pay, on this machine, with these rows?",
            ),
            (
                "specbatch calibrate prompts.parquet --price-per-device-hour 2.5 --save pair.json",
                "with the cost of the job, and kept in a file for --profile",
            ),
        ),
        "doctor": (
            ("specbatch doctor", "this machine and the bundled pair"),
            ("specbatch doctor s3://bucket/outputs --target ./target --draft ./draft", "a store and a pair too"),
        ),
        "resume": (
            ("specbatch resume out", "decodes what is missing"),
            ("specbatch resume s3://bucket/out --workers 4 --speculation off", "from any machine, in another way"),
            ("specbatch resume s3://bucket/out --address local", "here, where its cluster has gone"),
        ),
        "cancel": (("specbatch cancel out", "the run finishes the shards in flight and keeps what is done"),),
        "retry-failed": (
            ("specbatch retry-failed out", "every error row"),
            ("specbatch retry-failed out --codes ROW_MEMORY,ROW_POISON --batch-size 4", "only those of two codes"),
        ),
        "repair": (("specbatch repair out --output out-repaired", "sound parts are copied, the others made again"),),
        "status": (
            ("specbatch status out", "how far a job is, from its files alone"),
            ("specbatch status s3://bucket/out --watch", "live, until it ends"),
            ("specbatch status s3://bucket/out --format json", "for a program"),
        ),
        "logs": (
            ("specbatch logs out", "what happened in the last run"),
            ("specbatch logs s3://bucket/out -f", "goes on until the run ends"),
            ("specbatch logs out --epoch 1 --worker 3", "one worker of the first run"),
        ),
        "list": (("specbatch list s3://bucket/outputs", "all jobs below a prefix with their states"),),
        "report": (
            ("specbatch report out", "one job"),
            ("specbatch report monday tuesday wednesday", "several nights side by side, the first is the base"),
            ("specbatch report out --html out.html", "one file with plots too, to send or to print"),
            ("specbatch report monday tuesday --fail-on-regression", "exit 1 where a night is worse than the first"),
            ("specbatch report out --format json", "for programs; csv and markdown too"),
        ),
        "verify": (
            ("specbatch verify out", "digests, counts, every input row exactly once"),
            ("specbatch verify out --deep", "against the dataset too, and some rows decoded again"),
        ),
        "export": (
            (
                "specbatch export out --jsonl answers.jsonl.gz --only ok --columns prompt --columns completion",
                "lines with two columns, without error rows",
            ),
            ("specbatch export out --openai batch_output.jsonl --errors failed.jsonl", "as OpenAI's batches come back"),
            (
                "specbatch export s3://bucket/out --parquet s3://bucket/table --partition-by language",
                "a table in folders",
            ),
        ),
        "gc": (
            ("specbatch gc out", "shows and removes what killed runs left"),
            ("specbatch gc out --yes", "parts of other plans too"),
        ),
        "schedule add": (
            (
                "specbatch schedule add nightly.yaml --cron '15 1 * * *' --timezone Europe/Berlin --store schedules",
                "each night at 1:15, from a job file whose output has {date} in it",
            ),
            (
                "specbatch schedule add hourly.yaml --cron '0 * * * *' --overlap wait --missed skip "
                "--store s3://bucket/schedules",
                "each hour; late ones wait, those that nobody saw come are left out",
            ),
        ),
        "schedule list": (
            ("specbatch schedule list --store schedules", "the next times, and what became of the last nights"),
            ("specbatch schedule list nightly --nights 30 --store schedules --format json", "a month, for a program"),
        ),
        "schedule remove": (("specbatch schedule remove nightly --store schedules", "its nights and results stay"),),
        "schedule run": (
            ("specbatch schedule run --store schedules", "a daemon for all schedules; SIGTERM ends it"),
            ("specbatch schedule run --store schedules --once", "what is due now, then exit: for a timer"),
            (
                "specbatch schedule run nightly --store schedules --once --now 2026-11-24T01:15+01:00",
                "as if it were that moment",
            ),
        ),
        "schedule render": (
            (
                "specbatch schedule render nightly --store schedules --to systemd --output units",
                "service and timer, with what they run",
            ),
            (
                "specbatch schedule render nightly.yaml --cron '15 1 * * *' --to k8s-cronjob --image "
                "registry/specbatch",
                "a manifest on stdout, for kubectl apply -f -",
            ),
        ),
        "schedule report": (("specbatch schedule report nightly --store schedules", "the last week, side by side"),),
        "schedule times": (
            ("specbatch schedule times --cron '15 1 * * *' --timezone Europe/Berlin", "the next five times"),
            ("specbatch schedule times --cron '15 1 * * *' --last", "the last time that has come"),
        ),
        "config show": (
            ("specbatch config show", "every setting with its default"),
            ("specbatch config show --config job.yaml --seed 3", "what would hold, and where it comes from"),
            ("specbatch config show --config job.yaml --no-origin > whole.yaml", "a job file with every setting"),
        ),
        "config schema": (("specbatch config schema > job.schema.json", "for an editor that checks job files"),),
        "explain": (
            ("specbatch explain ROW_TOO_LONG", "an error code"),
            ("specbatch explain 4", "an exit code"),
            ("specbatch explain", "all of them"),
        ),
    }
)
"""Command without ``specbatch`` -> (command line, what it shows)."""
