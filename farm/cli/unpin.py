"""``farm unpin``: let artifacts be collected again."""

from __future__ import annotations

import argparse

from farm.cli import _artifacts, _words
from farm.cli._context import Context

DESCRIPTION = "Let the garbage collection have artifacts again that `farm pin` kept."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    _artifacts.add_targets(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document: {unpinned: NUMBER}")


def run(options: argparse.Namespace, context: Context) -> int:
    """Unpin all that were named, in one transaction."""
    from farm.store import catalogue

    with context.writing() as connection:
        count = catalogue.unpin(connection, _artifacts.named(connection, options.targets))
    if options.json:
        context.out.json({"unpinned": count})
    else:
        context.out.talk(f"{_words.plural(count, 'artifact')} unpinned.")
    return 0
