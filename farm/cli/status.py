"""``farm status``: what runs and what waits."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from farm.cli import _arrivals, _words
from farm.cli._context import Context

if TYPE_CHECKING:
    from farm.views import inventory

_NUM_EXPECTED = 10  # submissions, the newest

DESCRIPTION = (
    "Say whether the farm works: scheduler, nodes, free cores, jobs that have not ended. Exits with 1 when no "
    "scheduler works."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--json", action="store_true", help="one JSON document: {home, scheduler, nodes, ...}")


def run(options: argparse.Namespace, context: Context) -> int:
    """Print what is known of the farm."""
    from farm import db
    from farm.views import arrivals, inventory

    with context.reading() as connection:
        now = db.now(connection)
        heard_since = context.heard_since(now)
        works = inventory.scheduler_works(connection, now=now)
        nodes = inventory.node_list(connection)
        devices = inventory.device_list(connection, heard_since=heard_since)
        hosts = inventory.host_list(connection, heard_since=heard_since)
        unfinished = inventory.unfinished(connection)
        paused = inventory.paused(connection)
        expected = _arrivals.expected(context, connection, arrivals.unfinished(connection, limit=_NUM_EXPECTED))
    if options.json:
        document: dict[str, Any] = {
            "home": str(context.settings.home),
            "scheduler": works,
            "nodes": [{**dataclasses.asdict(node), "alive": node.heartbeat_at >= heard_since} for node in nodes],
            "hosts": [dataclasses.asdict(host) for host in hosts],
            "devices": [{**dataclasses.asdict(device), "name": device.name} for device in devices],
            "unfinished": unfinished,
            "paused": [{"submission": number, "by": by, "at": at} for number, by, at in paused],
            "expected": [{"submission": number, "at": at} for number, at in expected.at.items()],
        }
        context.out.json(document)
        return 0 if works else 1
    jobs = ", ".join(f"{count} {state}" for state, count in sorted(unfinished.items())) or "none"
    for name, value in (
        ("home", str(context.settings.home)),
        ("scheduler", "works" if works else "does not work; `farm up` starts it"),
        ("jobs that have not ended", jobs),
        ("paused", ", ".join(f"s{number} by {by} since {_words.moment(at)}" for number, by, at in paused) or "none"),
        (
            "expected to be done",
            ", ".join(f"s{number} {expected.briefly(number)}" for number in expected.at) or "nothing",
        ),
        ("host slots", ", ".join(_slots(host) for host in hosts) or "no host is registered"),
        ("cores", ", ".join(_cores(device) for device in devices) or "no device is registered"),
    ):
        context.out.text(f"{name:<24}  {value}")
    context.out.text()
    rows = [(node.queue, str(node.pid), _heard(node, now=now, heard_since=heard_since)) for node in nodes]
    context.out.table(("node", "pid", "heard"), rows)
    return 0 if works else 1


def _slots(host: inventory.HostView) -> str:
    word = " (drained)" if host.drained else ""
    return f"{host.name} {host.num_slots - host.busy_slots} of {host.num_slots} free{word}"


def _cores(device: inventory.DeviceView) -> str:
    word = " simulated" if device.simulated else ""
    drained = " (drained)" if device.drained else ""
    return f"{device.name}{word} {device.free} of {device.num_cores} free{drained}"


def _heard(node: inventory.NodeView, *, now: float, heard_since: float) -> str:
    words = f"{_words.duration(max(0.0, now - node.heartbeat_at))} ago"
    if node.heartbeat_at < heard_since:
        return f"{words}, lost"
    return words if node.closing_at is None else f"{words}, shuts down and takes no new work"
