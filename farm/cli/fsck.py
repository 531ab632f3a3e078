"""``farm fsck``: whether the database and the bytes agree."""

from __future__ import annotations

import argparse
import collections

from farm.cli import _words
from farm.cli._context import Context

DESCRIPTION = (
    "Compare the rows of the database with the bytes of the store and with each other. Exits with 1 when something "
    "is not as it must be. May be run while the farm works."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--repair", action="store_true", help="put right what can be")
    parser.add_argument("--deep", action="store_true", help="read all bytes of all artifacts")
    parser.add_argument("--json", action="store_true", help="a JSON list of {kind, subject, words, state}")


def run(options: argparse.Namespace, context: Context) -> int:
    """Print a line per finding, as they are found."""
    from farm import fsck
    from farm.store import collection

    found = []
    with context.storage_faults():
        places = collection.places(context.settings)
        for finding in fsck.check(context.database, places, deep=options.deep, repair=options.repair):
            found.append(finding)
            if not options.json:
                context.out.text(f"{finding.state:<8}  {finding.kind:<13}  {finding.words}")
    if options.json:
        names = ("kind", "subject", "words", "state")
        context.out.json([{name: getattr(finding, name) for name in names} for finding in found])
        return 1 if found else 0
    counts = collections.Counter(finding.state for finding in found)
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    context.out.talk(f"{_words.plural(len(found), 'finding')}{': ' if told else '.'}{told}")
    if counts[fsck.State.FOUND]:
        context.out.talk("`farm fsck --repair` puts right what was found.")
    return 1 if found else 0
