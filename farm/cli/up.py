"""``farm up``: start the embedded farm of a home."""

from __future__ import annotations

import argparse

from farm.cli._context import Context

DESCRIPTION = (
    "Start the farm of this home: database (upgraded when it is older than the program), broker, scheduler, a node for "
    "the host and one for each device. Without real cards the devices are simulated."
)
DEFAULT_DEVICES = "ultra:1,standard:1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--devices",
        default=DEFAULT_DEVICES,
        metavar="LIST",
        help=f"simulated devices as SKU:COUNT ({DEFAULT_DEVICES}); of no effect with QAIC_SDK_ROOT set",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document: {home, pid, devices}")


def run(options: argparse.Namespace, context: Context) -> int:
    """Start everything and return when it works."""
    from farm import local

    found = local.start(context.settings, devices=options.devices)
    context.out.talk(f"The farm of {context.settings.home} is up.")
    return 0
