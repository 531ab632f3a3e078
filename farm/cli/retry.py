"""``farm retry``: try failed, cancelled and blocked jobs again."""

from __future__ import annotations

import argparse

from farm.cli import _ids
from farm.cli._context import Context
from farm.errors import Refused
from farm.states import JobState

DESCRIPTION = (
    "Try failed or cancelled jobs again, and what is blocked behind them. Of a submission, all such jobs. A failure "
    "that was remembered is forgotten."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("ids", nargs="+", metavar="ID", help="s12 (a submission) or j34 (a job)")
    parser.add_argument("--no-cache", action="store_true", help="do the work of these jobs anew, whatever is known")
    parser.add_argument("--json", action="store_true", help="one JSON document: {jobs}")


def run(options: argparse.Namespace, context: Context) -> int:
    """Retry everything that was named, in one transaction."""
    from farm.lifecycle import jobs
    from farm.views import queries

    states = (JobState.FAILED, JobState.CANCELLED)
    retried: list[int] = []
    with context.writing() as connection:
        for text in dict.fromkeys(options.ids):
            kind, number = _ids.either(connection, text)
            if kind == _ids.JOB:
                found = [number]
            else:
                listed = queries.job_list(connection, submission_id=number, states=states, limit=None)
                found = [job.id for job in reversed(listed)]
                if not found:
                    raise Refused(f"s{number} has no failed or cancelled job; nothing to try again.")
            for job_id in found:
                # A retry takes the failed inputs along, so a job of the list may be waiting already.
                if kind == _ids.JOB or queries.job(connection, job_id).state in states:
                    jobs.retry(connection, job_id, skip_cache=options.no_cache)
            retried += found
    if options.json:
        context.out.json({"jobs": retried})
    context.out.talk(f"Tried again: {', '.join(f'j{job_id}' for job_id in retried)}.")
    return 0
