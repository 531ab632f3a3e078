"""``farm up``: start the embedded farm of a home."""

from __future__ import annotations

import argparse
import time

from farm.cli import _words
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
        help=f"simulated devices as SKU:COUNT ({DEFAULT_DEVICES}); of no effect where a real SDK is",
    )
    parser.add_argument(
        "--foreground",
        action="store_true",
        help="stay, as the farm's first process: for systemd or a container; SIGTERM or Ctrl-C stops the farm",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document: {home, pid, processes}")


def run(options: argparse.Namespace, context: Context) -> int:
    """Start everything and return when it works."""
    from farm.home import local

    home = context.settings.home
    if options.foreground:
        context.out.talk(f"Running the farm of {home}. SIGTERM or Ctrl-C stops it, a second one at once.")
        local.foreground(context.settings, devices=options.devices)
    context.out.talk(f"Starting the farm of {home}. Ctrl-C stops it again.")
    start_s = time.monotonic()

    def progress(doing: str) -> None:
        context.out.talk(f"{time.monotonic() - start_s:8.1f} s  {doing}")

    found = local.start(context.settings, devices=options.devices, progress=progress)
    if options.json:
        processes = {name: process.pid for name, process in found.children.items()}
        context.out.json({"home": str(home), "pid": found.pid, "processes": processes})
    took = _words.duration(time.monotonic() - start_s)
    context.out.talk(f"The farm is up after {took}: {', '.join(found.children)}. `farm down` stops it.")
    return 0
