"""``python -m qeff_engine.simulated_sdk fault DIR set|list|clear``: faults of an SDK. Standard library only."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from qeff_engine.simulated_sdk import faults, install
from qeff_engine.simulated_sdk.devices import FAULTS_FILE
from qeff_engine.simulated_sdk.fault_kinds import KINDS
from qeff_engine.simulated_sdk.faults import BadFaults, Fault


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Let the simulated SDK in DIR fail. Programs and tools that run see a change at once."
    parser.epilog = _kinds()
    parser.add_argument("directory", metavar="DIR", help="of the SDK")
    actions = parser.add_subparsers(dest="action", required=True)
    setting = actions.add_parser("set", help="add a fault, or replace the one with its id")
    setting.add_argument("kind", metavar="KIND", choices=[*KINDS], help="what goes wrong: see `fault --help`")
    setting.add_argument(
        "--with", dest="parameters", metavar="NAME=VALUE", action="append", default=[], help="a parameter"
    )
    setting.add_argument("--id", help="its name [f1, f2, ...]")
    setting.add_argument("--device", help="number as installed, serial, PCI address or SERIAL/ADDRESS [any]")
    setting.add_argument("--tool", help="only in this tool [all]")
    setting.add_argument("--model", help="pattern of the model's file name without its ending [any]")
    setting.add_argument("--after", type=int, metavar="N", help="let N calls that fit pass first [0]")
    setting.add_argument("--times", type=int, metavar="N", help="show N times, then no more [no end]")
    setting.add_argument("--once", action="store_const", const=1, dest="times", help="the same as --times 1")
    setting.add_argument("--probability", type=float, metavar="P", help="of each call [1]")
    setting.add_argument("--seed", type=int, metavar="N", help="decides which calls [0]")
    listing = actions.add_parser("list", help="say which there are and how often they had their turn")
    listing.add_argument("--json", action="store_true", help="one JSON document")
    clearing = actions.add_parser("clear", help="take faults away")
    clearing.add_argument("ids", metavar="ID", nargs="*", help="only these [all]")


def run(options: argparse.Namespace) -> int:
    """Do what was asked and return the exit code: 0 done, 1 failed, 2 wrong usage."""
    root = Path(options.directory).absolute()
    if not (root / install.MARKER).is_file():
        print(f"{root} is no simulated SDK; `install` makes one.", file=sys.stderr)
        return 2
    try:
        with faults.locked(root) as counts:
            return _ACTIONS[options.action](options, root, counts)
    except BadFaults as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"The faults of {root} cannot be changed: {error}", file=sys.stderr)
        return 1


def _set(options: argparse.Namespace, root: Path, counts: Path) -> int:
    known = {fault.id: fault for fault in faults.of_file(root / FAULTS_FILE)}
    name = options.id or next(f"f{number}" for number in range(1, len(known) + 2) if f"f{number}" not in known)
    names = ("device", "tool", "model", "after", "times", "probability", "seed")
    fields = {key: getattr(options, key) for key in names if getattr(options, key) is not None}
    fields |= dict(map(_parameter, options.parameters))
    entry = {"id": name, "kind": options.kind, **fields}
    fault = faults.from_fields(entry, number=1, origin="The command line")
    faults.forget_counts(counts, fault)
    faults.save(root, [*({**known, name: fault}).values()])
    print(name)
    return 0


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise BadFaults(f"'{text}' is no parameter, expected NAME=VALUE.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _list(options: argparse.Namespace, root: Path, counts: Path) -> int:
    found = faults.of_file(root / FAULTS_FILE)
    counted = {fault.id: faults.count_of(counts, fault) for fault in found}
    if options.json:
        rows = [{**dataclasses.asdict(one), "shown": counted[one.id][1]} for one in found]
        print(json.dumps(rows, indent=1))
        return 0
    for fault in found:
        words = {key: value for key, value in fault.to_json().items() if key not in ("id", "kind")}
        said = " ".join(f"{key}={value}" for key, value in words.items() if value not in ("", False))
        print(f"{fault.id}  {fault.kind}  {said}{_turns(fault, shown=counted[fault.id][1])}".rstrip())
    return 0


def _turns(fault: Fault, *, shown: int) -> str:
    return "" if fault.times is None else f"  ({shown} of {fault.times} times)"


def _clear(options: argparse.Namespace, root: Path, counts: Path) -> int:
    path = root / FAULTS_FILE
    if not options.ids:  # also a file that cannot be read
        path.unlink(missing_ok=True)
        return 0
    known = faults.of_file(path)
    unknown = set(options.ids) - {fault.id for fault in known}
    if unknown:
        names = ", ".join(fault.id for fault in known) or "none"
        raise BadFaults(f"There is no fault '{min(unknown)}'; there are: {names}.")
    faults.save(root, [fault for fault in known if fault.id not in options.ids])
    return 0


_ACTIONS = {"set": _set, "list": _list, "clear": _clear}


def _kinds() -> str:
    lines = ["kinds and their parameters:"]
    for name, kind in KINDS.items():
        lines.append(f"  {name:<20} {kind.about}")
        for key, parameter in kind.parameters.items():
            default = json.dumps(parameter.default)
            lines.append(f"    {key}={default}: {parameter.about} ({parameter.expected})")
    return "\n".join(lines)
