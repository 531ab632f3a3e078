"""``farm cancel``: end jobs or whole submissions."""

from __future__ import annotations

import argparse

from farm.cli import _ids
from farm.cli._context import Context
from farm.states import JobState

DESCRIPTION = (
    "Cancel jobs or submissions. What waits ends at once; what runs ends within two seconds, with all of its "
    "processes. Several ids are cancelled all or none."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("ids", nargs="+", metavar="ID", help="s12 (a submission) or j34 (a job)")
    parser.add_argument("--json", action="store_true", help="one JSON document: [{job, state} or {submission, jobs}]")


def run(options: argparse.Namespace, context: Context) -> int:
    """Cancel everything that was named, in one transaction."""
    from farm.lifecycle import jobs

    done: list[dict[str, object]] = []
    words: list[str] = []
    with context.writing() as connection:
        for text in dict.fromkeys(options.ids):
            kind, number = _ids.either(connection, text)
            if kind == _ids.JOB:
                state = jobs.cancel(connection, number)
                done.append({"job": number, "state": state})
                told = "is cancelled" if state == JobState.CANCELLED else "is told to end"
                words.append(f"j{number} {told}.")
            else:
                counts = jobs.cancel_submission(connection, number)
                done.append({"submission": number, "jobs": counts})
                words.append(f"s{number}: {', '.join(f'{count} {what}' for what, count in counts.items())}.")
    if options.json:
        context.out.json(done)
    for line in words:
        context.out.talk(line)
    return 0
