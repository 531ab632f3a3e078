"""``farm list``: submissions, or jobs."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from farm.cli import _arrivals, _ids, _parser, _words
from farm.cli._context import Context
from farm.states import JobState

if TYPE_CHECKING:
    from farm.views import queries

DESCRIPTION = (
    "List submissions, newest first; with --jobs, or the id of a submission, list jobs. A page ends with the option "
    "that shows the next one."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("submission", nargs="?", metavar="ID", help="list the jobs of this submission")
    parser.add_argument("--jobs", action="store_true", help="list jobs of all submissions")
    parser.add_argument("--state", action="append", choices=list(JobState), metavar="STATE", help="jobs in this state")
    parser.add_argument("--failed", action="store_true", help="jobs that failed, with class, line and advice")
    parser.add_argument("--stage", metavar="STAGE", help="jobs of this stage: resolve, quantize, export, compile, run")
    parser.add_argument("--owner", metavar="NAME", help="submissions of this owner")
    parser.add_argument("--limit", type=_parser.whole_number, default=20, metavar="N", help="rows of a page (20)")
    parser.add_argument("--before", metavar="ID", help="go on before this id, as the end of the last page says")
    parser.add_argument("--json", action="store_true", help="one JSON document: {rows, next}")


def run(options: argparse.Namespace, context: Context) -> int:
    """Print a page of rows."""
    if options.jobs or options.submission or options.state or options.stage or options.failed:
        return _jobs(options, context)
    return _submissions(options, context)


def _submissions(options: argparse.Namespace, context: Context) -> int:
    from farm.views import queries

    with context.reading() as connection:
        before = _ids.submission(connection, options.before) if options.before else None
        found = queries.submission_list(connection, limit=options.limit, before=before, owner=options.owner)
        expected = _arrivals.expected(context, connection, found)
    following = found[-1].id if len(found) == options.limit else None
    if options.json:
        documents = [{**dataclasses.asdict(row), "expected_at": expected.at.get(row.id)} for row in found]
        context.out.json({"rows": documents, "next": following})
        return 0
    headers = ("id", "name", "owner", "state", "jobs", "expected", "created")
    rows = [
        (
            *(f"s{row.id}", row.name, row.owner, state(row), counts(row)),
            *(expected.briefly(row.id), _words.moment(row.created_at)),
        )
        for row in found
    ]
    context.out.table(headers, rows)
    _more(context, following)
    return 0


def _jobs(options: argparse.Namespace, context: Context) -> int:
    from farm.views import queries

    with context.reading() as connection:
        submission_id = _ids.submission(connection, options.submission) if options.submission else None
        found = queries.job_list(
            connection,
            submission_id=submission_id,
            states=[*(options.state or ()), *([JobState.FAILED] if options.failed else ())],
            stage=options.stage,
            limit=options.limit,
            before=_ids.job(connection, options.before) if options.before else None,
        )
    following = found[-1].id if len(found) == options.limit else None
    if options.json:
        context.out.json({"rows": [dataclasses.asdict(row) for row in found], "next": following})
        return 0
    rows = [(f"j{row.id}", f"s{row.submission_id}", row.label, _job_state(row), row.reason) for row in found]
    if options.failed:
        context.out.table(("id", "of", "job", "class", "line", "what to do"), [_failed(row) for row in found])
    else:
        context.out.table(("id", "of", "job", "state", "reason"), rows)
    _more(context, following)
    return 0


def state(submission: queries.Submission) -> str:
    """Such as ``running``, or ``running, paused by ann``."""
    if submission.paused_by is None or submission.finished_at is not None:
        return submission.state
    return f"{submission.state}, paused by {submission.paused_by}"


def _job_state(job: queries.Job) -> str:
    return f"{job.state}, held" if job.held and job.state in (JobState.WAITING, JobState.READY) else str(job.state)


def _failed(job: queries.Job) -> tuple[str, ...]:
    told = (job.failure_class, job.failure_line or job.failure_message, job.failure_advice)
    return (f"j{job.id}", f"s{job.submission_id}", job.label, *((text or "").partition("\n")[0] for text in told))


def counts(submission: queries.Submission) -> str:
    """Such as ``3 of 8 done, 1 failed``."""
    total = sum(submission.counts.values())
    done = sum(submission.counts.get(state, 0) for state in (JobState.SUCCEEDED, JobState.CACHED))
    words = [f"{done} of {total} done"]
    for state in (JobState.FAILED, JobState.BLOCKED, JobState.CANCELLED):
        if submission.counts.get(state):
            words.append(f"{submission.counts[state]} {state}")
    return ", ".join(words)


def _more(context: Context, following: int | None) -> None:
    if following:
        context.out.talk(f"More: --before {following}")
