"""What is rendered for other schedulers: it is well-formed, and its scripts run, with a ``specbatch`` that is none."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from replays import at, make

from specbatch.jobs.cli import app as cli
from specbatch.jobs.schedules.render_kubernetes import PLANNED_SCRIPT
from specbatch.jobs.schedules.rendered import Rendered, render_schedule
from specbatch.schemas.errors import SpecbatchError

IMAGE = "registry.example/specbatch:1"
S3_SPEC = "input: {datasets: ['s3://b/{date}/']}\noutput: s3://b/out/{date}\n"


def files(rendered: Rendered) -> dict[str, str]:
    return {file.name: file.text for file in rendered.files}


def documents(rendered: Rendered) -> dict[str, Any]:
    (text,) = files(rendered).values()
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def check_shell(text: str) -> None:
    done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- cron and systemd ------------------------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script of cron, with an interpreter that writes its arguments down and ends as it is told."""
    monkeypatch.chdir(tmp_path)
    fake = tmp_path / "python of mine"
    fake.write_text(
        "#!/bin/sh\n"
        'case $3 in schedule) shift 2; echo "$@" >> asked; echo 2026-11-24T01:15:00+01:00; exit 0 ;; esac\n'
        'shift 2; echo "$@" >> calls\n'
        "if [ -e slow ]; then\n"
        "    trap 'echo drained >> calls; exit 143' TERM; touch started; while :; do sleep 0.05; done\n"
        "fi\n"
        'code=$(head -n 1 codes); sed -i 1d codes; exit "${code:-0}"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    (tmp_path / "codes").write_text("")
    path = tmp_path / "nightly.sh"
    rendered = render_schedule(make(tmp_path, retry_seconds=0.0), "cron", job_file=tmp_path / "nightly.yaml")
    path.write_text(files(rendered)["nightly.sh"].replace("pause=1\n", "pause=0\n"))
    monkeypatch.undo()
    return path


def run_script(script: Path, *arguments: str, codes: str = "") -> tuple[int, list[str]]:
    (script.parent / "codes").write_text(codes)
    done = subprocess.run(["sh", str(script), *arguments], capture_output=True, text=True, timeout=30, check=False)
    calls = script.parent / "calls"
    return done.returncode, calls.read_text().splitlines() if calls.exists() else []


def test_the_script_of_a_night_takes_its_planned_time(script: Path) -> None:
    code, calls = run_script(script)
    config = f"submit --config {script.parent}/nightly.yaml"
    rest = "--timezone Europe/Berlin --row-errors-ok"
    assert (code, calls) == (0, [f"{config} --logical-date 2026-11-24T01:15:00+01:00 {rest}"])
    asked = (script.parent / "asked").read_text()
    assert asked == "schedule times --cron 15 1 * * * --timezone Europe/Berlin --last\n"
    assert run_script(script, "2026-11-20")[1][1:] == [f"{config} --logical-date 2026-11-20 {rest}"]


@pytest.mark.parametrize(
    ("codes", "code", "num_runs"),
    [
        ("5\n143\n0\n", 0, 3),
        ("137\n0\n", 0, 2),
        ("2\n", 2, 1),
        ("3\n", 3, 1),
        ("4\n", 4, 1),
        ("6\n0\n", 0, 2),
        ("8\n" * 9, 8, 5),
    ],
)
def test_the_script_tries_again_where_that_helps(script: Path, codes: str, code: int, num_runs: int) -> None:
    found, calls = run_script(script, codes=codes)
    assert (found, len(calls)) == (code, num_runs)


def test_the_script_passes_a_signal_on_and_skips_a_night_that_overlaps(script: Path) -> None:
    (script.parent / "slow").touch()
    process = subprocess.Popen(["sh", str(script)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not (script.parent / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    done = subprocess.run(["sh", str(script)], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, "skipped" in done.stderr) == (0, True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert (script.parent / "calls").read_text().splitlines()[1:] == ["drained"]


@pytest.mark.parametrize("overlap", ["skip", "wait"])
def test_scripts_are_sound(tmp_path: Path, overlap: str) -> None:
    rendered = files(render_schedule(make(tmp_path, overlap=overlap), "cron", job_file=tmp_path / "nightly.yaml"))
    check_shell(rendered["nightly.sh"])
    if shutil.which("shellcheck"):
        done = subprocess.run(
            ["shellcheck", "-"], input=rendered["nightly.sh"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


def test_a_schedule_of_another_name_has_a_job_file_of_its_own(tmp_path: Path) -> None:
    rendered = render_schedule(
        make(tmp_path, name="other"), "cron", job_file=tmp_path / "nightly.yaml", folder=tmp_path
    )
    assert set(files(rendered)) == {"other.cron", "other.sh", "other.yaml"}
    assert f"--config {tmp_path}/other.yaml" in files(rendered)["other.sh"]
    assert json.loads(files(rendered)["other.yaml"])["output"] == f"{Path.cwd()}/out/{{date}}"


def test_the_line_of_cron(tmp_path: Path) -> None:
    place = tmp_path / "50% off"
    rendered = files(render_schedule(make(tmp_path), "cron", job_file=tmp_path / "nightly.yaml", folder=place))
    *comments, zone, line = rendered["nightly.cron"].splitlines()
    assert all(comment.startswith("#") for comment in comments)
    assert zone == "CRON_TZ=Europe/Berlin"
    quoted = str(place).replace("%", "\\%")
    assert line == f"15 1 * * * /bin/sh '{quoted}/nightly.sh' >> '{quoted}/nightly.log' 2>&1"


@pytest.mark.parametrize(("missed", "persistent"), [("run", "true"), ("skip", "false")])
def test_the_units_of_systemd(tmp_path: Path, missed: str, persistent: str) -> None:
    place = tmp_path / "a b%c$"
    rendered = files(render_schedule(make(tmp_path, missed=missed), "systemd", job_file=None, folder=place))
    assert set(rendered) == {"nightly.service", "nightly.timer", "nightly.sh", "nightly.yaml"}
    timer = rendered["nightly.timer"].splitlines()
    assert "OnCalendar=*-*-* 01:15:00 Europe/Berlin" in timer
    assert f"Persistent={persistent}" in timer
    service = rendered["nightly.service"]
    assert f'ExecStart=/bin/sh "{tmp_path}/a b%%c$$/nightly.sh"' in service
    assert "KillMode=mixed" in service
    if shutil.which("systemd-analyze"):
        place.mkdir()
        for name, text in rendered.items():
            (place / name).write_text(text)
        units = [str(place / name) for name in ("nightly.service", "nightly.timer")]
        done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_systemd_cannot_let_nights_wait(tmp_path: Path) -> None:
    with pytest.raises(SpecbatchError, match="--overlap skip"):
        render_schedule(make(tmp_path, overlap="wait"), "systemd", job_file=None)


# ---- Airflow ---------------------------------------------------------------------------------------------------------


class Recorder:
    """Stands for a class of Airflow: keeps what it was made with."""

    made: list[Recorder]

    def __init__(self, *arguments: Any, **values: Any) -> None:
        self.arguments, self.values = arguments, values
        type(self).made.append(self)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        return None


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(("overlap", "missed"), [("skip", "run"), ("wait", "skip")])
def test_the_dag_of_airflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, overlap: str, missed: str
) -> None:
    """Run with modules that stand for Airflow's, which is not installed here."""
    dag = type("DAG", (Recorder,), {"made": []})
    bash = type("BashOperator", (Recorder,), {"made": []})
    timetable = type("CronTriggerTimetable", (Recorder,), {"made": []})
    modules: dict[str, dict[str, Any]] = {
        "pendulum": {"datetime": lambda *day, tz: (*day, tz)},
        "airflow": {"DAG": dag},
        "airflow.timetables": {},
        "airflow.timetables.trigger": {"CronTriggerTimetable": timetable},
    }
    if version == 3:
        path = "airflow.providers.standard.operators.bash"
        modules |= {".".join(path.split(".")[:length]): {} for length in range(2, 5)}
        modules |= {path: {"BashOperator": bash}, "airflow.sdk": {"DAG": dag}}
    else:
        modules |= {"airflow.operators": {}, "airflow.operators.bash": {"BashOperator": bash}}
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__path__ = []
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    schedule = make(tmp_path, overlap=overlap, missed=missed)
    (text,) = files(render_schedule(schedule, "airflow", job_file=tmp_path / "nightly.yaml")).values()
    exec(compile(text, "nightly_dag.py", "exec"), {})
    values = dag.made[0].values
    assert (timetable.made[0].arguments, timetable.made[0].values) == (("15 1 * * *",), {"timezone": "Europe/Berlin"})
    assert values["start_date"] == (2026, 11, 23, "Europe/Berlin")
    assert (values["catchup"], values["max_active_runs"]) == ((missed == "run"), 1 if overlap == "wait" else 2)
    task = bash.made[0].values
    # As Airflow renders templates: what is not defined is an error.
    jinja = jinja2.Environment(undefined=jinja2.StrictUndefined)
    moment, later = at("2026-11-24T00:15+00:00"), at("2026-11-24T09:00+00:00")
    planned = jinja.from_string(task["env"]["NIGHT"])
    assert planned.render(data_interval_end=moment, dag_run=object()) == moment.isoformat()
    for by_hand in ({"data_interval_end": None}, {}):
        assert planned.render(**by_hand, dag_run=types.SimpleNamespace(run_after=later)) == later.isoformat()
    script = jinja.from_string(task["bash_command"]).render()
    assert script.startswith("#!/bin/sh\n")
    assert "{%" not in script
    check_shell(script)
    assert "night=${1:-$NIGHT}" in script
    assert "kill -TERM" not in script
    assert ("flock -n 9" in script) == (overlap == "skip")


# ---- Kubernetes ------------------------------------------------------------------------------------------------------


def test_the_cronjob_of_kubernetes(tmp_path: Path) -> None:
    rendered = render_schedule(
        make(tmp_path, spec=S3_SPEC, is_absolute=False), "k8s-cronjob", job_file=None, image=IMAGE
    )
    found = documents(rendered)
    assert set(found) == {"ConfigMap", "CronJob"}
    spec = found["CronJob"]["spec"]
    assert (spec["schedule"], spec["timeZone"], spec["concurrencyPolicy"]) == ("15 1 * * *", "Europe/Berlin", "Forbid")
    assert spec["startingDeadlineSeconds"] == 82800
    job = spec["jobTemplate"]["spec"]
    ignored, failed = job["podFailurePolicy"]["rules"]
    assert ignored["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert failed["onExitCodes"] == {"containerName": "night", "operator": "In", "values": [1, 2, 3, 4, 7]}
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert (container["name"], container["image"], pod["restartPolicy"]) == ("night", IMAGE, "Never")
    field = next(entry for entry in container["env"] if entry["name"] == "JOB_NAME")["valueFrom"]["fieldRef"][
        "fieldPath"
    ]
    assert field == "metadata.labels['batch.kubernetes.io/job-name']"
    check_shell(container["command"][2])
    assert "--row-errors-ok" in container["command"][2]
    assert json.loads(found["ConfigMap"]["data"]["nightly.yaml"])["output"] == "s3://b/out/{date}"
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert rendered.notes[-1].startswith("Kubernetes has one rule")


def test_rules_in_words_of_kubernetes(tmp_path: Path) -> None:
    schedule = make(tmp_path, spec=S3_SPEC, missed="skip")
    spec = documents(render_schedule(schedule, "k8s-cronjob", job_file=None, image=IMAGE))["CronJob"]["spec"]
    assert spec["startingDeadlineSeconds"] == 300


@pytest.mark.parametrize(
    ("job", "night", "expected"),
    [
        ("nightly-29924655", "", "@1795479300"),
        ("by-hand", "2026-11-24", "2026-11-24"),
        ("nightly-29924655", "2026-11-20", "2026-11-20"),
        ("by-hand", "", None),
        ("by-hand-2", "", None),
    ],
)
def test_the_planned_time_is_read_from_the_name_of_the_job(job: str, night: str, expected: str | None) -> None:
    environment = {"PATH": os.environ["PATH"], "JOB_NAME": job} | ({"NIGHT": night} if night else {})
    script = PLANNED_SCRIPT + 'echo "$night"\n'
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == ((0, expected) if expected else (2, ""))
    assert ("needs the variable NIGHT" in done.stderr) == (expected is None)


def test_gpus_are_asked_for_where_the_job_asks_for_cuda(tmp_path: Path) -> None:
    schedule = make(tmp_path, spec=S3_SPEC + "execution: {device: cuda, workers: 4, row_errors_ok: false}\n")
    found = documents(render_schedule(schedule, "k8s-cronjob", job_file=None, image=IMAGE))
    (container,) = found["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 4}}
    assert "--row-errors-ok" not in container["command"][2]
    found = documents(render_schedule(schedule, "kuberay", job_file=None, image=IMAGE))
    ray_job = json.loads(found["ConfigMap"]["data"]["rayjob.json"])
    (group,) = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert (group["replicas"], container["resources"]) == (4, {"limits": {"nvidia.com/gpu": 1}})


@pytest.mark.parametrize("target", ["kuberay", "k8s-cronjob"])
def test_what_kubernetes_cannot_take_is_refused(tmp_path: Path, target: str) -> None:
    with pytest.raises(SpecbatchError, match="--image"):
        render_schedule(make(tmp_path), target, job_file=None)
    for name in ("Nightly", "a.b", "a_b", "x" * 53):
        with pytest.raises(SpecbatchError, match="no name for Kubernetes"):
            render_schedule(make(tmp_path, name=name), target, job_file=None, image=IMAGE)
    rendered = render_schedule(make(tmp_path), target, job_file=None, image=IMAGE, namespace="batch")
    assert {document["metadata"]["namespace"] for document in documents(rendered).values()} == {"batch"}
    assert any("must be there in the containers" in note for note in rendered.notes)


def test_the_parts_of_kuberay_fit_together(tmp_path: Path) -> None:
    found = documents(render_schedule(make(tmp_path, spec=S3_SPEC), "kuberay", job_file=None, image=IMAGE))
    assert set(found) == {"ConfigMap", "ServiceAccount", "Role", "RoleBinding", "CronJob"}
    assert {document["metadata"]["name"] for document in found.values()} == {"nightly"}
    assert found["Role"]["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]
    pod = found["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == found["RoleBinding"]["subjects"][0]["name"]
    check_shell(pod["containers"][0]["command"][2])
    ray_job = json.loads(found["ConfigMap"]["data"]["rayjob.json"])
    assert "--address auto --logical-date @NIGHT@" in ray_job["spec"]["entrypoint"]
    assert "--row-errors-ok" in ray_job["spec"]["entrypoint"]


class Cluster(http.server.BaseHTTPRequestHandler):
    """Stands for the API of Kubernetes: takes RayJobs, and says that they run twice and then how they ended."""

    jobs: dict[str, dict[str, Any]]
    asked: list[str]
    end: str

    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = document["metadata"]["name"]
        is_new = name not in self.jobs
        if is_new:
            self.jobs[name] = {"document": document, "path": self.path, "token": self.headers["Authorization"]}
        self._answer(201 if is_new else 409, document)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.rpartition("/")[2]
        if len(self.asked) == 2:
            self._answer(503, {})
        elif len(self.asked) < 4:
            self._answer(200, {"status": {"jobDeploymentStatus": "Running"}} if len(self.asked) > 1 else {})
        elif name in self.jobs:
            state = "Complete" if self.end == "SUCCEEDED" else "Failed"
            self._answer(200, {"status": {"jobDeploymentStatus": state, "jobStatus": self.end}})
        else:
            self._answer(404, {})

    def _answer(self, status: int, document: Any) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        return None


@pytest.fixture
def cluster() -> Iterator[tuple[str, type[Cluster]]]:
    handler = type("Handler", (Cluster,), {"jobs": {}, "asked": [], "end": "SUCCEEDED"})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("end", "code"), [("SUCCEEDED", 0), ("FAILED", 1)])
def test_the_pod_of_kuberay_makes_one_ray_job_for_a_night_and_waits_for_it(
    tmp_path: Path, cluster: tuple[str, type[Cluster]], end: str, code: int
) -> None:
    server, handler = cluster
    handler.end = end
    found = documents(render_schedule(make(tmp_path, spec=S3_SPEC), "kuberay", job_file=None, image=IMAGE))
    for name, text in found["ConfigMap"]["data"].items():
        (tmp_path / name).write_text(text)
    (tmp_path / "namespace").write_text("batch\n")
    (tmp_path / "token").write_text("secret\n")
    environment = {**os.environ, "ACCOUNT": str(tmp_path), "API_SERVER": server, "PAUSE_SECONDS": "0.01"}
    command = [sys.executable, str(tmp_path / "create.py"), "@1795479300", "nightly-29924655"]
    for said in ("made RayJob nightly-29924655", "is there already"):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, said in done.stdout) == (code, True), done.stderr
    (made,) = handler.jobs.values()
    assert (made["path"], made["token"]) == ("/apis/ray.io/v1/namespaces/batch/rayjobs", "Bearer secret")
    assert "--logical-date @1795479300 " in made["document"]["spec"]["entrypoint"]


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_or_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    from_file = ["schedule", "render", "nightly.yaml", "--cron", "15 1 * * *", "--timezone", "Europe/Berlin"]
    assert cli.run([*from_file, "--to", "cron"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("# ==> nightly.cron <==\n# nightly: 15 1 * * * in Europe/Berlin.")
    assert "cron runs no night that came while" in err
    assert cli.run([*from_file, "--to", "systemd", "--output", "units"]) == 0
    assert sorted(path.name for path in Path("units").iterdir()) == ["nightly.service", "nightly.sh", "nightly.timer"]
    assert os.access("units/nightly.sh", os.X_OK)
    assert cli.run(["schedule", "add", "nightly.yaml", "--cron", "15 1 * * *", "--store", "st"]) == 0
    assert cli.run(["schedule", "render", "nightly", "--store", "st", "--to", "k8s-cronjob", "--image", IMAGE]) == 0
    assert "timeZone: UTC" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nightly.yaml", "--to", "cron"], "give --cron"),
        (["nightly", "--to", "cron", "--store", "st", "--overlap", "wait"], "--overlap is part of the schedule"),
        (["nightly", "--to", "cron", "--store", "st"], "no schedule 'nightly'"),
        (["nightly.yaml", "--cron", "15 1 * * *", "--to", "cron", "--image", "x"], "--image is for Kubernetes"),
        (["gone.yaml", "--cron", "15 1 * * *", "--to", "cron"], "gone.yaml"),
    ],
)
def test_what_the_command_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    assert cli.run(["schedule", "render", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
