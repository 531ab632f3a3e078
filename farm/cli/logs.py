"""``farm logs``: what an attempt said, also while it says it."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from farm import wire
from farm.cli import _ids, _parser
from farm.cli._context import Context
from farm.errors import NotFound
from farm.states import DONE, FINAL, JobState

if TYPE_CHECKING:
    from farm.views import queries

DESCRIPTION = (
    "Print the log of a job's last attempt, or of another with --attempt. -f goes on while the job runs, through "
    "further attempts, until it ends."
)

_POLL_S = 0.2
# Escape sequences (ECMA-48: CSI, OSC, two-character) and control characters but tab and newline. A log is written by
# tools and models; none of it may steer the reader's terminal.
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b.?|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("id", metavar="JOB", help="such as j34")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
    parser.add_argument("--attempt", type=_parser.whole_number, metavar="N", help="this attempt (default: the last)")


def run(options: argparse.Namespace, context: Context) -> int:
    """Print a log."""
    job, tried = _job(context, options.id)
    if options.follow and options.attempt is None:
        return _follow(context, job, tried)
    if not tried or options.attempt not in (None, *tried):
        raise NotFound(_no_attempt(job, tried, wanted=options.attempt))
    number = options.attempt or tried[-1]
    path = _path(context, job.id, number)
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as stream:
            for line in stream:
                context.out.raw(clean(line))
    except FileNotFoundError as error:
        raise NotFound(
            f"The log of attempt {number} of j{job.id} is not on this machine: {path} does not exist. Look on the host "
            f"that ran it; `farm show j{job.id}` names it."
        ) from error
    if number == tried[-1]:
        _advise(context, job)
    return 0


def _advise(context: Context, job: queries.Job) -> None:
    """Say what can be done about a job that failed."""
    if job.state == JobState.FAILED and job.failure_advice:
        context.out.talk(f"--- what to do: {job.failure_advice}")


def clean(text: str) -> str:
    """Text of a log without escape sequences and control characters; a progress bar's redraws become lines."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _job(context: Context, text: str) -> tuple[queries.Job, list[int]]:
    """The job and the numbers of its attempts."""
    from farm.views import queries

    with context.reading() as connection:
        job = queries.job(connection, _ids.job(connection, text))
        return job, [attempt.number for attempt in queries.attempt_list(connection, job.id)]


def _path(context: Context, job_id: int, number: int) -> Path:
    return context.settings.log_dir / wire.attempt_log(job_id, number)


def _no_attempt(job: queries.Job, tried: list[int], *, wanted: int | None) -> str:
    if wanted is not None and tried:
        return f"j{job.id} has no attempt {wanted}, expected one of {', '.join(map(str, tried))}."
    why = f"`farm why j{job.id}` says why."
    if job.state == JobState.CACHED:
        return f"j{job.id} ran nothing: the same work had been done before. {why}"
    return f"j{job.id} has not been tried yet, it is {job.state}. {why}"


def _follow(context: Context, job: queries.Job, tried: list[int]) -> int:
    """Print every attempt from the last one on as its log grows, until the job has ended."""
    if job.state in FINAL and not tried:
        raise NotFound(_no_attempt(job, tried, wanted=None))
    printed = tried[-1] - 1 if tried else 0
    while True:
        following = [number for number in tried if number > printed]
        if following:
            printed = following[0]
            context.out.talk(f"--- attempt {printed}")
            job, tried = _print_attempt(context, job, printed)
        elif job.state in FINAL:
            context.out.talk(f"--- j{job.id} {job.label}: {job.state}")
            _advise(context, job)
            return 0 if job.state in DONE else 1
        else:
            _pause()
            job, tried = _job(context, f"j{job.id}")


def _print_attempt(context: Context, job: queries.Job, number: int) -> tuple[queries.Job, list[int]]:
    """Print the log of an attempt as it grows, until the attempt is over; the job as it is then."""
    path, offset, rest = _path(context, job.id, number), 0, b""
    while True:
        # Looked at before the file, so that nothing written before the end is missed.
        job, tried = _job(context, f"j{job.id}")
        over = job.attempt > number or job.state != JobState.RUNNING
        data = _read(path, offset)
        offset += len(data)
        whole, newline, rest = (rest + data).rpartition(b"\n")
        context.out.raw(clean((whole + newline).decode(errors="replace")))
        if not data and over:
            context.out.raw(clean(rest.decode(errors="replace")))
            return job, tried
        if not data:
            _pause()


def _pause() -> None:
    time.sleep(_POLL_S)


def _read(path: Path, offset: int) -> bytes:
    """What a file has from ``offset`` on; nothing while it does not exist."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(1 << 20)
    except FileNotFoundError:
        return b""
