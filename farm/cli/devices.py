"""``farm devices``: devices, their cores and who holds them."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from farm.cli import _words
from farm.cli._context import Context

if TYPE_CHECKING:
    from farm.views import inventory

DESCRIPTION = "List devices, their free cores and the jobs that hold the others."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--json", action="store_true", help="one JSON document: a list of devices")


def run(options: argparse.Namespace, context: Context) -> int:
    """Print a row per device."""
    from farm import db
    from farm.views import inventory

    with context.reading() as connection:
        now = db.now(connection)
        found = inventory.device_list(connection, heard_since=context.heard_since(now))
    if options.json:
        context.out.json([{**dataclasses.asdict(device), "name": device.name} for device in found])
        return 0
    headers = ("device", "host", "kind", "cores", "free", "state", "held by")
    context.out.table(headers, [_row(device) for device in found], right=("cores", "free"))
    if not found:
        context.out.talk("No device is registered. `farm up` starts simulated ones; nodes register real ones.")
    return 0


def _row(device: inventory.DeviceView) -> tuple[str, ...]:
    state = device.health if device.alive else "no node"
    if device.health_reason:
        state = f"{state}: {device.health_reason}"
    if device.drained:
        state = _words.drained(device.drained)
    holders = [
        f"j{holder.job_id} ({holder.num_cores}{', draining' if holder.draining else ''})" for holder in device.holders
    ]
    kind = "simulated" if device.simulated else "real"
    cells = (device.name, device.host, kind, str(device.num_cores), str(device.free), state, ", ".join(holders))
    return cells
