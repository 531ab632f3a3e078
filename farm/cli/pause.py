"""``farm pause``: place nothing more of submissions."""

from __future__ import annotations

import argparse

from farm.cli import _ids, _words
from farm.cli._context import Context

DESCRIPTION = (
    "Place nothing more of submissions until `farm resume`. Running jobs go on, and so do jobs whose results somebody "
    "else's submission waits for. Several ids are paused all or none."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("ids", nargs="+", metavar="ID", help="a submission such as s12")
    parser.add_argument(
        "--json", action="store_true", help="one JSON document: [{submission, already, running, given_back}]"
    )


def run(options: argparse.Namespace, context: Context) -> int:
    """Pause everything that was named, in one transaction."""
    from farm.lifecycle import steering

    done: list[dict[str, object]] = []
    words: list[str] = []
    with context.writing() as connection:
        for number in dict.fromkeys(_ids.submission(connection, text) for text in options.ids):
            halt = steering.pause(connection, number, by=context.settings.owner)
            done.append(
                {
                    "submission": number,
                    "already": halt.already,
                    "running": halt.running,
                    "given_back": halt.given_back,
                }
            )
            told = "was paused already" if halt.already else "is paused"
            words.append(f"s{number} {told}; {_words.going_on(halt.running)}. `farm resume s{number}` lets it go on.")
    if options.json:
        context.out.json(done)
    for line in words:
        context.out.talk(line)
    return 0
