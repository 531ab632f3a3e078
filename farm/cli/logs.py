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
from farm.states import FINAL, JobState

if TYPE_CHECKING:
    from farm import queries

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
    job = _job(context, options.id)
    if options.follow and options.attempt is None:
        return _follow(context, job)
    number = options.attempt or job.attempt
    if not number or number > job.attempt:
        raise NotFound(_no_attempt(job, options.attempt))
    path = _path(context, job.id, number)
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as stream:
            for line in stream:
                context.out.raw(clean(line))
    except FileNotFoundError as error:
        raise NotFound(
            f"The log of attempt {number} of j{job.id} is not on this machine: {path} does not exist. Ask on the host "
            f"that ran it; `farm show j{job.id}` names it."
        ) from error
    return 0


def clean(text: str) -> str:
    """Text of a log without escape sequences and control characters; a progress bar's redraws become lines."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _job(context: Context, text: str) -> queries.Job:
    from farm import queries

    with context.reading() as connection:
        return queries.job(connection, _ids.job(connection, text))


def _path(context: Context, job_id: int, number: int) -> Path:
    return context.settings.log_dir / wire.attempt_log(job_id, number)


def _no_attempt(job: queries.Job, wanted: int | None) -> str:
    if wanted is not None and job.attempt:
        return f"j{job.id} has no attempt {wanted}, expected 1 to {job.attempt}."
    why = f"`farm why j{job.id}` says why."
    if job.state == JobState.CACHED:
        return f"j{job.id} ran nothing: the same work had been done before. {why}"
    return f"j{job.id} has not been tried yet, it is {job.state}. {why}"


def _follow(context: Context, job: queries.Job) -> int:
    """Print every attempt from the last one on as its log grows, until the job has ended."""
    if job.state in FINAL and not job.attempt:
        raise NotFound(_no_attempt(job, None))
    number = max(job.attempt, 1)
    offset = 0
    rest = b""
    told = job.attempt - 1
    while True:
        ended = job.state in FINAL  # looked at before the file, so that nothing written before the end is missed
        later = job.attempt > number
        if job.attempt > told:
            told = number
            context.out.talk(f"--- attempt {number}")
        data = _read(_path(context, job.id, number), offset)
        offset += len(data)
        whole, newline, rest = (rest + data).rpartition(b"\n")
        context.out.raw(clean((whole + newline).decode(errors="replace")))
        if not data and later:
            context.out.raw(clean(rest.decode(errors="replace")))
            number, offset, rest = number + 1, 0, b""
        elif not data and ended:
            context.out.raw(clean(rest.decode(errors="replace")))
            context.out.talk(f"--- j{job.id} {job.label}: {job.state}")
            return 0 if job.state in (JobState.SUCCEEDED, JobState.CACHED) else 1
        elif not data:
            time.sleep(_POLL_S)
        job = _job(context, f"j{job.id}")


def _read(path: Path, offset: int) -> bytes:
    """What a file has from ``offset`` on; nothing while it does not exist."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(1 << 20)
    except FileNotFoundError:
        return b""
