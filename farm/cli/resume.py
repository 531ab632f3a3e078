"""``farm resume``: let paused submissions go on."""

from __future__ import annotations

import argparse

from farm.cli import _ids
from farm.cli._context import Context

DESCRIPTION = "Let submissions go on that `farm pause` has paused. Several ids are resumed all or none."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("ids", nargs="+", metavar="ID", help="a submission such as s12")
    parser.add_argument("--json", action="store_true", help="one JSON document: [{submission, was_paused}]")


def run(options: argparse.Namespace, context: Context) -> int:
    """Resume everything that was named, in one transaction."""
    from farm.lifecycle import steering

    with context.writing() as connection:
        numbers = dict.fromkeys(_ids.submission(connection, text) for text in options.ids)
        done = {number: steering.resume(connection, number) for number in numbers}
    if options.json:
        context.out.json([{"submission": number, "was_paused": was} for number, was in done.items()])
    for number, was in done.items():
        context.out.talk(f"s{number} {'goes on' if was else 'was not paused'}.")
    return 0
