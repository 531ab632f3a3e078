"""``farm report``: the results of a submission, a row per point."""

from __future__ import annotations

import argparse

from farm.cli import _ids, _report, _wait
from farm.cli._context import Context

DESCRIPTION = (
    "Print the results of a submission, a row per point: device, time to the first token (TTFT), decode and total "
    "tokens per second, compile time, program size, and whether the tokens are the original model's. Exits with 1 "
    "when a job failed."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("id", metavar="SUBMISSION", help="such as s12")
    parser.add_argument("--wait", action="store_true", help="wait until all of its jobs have ended")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON document: {submission, state, rows, failures}")
    form.add_argument("--csv", action="store_true", help="comma-separated, with a header")


def run(options: argparse.Namespace, context: Context) -> int:
    """Print the report."""
    from farm.views import queries

    with context.reading() as connection:
        submission_id = _ids.submission(connection, options.id)
        submission = queries.submission(connection, submission_id)
    if options.wait and submission.finished_at is None:
        try:
            state = _wait.wait(context, submission_id)
        except KeyboardInterrupt:
            context.out.warn(_wait.detached(submission_id))
            raise
    else:
        state = submission.state
    report = _report.read(context, submission_id)
    if options.json:
        context.out.json({"submission": submission_id, "state": state, **report.to_json()})
    elif options.csv:
        context.out.raw(report.to_csv())
    else:
        _report.show(context, report)
    return 1 if report.failures else 0
