"""``farm label``: words that devices and hosts can be asked for by."""

from __future__ import annotations

import argparse
import re

from farm.cli import _places
from farm.cli._context import Context

DESCRIPTION = (
    "Give a device, or a host with all of its devices, words that `farm submit --device-label` can ask for; without "
    "words, print those that it has. They stay over restarts of the farm."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("name", metavar="NAME", help="a device such as ultra/0, or a host")
    parser.add_argument("words", nargs="*", type=_word, metavar="LABEL", help="letters, digits and . _ -")
    parser.add_argument("--remove", action="store_true", help="take the words away again")
    parser.add_argument("--json", action="store_true", help="one JSON document: {name, labels}")


def run(options: argparse.Namespace, context: Context) -> int:
    """Change and print the labels of one place."""
    from farm.fleet import labels

    if options.words:
        with context.writing() as connection:
            place = _places.parse(connection, options.name)
            found = labels.change(connection, place, words=options.words, remove=options.remove)
    else:
        with context.reading() as connection:
            place = _places.parse(connection, options.name)
            found = labels.of(connection, place)
    if options.json:
        context.out.json({"name": place.name, "labels": found})
    else:
        context.out.text(" ".join(found))
    return 0


def _word(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a label, expected letters, digits and . _ -")
    return text
