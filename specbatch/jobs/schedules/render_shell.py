"""A schedule for cron and for systemd: a shell script that runs one night, and what starts it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from specbatch.jobs.schedules.calendar import calendar_lines
from specbatch.jobs.schedules.rendered import Rendered, RenderedFile
from specbatch.jobs.schedules.schedule import Schedule, job_text
from specbatch.schemas.errors import ErrorCode, SpecbatchError

MAX_SLEEP_SECONDS = 1800

_SCRIPT = """\
#!/bin/sh
# One night of {name}, written by `specbatch schedule render`.
# The first argument is its planned time; without one it is the last planned time that has come.
set -u
cd {folder} || exit 2
night=${{1:-{night}}}
if [ -z "$night" ]; then
    night=$({specbatch} schedule times --cron {cron} --timezone {timezone} --last) || exit 2
fi
# The run itself holds the lock too, so that it guards the night even if this script is killed.
exec 9>>{lock} || exit 8
{lock_lines}
child=
stop=
trap '{trap}' TERM INT
try=1
pause={pause}
while :; do
    {specbatch} submit --config {job_file} --logical-date "$night" --timezone {timezone}{row_errors} &
    child=$!
    code=0
    wait "$child" || code=$?
    # A signal ends the wait, not the night, which first finishes what it has begun.
    while kill -0 "$child" 2>/dev/null; do
        code=0
        wait "$child" || code=$?
    done
    child=
    case $code in
        5|6|8|129|13?|14?|15?) ;; # no capacity, held by another run, cluster lost, killed: the same command goes on
        *) exit "$code" ;;
    esac
    if [ -n "$stop" ] || [ "$try" -ge {tries} ]; then
        exit "$code"
    fi
    echo {name}" $night: exit code $code, again in $pause s" >&2
    sleep "$pause" &
    wait $!
    [ -z "$stop" ] || exit "$code"
    try=$((try + 1))
    pause=$((pause * 2 > {max_pause} ? {max_pause} : pause * 2))
done
"""
_SKIP = """\
if ! flock -n 9; then
    echo {name}" $night: skipped, the former night still runs" >&2
    exit {code}
fi"""
_WAIT = "flock 9"
_FORWARD = 'stop=1; [ -z "$child" ] || kill -TERM "$child"'

_CRON = """\
# {name}: {cron} in {timezone}. Install it with: crontab -l | cat - {file} | crontab -
# CRON_TZ is read by cronie. Debian's cron takes the line in the zone of the machine, whatever it says; there, set the
# machine to {timezone}, or use --to systemd. The night is that of the plan in either case.
CRON_TZ={timezone}
{cron} /bin/sh {script} >> {log} 2>&1
"""
_SERVICE = """\
# {name}.service: one night of {name}. Beside it belongs {name}.timer.
[Unit]
Description=specbatch {name}: one night
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart=/bin/sh {script}
# What must not stand in files that everybody reads: SPECBATCH_NOTIFY_URL=..., AWS_SECRET_ACCESS_KEY=...
EnvironmentFile=-/etc/specbatch/{name}.env
# A stop has the night finish its shards; what is done is kept, and the next start goes on.
KillMode=mixed
TimeoutStopSec=15min
"""
_TIMER = """\
# {name}.timer: {cron} in {timezone}. Install both, then: systemctl enable --now {name}.timer
[Unit]
Description=specbatch {name}: {cron} in {timezone}

[Timer]
{calendar}
Persistent={persistent}
Unit={name}.service

[Install]
WantedBy=timers.target
"""


def render_cron(schedule: Schedule, *, job_file: Path | None, folder: Path) -> Rendered:
    """A line for crontab and the script that it starts."""
    name = schedule.name
    script, log = folder / f"{name}.sh", folder / f"{name}.log"
    text = _CRON.format(
        name=name,
        cron=schedule.cron,
        timezone=schedule.timezone,
        file=f"{name}.cron",
        script=_cron_word(script),
        log=_cron_word(log),
    )
    notes = []
    if schedule.missed == "run":
        notes.append("cron runs no night that came while the machine was off; systemd and schedule run do")
    return Rendered((RenderedFile(f"{name}.cron", text), *_script_files(schedule, job_file, folder)), tuple(notes))


def render_systemd(schedule: Schedule, *, job_file: Path | None, folder: Path) -> Rendered:
    """A service, a timer, and the script that the service starts.

    Raises:
        SpecbatchError: JOB_CONFIG, systemd cannot do what the schedule asks for.
    """
    if schedule.overlap == "wait":
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            "systemd starts no unit that still runs, so that no night can wait for the former one; use --overlap skip, "
            "or have systemd keep `specbatch schedule run` alive",
        )
    name = schedule.name
    values = {"name": name, "cron": schedule.cron, "timezone": schedule.timezone}
    service = _SERVICE.format(**values, script=_systemd_word(folder / f"{name}.sh"))
    timer = _TIMER.format(
        **values,
        calendar="\n".join(f"OnCalendar={line} {schedule.timezone}" for line in calendar_lines(schedule.cron)),
        persistent="true" if schedule.missed == "run" else "false",
    )
    notes = []
    if schedule.missed == "run":
        notes.append("of several nights that were missed systemd runs the last one only; schedule run runs them all")
    files = (RenderedFile(f"{name}.service", service), RenderedFile(f"{name}.timer", timer))
    return Rendered((*files, *_script_files(schedule, job_file, folder)), tuple(notes))


def night_script(
    schedule: Schedule, job_file: Path, *, night: str = "", forwards: bool = True, skip_code: int = 0
) -> str:
    """The script that runs one night; POSIX shell with ``flock``.

    Args:
        night: what stands for the planned time where no argument gives it; shell text.
        forwards: pass signals on to the run; not where whoever sends them reaches it too.
        skip_code: exit code of a night that is skipped because the former one still runs.
    """
    name = shlex.quote(schedule.name)
    has_own_rule = "row_errors_ok" in (schedule.job.get("execution") or {})
    return _SCRIPT.format(
        name=name,
        night=night,
        folder=shlex.quote(str(Path().absolute())),
        specbatch=f"{shlex.quote(sys.executable)} -m specbatch",
        cron=shlex.quote(schedule.cron),
        timezone=shlex.quote(schedule.timezone),
        lock=shlex.quote(f".specbatch-{schedule.name}.lock"),
        lock_lines=_WAIT if schedule.overlap == "wait" else _SKIP.format(name=name, code=skip_code),
        trap=_FORWARD if forwards else "stop=1",
        job_file=shlex.quote(str(job_file)),
        row_errors="" if has_own_rule else " --row-errors-ok",
        tries=schedule.tries,
        pause=max(int(schedule.retry_seconds), 1),
        max_pause=MAX_SLEEP_SECONDS,
    )


def job_file_of(schedule: Schedule, job_file: Path | None, folder: Path) -> tuple[Path, tuple[RenderedFile, ...]]:
    """Where the job file of a schedule lies, and the file if it must be rendered.

    Its name without the ending is ``{job}``, so that a schedule of another name has a file of its own.
    """
    if job_file is not None and job_file.stem == schedule.name:
        return job_file, ()
    name = f"{schedule.name}.yaml"
    return folder / name, (RenderedFile(name, job_text(schedule.job)),)


def _script_files(schedule: Schedule, job_file: Path | None, folder: Path) -> tuple[RenderedFile, ...]:
    path, files = job_file_of(schedule, job_file, folder)
    return (RenderedFile(f"{schedule.name}.sh", night_script(schedule, path), is_script=True), *files)


def _cron_word(path: Path) -> str:
    """A path for a crontab, in which % ends the command."""
    return shlex.quote(str(path)).replace("%", "\\%")


def _systemd_word(path: Path) -> str:
    """A path for ``ExecStart``, which has its own quotes, variables and specifiers."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if any(char in text for char in " '\";") else text
