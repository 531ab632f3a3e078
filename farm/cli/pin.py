"""``farm pin``: keep artifacts whatever the garbage collection would do."""

from __future__ import annotations

import argparse

from farm.cli import _artifacts, _words
from farm.cli._context import Context

DESCRIPTION = "Keep artifacts, the result of a job, or all results of a submission so far, until `farm unpin`."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    _artifacts.add_targets(parser)
    parser.add_argument("--reason", metavar="TEXT", default="pinned by a user", help="why, for `farm artifacts`")
    parser.add_argument("--json", action="store_true", help="one JSON document: {pinned: [DIGEST]}")


def run(options: argparse.Namespace, context: Context) -> int:
    """Pin all that were named, in one transaction."""
    from farm.store import catalogue

    with context.writing() as connection:
        digests = _artifacts.named(connection, options.targets)
        catalogue.pin(connection, digests, reason=options.reason)
    if options.json:
        context.out.json({"pinned": digests})
    else:
        context.out.talk(f"{_words.plural(len(digests), 'artifact')} pinned.")
    return 0
