"""A schedule for KubeRay: a CronJob that makes a RayJob for each night, and waits for its end.

KubeRay's own RayCronJob cannot hand a planned time to what it starts, so a plain CronJob does it: its pod fills the
planned time into the RayJob. That is named by the planned time, so that a second pod of the night finds it and waits.
"""

from __future__ import annotations

import json
import shlex
from importlib.metadata import version
from typing import Any

from specbatch.jobs.schedules.render_kubernetes import (
    JOB_FOLDER,
    PLANNED_SCRIPT,
    as_manifest,
    check_label,
    config_map,
    cron_job,
    job_name_variable,
    metadata,
    resources,
    row_errors,
    secret_source,
)
from specbatch.jobs.schedules.render_pod import restricted_pod
from specbatch.jobs.schedules.rendered import Rendered
from specbatch.jobs.schedules.schedule import Schedule, job_text, values_of

_MAX_NAME = 38  # a RayJob's name has 47 characters, of which the planned time takes 9
NIGHT_MARK = "@NIGHT@"

_CREATE = '''\
"""Make the RayJob of one night and wait for its end: python create.py NIGHT NAME. Uses the pod's own account."""

import json
import os
import pathlib
import ssl
import sys
import time
import urllib.error
import urllib.request

account = pathlib.Path(os.environ.get("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
server = os.environ.get("API_SERVER", "https://kubernetes.default.svc")
namespace = (account / "namespace").read_text().strip()
rayjobs = f"{server}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
context = ssl.create_default_context(cafile=str(account / "ca.crt")) if server.startswith("https") else None
pause_seconds = float(os.environ.get("PAUSE_SECONDS", "30"))


def ask(method, url, document=None):
    # The token is read anew for each request: the cluster changes it every hour.
    token = (account / "token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    with urllib.request.urlopen(request, context=context, timeout=30) as answer:
        return json.load(answer)


def main(night, name):
    text = pathlib.Path(__file__).with_name("rayjob.json").read_text()
    rayjob = json.loads(text.replace("@NIGHT@", night))
    rayjob["metadata"]["name"] = name
    try:
        ask("POST", rayjobs, rayjob)
        print(f"made RayJob {name} for the night {night}", flush=True)
    except urllib.error.HTTPError as error:
        if error.code != 409:
            print(f"RayJob {name}: {error.code} {error.read(2000)!r}", file=sys.stderr)
            return 1
        print(f"RayJob {name} is there already; waiting for its end", flush=True)
    while True:
        time.sleep(pause_seconds)
        try:
            status = ask("GET", f"{rayjobs}/{name}").get("status", {})
        except urllib.error.HTTPError as error:
            if error.code == 404:
                print(f"RayJob {name} was removed", file=sys.stderr)
                return 1
            continue
        except OSError:
            continue
        state = status.get("jobDeploymentStatus")
        if state in ("Complete", "Failed", "ValidationFailed"):
            print(f"RayJob {name}: {state}, {status.get('jobStatus')} {status.get('message', '')}".strip(), flush=True)
            return 0 if status.get("jobStatus") == "SUCCEEDED" else 1


sys.exit(main(*sys.argv[1:]))
'''


def render(schedule: Schedule, *, image: str, namespace: str | None) -> Rendered:
    """ConfigMap, account with its rights, and CronJob in one file.

    Raises:
        SpecbatchError: JOB_CONFIG, a name that Kubernetes does not take.
    """
    name = check_label(schedule.name, _MAX_NAME)
    files = {
        f"{name}.yaml": job_text(schedule.job),
        "rayjob.json": json.dumps(ray_job(schedule, image), indent=2) + "\n",
        "create.py": _CREATE,
    }
    # The RayJob has the name of the Job, which ends with the planned time.
    command = f'exec python3 {JOB_FOLDER}/create.py "$night" "$JOB_NAME"\n'
    container = {
        "name": "night",
        "image": image,
        "command": ["/bin/sh", "-c", PLANNED_SCRIPT + command],
        "env": [job_name_variable()],
    }
    # It makes the RayJob, so it alone has the token of its account.
    template = restricted_pod(container, name, JOB_FOLDER, restartPolicy="Never", serviceAccountName=name)
    subject = {"kind": "ServiceAccount", "name": name}
    rights = "rbac.authorization.k8s.io"
    documents = [
        config_map(name, namespace, files),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(name, namespace)},
        {
            "apiVersion": f"{rights}/v1",
            "kind": "Role",
            "metadata": metadata(name, namespace),
            "rules": [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}],
        },
        {
            "apiVersion": f"{rights}/v1",
            "kind": "RoleBinding",
            "metadata": metadata(name, namespace),
            "roleRef": {"apiGroup": rights, "kind": "Role", "name": name},
            "subjects": [subject if namespace is None else {**subject, "namespace": namespace}],
        },
        cron_job(schedule, name, namespace, {"backoffLimit": 2, "template": template}),
    ]
    return as_manifest(schedule, "kuberay", documents)


def ray_job(schedule: Schedule, image: str) -> dict[str, Any]:
    """The RayJob of a night, with a mark where its planned time goes and without a name."""
    name = schedule.name
    workers = values_of(schedule.job).get("execution.workers")
    num_workers = workers if isinstance(workers, int) else 1
    entrypoint = (
        f"specbatch submit --config {JOB_FOLDER}/{name}.yaml --address auto --logical-date {NIGHT_MARK} "
        f"--timezone {shlex.quote(schedule.timezone)}{row_errors(schedule)}"
    )
    head = _group_pod(name, image, {})
    worker = _group_pod(name, image, _one_gpu(schedule))
    # It only tells the head what to run; the operator's own would not pass where pods are restricted.
    submitter = restricted_pod(
        {"name": "ray-job-submitter", "image": image},
        name,
        JOB_FOLDER,
        restartPolicy="Never",
        automountServiceAccountToken=False,
    )
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"labels": {"app.kubernetes.io/managed-by": "specbatch"}},
        "spec": {
            "entrypoint": entrypoint,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 86400,
            "backoffLimit": 2,
            "submitterPodTemplate": submitter,
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                # The operator makes a token for this cluster, and gives it to its pods and to what submits to it.
                "authOptions": {"mode": "token"},
                # The head decodes nothing: it must live as long as the night.
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": head},
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": num_workers,
                        "minReplicas": num_workers,
                        "maxReplicas": num_workers,
                        "rayStartParams": {},
                        "template": worker,
                    }
                ],
            },
        },
    }


def _group_pod(name: str, image: str, limits: dict[str, Any]) -> dict[str, Any]:
    container = {
        "name": "ray",
        "image": image,
        "envFrom": [secret_source(name)],
        **limits,
    }
    return restricted_pod(container, name, JOB_FOLDER, automountServiceAccountToken=False)


def _one_gpu(schedule: Schedule) -> dict[str, Any]:
    return {"resources": {"limits": {"nvidia.com/gpu": 1}}} if resources(schedule) else {}
