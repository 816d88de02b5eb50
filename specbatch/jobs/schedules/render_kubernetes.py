"""A schedule for Kubernetes: a CronJob whose pod runs the night with a Ray of its own.

A pod does not see the annotation with the planned time, which its Job has. But the controller ends the Job's name with
that time, in minutes since 1970, and a pod is labelled with the name of its Job: the downward API hands it on.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

from specbatch.jobs.schedules.render_pod import restricted_pod
from specbatch.jobs.schedules.rendered import Rendered, RenderedFile
from specbatch.jobs.schedules.schedule import Schedule, job_text, local_places, values_of
from specbatch.schemas.errors import ErrorCode, SpecbatchError

JOB_FOLDER = "/etc/specbatch"
SKIP_START_SECONDS = 300
RUN_START_SECONDS = 82800
DRAIN_SECONDS = 900
FAILED_FOR_GOOD = (1, 2, 3, 4, 7)
"""Exit codes after which another run would end in the same way."""

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_MAX_CRONJOB_NAME = 52

PLANNED_SCRIPT = """\
set -eu
# The controller names a Job after its CronJob and its planned time, in minutes since 1970.
minutes=${JOB_NAME##*-}
case $minutes in
    *[!0-9]*) minutes= ;;
esac
if [ -z "${NIGHT:-}" ] && [ "${#minutes}" -lt 8 ]; then
    echo "the name of job $JOB_NAME does not end with a planned time; one made by hand needs the variable NIGHT" >&2
    exit 2
fi
night=${NIGHT:-@$((${minutes:-0} * 60))}
"""

_HEAD = """\
# {name}: {cron} in {timezone}, written by `specbatch schedule render --to {target}`. Install: kubectl apply -f FILE
# Secrets of the job (AWS_..., SPECBATCH_NOTIFY_URL) belong into a Secret {name}-env; it may be missing.
# Kubernetes has one rule for overlap and for missed nights: a night may begin until {start_seconds} s after its time.
# A time that does not exist when clocks go forward has no night here; one that comes twice has two, of which the second
# finds the first one's work done.
"""


def render(schedule: Schedule, *, image: str, namespace: str | None) -> Rendered:
    """ConfigMap and CronJob in one file.

    Raises:
        SpecbatchError: JOB_CONFIG, a name that Kubernetes does not take.
    """
    name = check_label(schedule.name, _MAX_CRONJOB_NAME)
    command = (
        f'exec specbatch submit --config {JOB_FOLDER}/{name}.yaml --logical-date "$night" '
        f"--timezone {shlex.quote(schedule.timezone)}{row_errors(schedule)}\n"
    )
    container = {
        "name": "night",
        "image": image,
        "command": ["/bin/sh", "-c", PLANNED_SCRIPT + command],
        "env": [job_name_variable()],
        "envFrom": [secret_source(name)],
        **resources(schedule),
    }
    template = restricted_pod(
        container,
        name,
        JOB_FOLDER,
        restartPolicy="Never",
        automountServiceAccountToken=False,
        terminationGracePeriodSeconds=DRAIN_SECONDS,
    )
    job = {
        "backoffLimit": schedule.tries - 1,
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "night", "operator": "In", "values": list(FAILED_FOR_GOOD)},
                },
            ]
        },
        "template": template,
    }
    documents = [
        config_map(name, namespace, {f"{name}.yaml": job_text(schedule.job)}),
        cron_job(schedule, name, namespace, job),
    ]
    return as_manifest(schedule, "k8s-cronjob", documents)


def cron_job(schedule: Schedule, name: str, namespace: str | None, job: dict[str, Any]) -> dict[str, Any]:
    """A CronJob that makes such Jobs when the schedule says."""
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": metadata(name, namespace),
        "spec": {
            "schedule": schedule.cron,
            "timeZone": schedule.timezone,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": start_seconds(schedule),
            "successfulJobsHistoryLimit": 7,
            "failedJobsHistoryLimit": 7,
            "jobTemplate": {"spec": job},
        },
    }


def config_map(name: str, namespace: str | None, files: dict[str, str]) -> dict[str, Any]:
    """A ConfigMap of files."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(name, namespace), "data": files}


def metadata(name: str, namespace: str | None) -> dict[str, Any]:
    """Name, namespace and the label by which all of a schedule is found."""
    named = {"name": name} if namespace is None else {"name": name, "namespace": check_label(namespace, 63)}
    return {**named, "labels": {"app.kubernetes.io/managed-by": "specbatch"}}


def job_name_variable() -> dict[str, Any]:
    """The name of the pod's Job, as a variable."""
    field = "metadata.labels['batch.kubernetes.io/job-name']"
    return {"name": "JOB_NAME", "valueFrom": {"fieldRef": {"fieldPath": field}}}


def secret_source(name: str) -> dict[str, Any]:
    """Variables from a Secret that may be missing."""
    return {"secretRef": {"name": f"{name}-env", "optional": True}}


def resources(schedule: Schedule) -> dict[str, Any]:
    """One GPU for each worker where the job asks for CUDA; nothing otherwise: how much it needs is not known here."""
    values = values_of(schedule.job)
    if values.get("execution.device") != "cuda":
        return {}
    workers = values.get("execution.workers")
    return {"resources": {"limits": {"nvidia.com/gpu": workers if isinstance(workers, int) else 1}}}


def row_errors(schedule: Schedule) -> str:
    """The option that every rendered schedule sets, unless its job file has a rule of its own."""
    return "" if "execution.row_errors_ok" in values_of(schedule.job) else " --row-errors-ok"


def start_seconds(schedule: Schedule) -> int:
    """How late a night may begin: Kubernetes tells missed nights from waiting ones by nothing else."""
    waits = schedule.overlap == "wait" or schedule.missed == "run"
    return RUN_START_SECONDS if waits else SKIP_START_SECONDS


def check_label(name: str, most: int) -> str:
    """A name for an object of Kubernetes.

    Raises:
        SpecbatchError: JOB_CONFIG, it takes no such name.
    """
    if not _LABEL.fullmatch(name) or len(name) > most:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"{name!r} is no name for Kubernetes: at most {most} small letters, digits and '-' with a letter or digit "
            "at both ends; choose one with --name",
        )
    return name


def as_manifest(schedule: Schedule, target: str, documents: list[dict[str, Any]]) -> Rendered:
    """Documents as one file, with what to know of it at its head."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes texts of several lines as such."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    head = _HEAD.format(
        name=schedule.name,
        cron=schedule.cron,
        timezone=schedule.timezone,
        target=target,
        start_seconds=start_seconds(schedule),
    )
    body = "---\n".join(
        yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120) for document in documents
    )
    notes = [f"{place} must be there in the containers too" for place in local_places(schedule.job)]
    if (schedule.overlap == "wait") != (schedule.missed == "run"):
        notes.append(
            "Kubernetes has one rule for overlap and missed nights: a night that may begin late waits for the former "
            "one too, and of several only the last is run"
        )
    return Rendered((RenderedFile(f"{schedule.name}.yaml", head + body),), tuple(notes))
