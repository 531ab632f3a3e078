"""``python -m workers``: start a node, list the devices that nodes could be started for, end what nodes have left."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from typing import TYPE_CHECKING

from farm import settings as farm_settings
from farm.errors import FarmError
from qeff_engine.errors import EngineError
from workers import bridge
from workers.forks import PRELOAD

if TYPE_CHECKING:
    from workers.intake import CarryOut


def main(
    arguments: list[str] | None = None,
    *,
    entry: str = bridge.ENTRY,
    preload: tuple[str, ...] = PRELOAD,
    carry_out: CarryOut | None = None,
) -> int:
    """Carry out a command line.

    Args:
        arguments: of the command line; None for those of the process.
        entry: what runs a stage.
        preload: what the fork server imports for it.
        carry_out: what becomes of a claim instead of a stage process.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("celery").setLevel(logging.WARNING)
    settings = farm_settings.load(home=options.home)
    try:
        if options.kind == "devices":
            return _list_devices(settings)
        if options.kind == "sweep":
            return _sweep(settings)
        from workers import node  # Celery

        stages = node.Stages(entry=entry, preload=preload)
        if carry_out is not None:
            stages = dataclasses.replace(stages, carry_out=carry_out)
        if options.kind == "host":
            return node.run_host(settings, num_slots=options.slots, stages=stages)
        return node.run_device(
            settings, qid=options.qid, identity=options.device, num_slots=options.slots, stages=stages
        )
    except FarmError as error:
        sys.stderr.write(f"workers: {error}\n")
        return error.exit_code
    except EngineError as error:
        sys.stderr.write(f"workers: {error}\n")
        return FarmError.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    parser.add_argument("--home", help="home of the farm (FARM_HOME)")
    kinds = parser.add_subparsers(dest="kind", required=True)
    host = kinds.add_parser("host", help="the stages of this host that need no device")
    device = kinds.add_parser("device", help="the run stage, pinned to one device")
    which = device.add_mutually_exclusive_group(required=True)
    which.add_argument("--qid", type=int, help="the device's number in `qaic-util -q`")
    which.add_argument(
        "--device", metavar="SERIAL/PCI", help="its board serial and PCI address, whatever its number is; waits for it"
    )
    for node in (host, device):
        node.add_argument("--slots", type=int, help="stages without a device that the host runs at once")
    kinds.add_parser("devices", help="print this host's ready devices as JSON")
    kinds.add_parser("sweep", help="end what stages have left running after their nodes were killed")
    return parser


def _sweep(settings: farm_settings.Settings) -> int:
    from workers import recovery

    sys.stdout.write(f"{recovery.sweep(settings)} attempts were left\n")
    return 0


def _list_devices(settings: farm_settings.Settings) -> int:
    from workers import discovery

    found = discovery.ready_devices(discovery.find_sdk(settings.sdk_root))
    sys.stdout.write(json.dumps([dataclasses.asdict(device) for device in found]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
