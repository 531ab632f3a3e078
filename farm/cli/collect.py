"""``farm gc``: delete artifacts that nobody needs, and what crashes left."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from farm.cli import _parser, _words
from farm.cli._context import Context

if TYPE_CHECKING:
    from farm.store import collection

DESCRIPTION = (
    "Choose artifacts that were not used for long, or that a budget has no room for, and delete those that were "
    "chosen before; also what crashes left. Inputs of jobs that have not ended and pinned artifacts stay."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--older-than", type=_parser.duration, metavar="TIME", help="choose what was not used for so long, such as 30d"
    )
    parser.add_argument(
        "--budget",
        type=_parser.size,
        metavar="SIZE",
        help="choose the longest unused until the rest fits, such as 200GB (FARM_STORE_BUDGET)",
    )
    parser.add_argument(
        "--logs-older-than", type=_parser.duration, metavar="TIME", help="delete logs of attempts that are so old"
    )
    parser.add_argument("--now", action="store_true", help="delete what is chosen at once, not in a later round")
    parser.add_argument("--dry-run", action="store_true", help="tell what would be done and do nothing")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(options: argparse.Namespace, context: Context) -> int:
    """Do a round and tell what it did."""
    from farm.store import collection

    settings = context.settings
    budget_bytes = options.budget if options.budget is not None else settings.store_budget_bytes
    policy = collection.Policy(
        unused_for_s=options.older_than,
        budget_bytes=budget_bytes,
        logs_older_than_s=options.logs_older_than,
        grace_s=0.0 if options.now else collection.GRACE_S,
    )
    with context.storage_faults():
        report = collection.collect(
            context.database, collection.places(settings), policy=policy, dry_run=options.dry_run
        )
    if options.json:
        context.out.json({"dry_run": options.dry_run, **dataclasses.asdict(report)})
        return 0
    for line in _lines(report, dry_run=options.dry_run):
        context.out.text(line)
    if report.condemned and not options.now:
        minutes = round(collection.GRACE_S / 60)
        context.out.talk(f"What is chosen is deleted by a round that comes {minutes} minutes later, or with --now.")
    if options.older_than is None and budget_bytes is None:
        context.out.talk("No artifact was looked at for its age: say --older-than TIME or --budget SIZE.")
    return 0


def _lines(report: collection.Report, *, dry_run: bool) -> list[str]:
    would = "would be " if dry_run else ""
    lines = [f"{_words.plural(report.num_artifacts, 'artifact')}, {_words.size(report.num_bytes)} in the store"]
    for count, num_bytes, what, verb in (
        (len(report.condemned), report.condemned_bytes, "artifact", "chosen"),
        (len(report.deleted), report.deleted_bytes, "artifact", "deleted"),
        (len(report.orphans), report.orphan_bytes, "artifact that no job knows", "deleted"),
        (report.leftovers, report.leftover_bytes, "leftover", "deleted"),
        (report.logs, report.log_bytes, "log", "deleted"),
    ):
        if count:
            words = what if count == 1 else what.replace("artifact", "artifacts").replace("knows", "know")
            words = words if count == 1 or what.startswith("artifact") else f"{what}s"
            lines.append(f"{count} {words} {would}{verb}, {_words.size(num_bytes)}")
    return lines
