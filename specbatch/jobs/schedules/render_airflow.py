"""A schedule for Airflow: one file with a DAG of one task."""

from __future__ import annotations

from pathlib import Path

from specbatch.jobs.schedules.render_shell import job_file_of, night_script
from specbatch.jobs.schedules.rendered import Rendered, RenderedFile
from specbatch.jobs.schedules.schedule import Schedule

_SKIP_CODE = 99  # BashOperator's own: the task is skipped, not failed

_DAG = '''\
"""{name}: one DAG run for each night, written by `specbatch schedule render --to airflow`.

The planned time goes to the job, whenever it is started: data_interval_end of a CronTriggerTimetable is that time. A
run that is started by hand may have none, and is for the time at which it is started.
"""

import pendulum

try:  # Airflow 3
    from airflow.providers.standard.operators.bash import BashOperator
    from airflow.sdk import DAG
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.operators.bash import BashOperator
from airflow.timetables.trigger import CronTriggerTimetable

# Its text is not for Jinja, which is told so below.
NIGHT = {script!r}

with DAG(
    dag_id={name!r},
    schedule=CronTriggerTimetable({cron!r}, timezone={timezone!r}),
    start_date=pendulum.datetime({year}, {month}, {day}, tz={timezone!r}),
    catchup={catchup},
    max_active_runs={max_active_runs},
    tags=["specbatch"],
) as dag:
    BashOperator(
        task_id="night",
        bash_command="{{% raw %}}" + NIGHT + "{{% endraw %}}",
        env={{"NIGHT": "{{{{ (data_interval_end | default(dag_run.run_after, true)).isoformat() }}}}"}},
        append_env=True,
        retries=1,  # for a worker that is lost; the job itself tries again where that helps
        skip_on_exit_code={skip_code},
    )
'''


def render(schedule: Schedule, *, job_file: Path | None, folder: Path) -> Rendered:
    """A DAG file, and the job file where there is none yet."""
    path, files = job_file_of(schedule, job_file, folder)
    waits = schedule.overlap == "wait"
    start = schedule.since_time.astimezone(schedule.zone)
    # A task that is ended has its whole group of processes ended, the job among them.
    script = night_script(schedule, path, night="$NIGHT", forwards=False, skip_code=_SKIP_CODE)
    text = _DAG.format(
        name=schedule.name,
        script=script,
        cron=schedule.cron,
        timezone=schedule.timezone,
        year=start.year,
        month=start.month,
        day=start.day,
        catchup=schedule.missed == "run",
        max_active_runs=1 if waits else 2,
        skip_code=_SKIP_CODE,
    )
    name = "".join(char if char.isalnum() else "_" for char in schedule.name)
    notes = []
    if not waits:
        notes.append(
            "nights that overlap are told apart by a lock file, so they must be started on one machine; with several "
            "Airflow workers use --overlap wait"
        )
    return Rendered((RenderedFile(f"{name}_dag.py", text), *files), tuple(notes))
