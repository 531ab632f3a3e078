"""``farm undrain``: give devices or hosts work again."""

from __future__ import annotations

import argparse

from farm.cli import _places, _words
from farm.cli._context import Context

DESCRIPTION = (
    "Give devices or hosts work again that `farm drain` has drained. A device of a drained host gets none until its "
    "host does. Several names are undrained all or none."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="a device such as ultra/0, or a host")
    parser.add_argument(
        "--force",
        action="store_true",
        help="also free the cores of lost attempts though the host has not said that nothing runs there any more",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document: [{name, was_drained, released}]")


def run(options: argparse.Namespace, context: Context) -> int:
    """Undrain everything that was named, in one transaction."""
    from farm.lifecycle import reaping, steering

    by = context.settings.owner
    released: dict[str, int] = {}
    with context.writing() as connection:
        named = dict.fromkeys(_places.parse(connection, text) for text in options.names)
        done = {place.name: steering.undrain(connection, place) for place in named}
        if options.force:
            released = {
                place.name: reaping.release_draining(
                    connection, host_id=place.host_id, device_id=place.device_id, by=by
                )
                for place in named
            }
    if options.json:
        context.out.json(
            [{"name": name, "was_drained": was, "released": released.get(name, 0)} for name, was in done.items()]
        )
    for name, was in done.items():
        freed = f" {_words.plural(released[name], 'core')} of lost attempts freed." if released.get(name) else ""
        context.out.talk(f"{name} {'gets work again' if was else 'was not drained'}.{freed}")
    return 0
