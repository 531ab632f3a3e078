"""``farm down``: stop the embedded farm of a home."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from farm.cli import _words
from farm.cli._context import Context
from farm.errors import FarmError, Usage

if TYPE_CHECKING:
    from farm.home.closing import Running
    from farm.home.shutdown import Shutdown

DESCRIPTION = (
    "Stop the farm of this home with all of its processes. Running work is handed back, which is not counted against "
    "it, and goes on with the next `farm up`; with --finish it is waited for, and nothing new begins meanwhile. Ctrl-C "
    "while that is waited for hands it back, and Ctrl-C after that kills everything at once, as --now does."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--finish", action="store_true", help="wait for the stages that run")
    how.add_argument("--now", action="store_true", help="kill every process at once")
    parser.add_argument("--timeout", metavar="TIME", help="wait no longer than this, such as 30m; only with --finish")
    parser.add_argument("--json", action="store_true", help="one JSON document: {home, was_up, finished, handed_back}")


def run(options: argparse.Namespace, context: Context) -> int:
    """Stop everything and return when it is gone."""
    from farm import durations
    from farm.home import local, shutdown

    if options.timeout and not options.finish:
        raise Usage("--timeout says how long --finish waits; give both.")
    limit_s = durations.parse(options.timeout) if options.timeout else None
    found = local.running(context.settings)
    if found is None:
        local.stop(context.settings)  # what a killed one has left
        context.out.talk(f"The farm of {context.settings.home} was not up.")
        _print(options, context, was_up=False, finished=True, handed_back=[])
        return 0
    try:
        database = context.database
    except FarmError:
        database = None
    way = shutdown.Shutdown(context.settings, found, database=database)
    finished = False
    handed_back: list[int] = []
    try:
        finished = _let_finish(way, context, wait=options.finish, limit_s=limit_s)
    except KeyboardInterrupt:  # from now on there is less patience
        finished = False
    try:
        if options.now:
            handed_back = _kill(way)
        else:
            if options.finish and not finished:
                context.out.talk("What still runs is handed back. Ctrl-C kills it.")
            handed_back = way.end()
    except KeyboardInterrupt:
        context.out.talk("Killing all processes.")
        handed_back = _kill(way)
    _print(options, context, was_up=True, finished=finished, handed_back=handed_back)
    goes_on = f" {_words.jobs(handed_back)} goes on with the next `farm up`." if handed_back else ""
    context.out.talk(f"The farm of {context.settings.home} is down.{goes_on}")
    return 1 if options.finish and handed_back else 0


def _let_finish(way: Shutdown, context: Context, *, wait: bool, limit_s: float | None) -> bool:
    """Let nothing new begin, and wait for what runs if that is wanted; whether nothing runs."""

    def say(left: Sequence[Running]) -> None:
        context.out.talk(f"Waiting for {_named(left)}. Ctrl-C hands it back.")

    running = way.begin()
    if not running or not wait:
        return not running
    say(running)
    return way.wait(limit_s=limit_s, progress=say)


def _kill(way: Shutdown) -> list[int]:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is nothing faster
    return way.kill()


def _named(running: Sequence[Running]) -> str:
    words = [f"j{one.job_id} {one.label}{_percent(one.fraction)}" for one in running[:3]]
    more = len(running) - len(words)
    return ", ".join(words) + (f" and {more} more" if more else "")


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f" ({fraction:.0%})"


def _print(
    options: argparse.Namespace, context: Context, *, was_up: bool, finished: bool, handed_back: Sequence[int]
) -> None:
    if options.json:
        home = str(context.settings.home)
        context.out.json({"home": home, "was_up": was_up, "finished": finished, "handed_back": list(handed_back)})
