"""``farm drain``: give devices or hosts no new work."""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from farm.cli import _parser, _places, _words
from farm.cli._context import Context
from farm.errors import Usage

if TYPE_CHECKING:
    from farm.lifecycle.steering import Place

_POLL_S = 0.5

DESCRIPTION = (
    "Give devices or hosts no new work until `farm undrain`, also over restarts of the farm. What runs there goes on; "
    "with --now it is ended and its jobs are placed elsewhere, which is not counted against them. A host is drained "
    "with all of its devices. Several names are drained all or none. With --wait the command returns when nothing runs "
    "there any more; Ctrl-C stops the waiting only."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="a device such as ultra/0 (see `farm devices`), or a host"
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help="why, for others to read in `farm devices`")
    parser.add_argument("--now", action="store_true", help="end what runs there and give its jobs back")
    parser.add_argument("--wait", action="store_true", help="wait until nothing runs there any more")
    parser.add_argument(
        "--timeout",
        type=_parser.duration,
        metavar="TIME",
        help="wait no longer than that, such as 30m; exits with 1 when something still runs then",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON document: [{name, already, running, given_back, interrupted}], with --wait also left",
    )


def run(options: argparse.Namespace, context: Context) -> int:
    """Drain everything that was named, in one transaction; then wait if that is wanted."""
    from farm.lifecycle import steering

    if options.timeout is not None and not options.wait:
        raise Usage("--timeout says how long to wait: it needs --wait.")
    done: list[dict[str, object]] = []
    words: list[str] = []
    owner = context.settings.owner
    with context.writing() as connection:
        places = tuple(dict.fromkeys(_places.parse(connection, text) for text in options.names))
        for place in places:
            halt = steering.drain(connection, place, by=owner, reason=options.reason)
            ended: tuple[int, ...] = ()
            if options.now:
                ended = steering.hand_back(connection, place, reason=f"{place.name} was drained by {owner}")
            done.append({"name": place.name, **dataclasses.asdict(halt), "interrupted": ended})
            going_on = f"ended: {_words.jobs(ended)}" if ended else _words.going_on(halt.running)
            words.append(f"{place.name} gets no new work; {going_on}.")
    for line in words:
        context.out.talk(line)
    left: dict[str, tuple[int, ...]] = {}
    if options.wait:
        left = _wait(context, places, timeout_s=options.timeout)
        done = [{**one, "left": left[str(one["name"])]} for one in done]
    if options.json:
        context.out.json(done)
    return 1 if any(left.values()) else 0


def _wait(context: Context, places: Sequence[Place], *, timeout_s: float | None) -> dict[str, tuple[int, ...]]:
    """Wait until nothing runs at some places, and tell what still does whenever that changes; what is left then."""
    from farm.lifecycle import steering

    until = math.inf if timeout_s is None else time.monotonic() + timeout_s
    said: dict[str, tuple[int, ...]] = {place.name: () for place in places}
    while True:
        with context.reading() as connection:
            left = {place.name: steering.occupants(connection, place) for place in places}
        over = time.monotonic() >= until
        for name, jobs in left.items():
            if jobs != said[name] or (jobs and over):
                still = "still " if over else ""
                context.out.talk(f"{name}: {f'{_words.jobs(jobs)} {still}there' if jobs else 'nothing runs any more'}.")
        if over or not any(left.values()):
            return left
        said = left
        _pause()


def _pause() -> None:
    time.sleep(_POLL_S)
