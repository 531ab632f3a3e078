"""``farm drain``: give devices or hosts no new work."""

from __future__ import annotations

import argparse
import dataclasses

from farm.cli import _places, _words
from farm.cli._context import Context

DESCRIPTION = (
    "Give devices or hosts no new work until `farm undrain`, also over restarts of the farm. What runs there goes on; "
    "with --now it is ended and its jobs are placed elsewhere, which is not counted against them. A host is drained "
    "with all of its devices. Several names are drained all or none."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="a device such as ultra/0 (see `farm devices`), or a host"
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help="why, for others to read in `farm devices`")
    parser.add_argument("--now", action="store_true", help="end what runs there and give its jobs back")
    parser.add_argument(
        "--json", action="store_true", help="one JSON document: [{name, already, running, given_back, interrupted}]"
    )


def run(options: argparse.Namespace, context: Context) -> int:
    """Drain everything that was named, in one transaction."""
    from farm.lifecycle import steering

    done: list[dict[str, object]] = []
    words: list[str] = []
    owner = context.settings.owner
    with context.writing() as connection:
        for place in dict.fromkeys(_places.parse(connection, text) for text in options.names):
            halt = steering.drain(connection, place, by=owner, reason=options.reason)
            ended: tuple[int, ...] = ()
            if options.now:
                ended = steering.hand_back(connection, place, reason=f"{place.name} was drained by {owner}")
            done.append({"name": place.name, **dataclasses.asdict(halt), "interrupted": ended})
            going_on = f"ended: {_words.jobs(ended)}" if ended else _words.going_on(halt.running)
            words.append(f"{place.name} gets no new work; {going_on}.")
    if options.json:
        context.out.json(done)
    for line in words:
        context.out.talk(line)
    return 0
