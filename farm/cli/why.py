"""``farm why``: why a job is in its state, and what it waits for."""

from __future__ import annotations

import argparse
import dataclasses

from farm.cli import _ids
from farm.cli._context import Context

DESCRIPTION = "Say why a job is in its state and what it waits for."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("id", metavar="JOB", help="such as j34")
    parser.add_argument("--json", action="store_true", help="one JSON document: {job, state, reason, details, ...}")


def run(options: argparse.Namespace, context: Context) -> int:
    """Print the reason."""
    from farm import db
    from farm.views import explain

    with context.reading() as connection:
        job_id = _ids.job(connection, options.id)
        now = db.now(connection)
        found = explain.explain(connection, job_id, now=now, heard_since=context.heard_since(now))
    if options.json:
        context.out.json(
            {
                "job": found.job.id,
                "label": found.job.label,
                "state": found.job.state,
                "reason": found.reason,
                "details": found.details,
                "waits_for": found.waits_for,
                "miss": None if found.miss is None else dataclasses.asdict(found.miss),
                "outlook": found.outlook.to_json() if found.outlook is not None else None,
            }
        )
        return 0
    context.out.text(f"j{found.job.id} {found.job.label} is {found.job.state}. {found.reason}")
    for line in found.details:
        context.out.text(f"  {line}")
    return 0
