"""``schedule render``: what other schedulers need to run a schedule, as files.

Whatever starts a night passes its planned time, never the time at which it starts. Everything rendered sets
``--row-errors-ok``: single error rows are no reason to wake somebody.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from specbatch.jobs.schedules.schedule import Schedule
from specbatch.schemas.errors import ErrorCode, SpecbatchError


@dataclass(frozen=True, slots=True)
class RenderedFile:
    """A file to be installed."""

    name: str
    text: str
    is_script: bool = False


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a target needs.

    Attributes:
        notes: what the target does otherwise than the schedule says, a line each.
    """

    files: tuple[RenderedFile, ...]
    notes: tuple[str, ...] = ()


def render_schedule(
    schedule: Schedule,
    target: str,
    *,
    job_file: Path | None,
    image: str | None = None,
    namespace: str | None = None,
    folder: Path | None = None,
) -> Rendered:
    """The files of one target.

    Args:
        target: ``kuberay``, ``k8s-cronjob``, ``cron``, ``systemd`` or ``airflow``.
        job_file: that the schedule was read from; None for one out of a store.
        image: of the containers, on Kubernetes.
        folder: where the files will lie; the current one if None.

    Raises:
        SpecbatchError: JOB_CONFIG, the target cannot do what the schedule asks for.
    """
    from specbatch.jobs.schedules import render_airflow, render_kuberay, render_kubernetes, render_shell

    on_kubernetes = target in ("kuberay", "k8s-cronjob")
    for flag, value in (("--image", image), ("--namespace", namespace)):
        if value is not None and not on_kubernetes:
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"{flag} is for Kubernetes; leave it out with --to {target}")
    if on_kubernetes:
        if image is None:
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"--to {target} needs --image: a container that has specbatch")
        render = render_kuberay.render if target == "kuberay" else render_kubernetes.render
        return render(schedule, image=image, namespace=namespace)
    place = (folder if folder is not None else Path()).absolute()
    if target == "airflow":
        return render_airflow.render(schedule, job_file=job_file, folder=place)
    render_local = render_shell.render_cron if target == "cron" else render_shell.render_systemd
    return render_local(schedule, job_file=job_file, folder=place)


def as_text(rendered: Rendered) -> str:
    """The files one after the other; below lines with their names where there are several."""
    if len(rendered.files) == 1:
        return rendered.files[0].text
    return "\n".join(f"# ==> {file.name} <==\n{file.text}" for file in rendered.files)


def write_files(rendered: Rendered, folder: Path) -> list[Path]:
    """Write the files into a folder, which is made; their paths.

    Raises:
        SpecbatchError: JOB_OUTPUT_UNWRITABLE.
    """
    paths = []
    for file in rendered.files:
        path = folder / file.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(file.text, encoding="utf-8")
            if file.is_script:
                path.chmod(0o755)
        except OSError as error:
            raise SpecbatchError(
                ErrorCode.JOB_OUTPUT_UNWRITABLE,
                f"--output {path}: {error.strerror or error}; give a folder that can be written to",
            ) from None
        paths.append(path)
    return paths
