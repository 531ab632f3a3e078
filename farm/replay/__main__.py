"""``python -m farm.replay run|record|generate``: placement tried on recorded and generated work."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from farm import db, settings
from farm.errors import FarmError
from farm.replay import tables
from farm.replay.figures import Figures, figures
from farm.replay.generating import GENERATORS
from farm.replay.ladder import LADDER
from farm.replay.recording import record
from farm.replay.simulating import simulate
from farm.replay.traces import Trace, from_lines, to_lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "record":
            _write(_recorded(options.home))
        elif options.command == "generate":
            _write(GENERATORS[options.name](options.seed))
        else:
            _run(options)
    except FarmError as error:
        sys.stderr.write(f"farm.replay: {error}\n")
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m farm.replay", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run traces under policies and print figures")
    run.add_argument(
        "traces", nargs="*", metavar="TRACE", help="a file of `record` or `generate`, or a generator's name"
    )
    run.add_argument("--policy", action="append", choices=list(LADDER), help="may be repeated; default: the ladder")
    run.add_argument("--seed", type=int, default=1, help="of generated traces")
    run.add_argument("--json", action="store_true", help="one line of JSON per trace and policy")
    recorded = commands.add_parser("record", help="write the trace of a farm's database")
    recorded.add_argument("--home", help="the farm's home; default: FARM_HOME")
    generated = commands.add_parser("generate", help="write a made-up trace")
    generated.add_argument("name", choices=list(GENERATORS))
    generated.add_argument("--seed", type=int, default=1)
    return parser


def _run(options: argparse.Namespace) -> None:
    rows: list[tuple[str, str, Figures]] = []
    for name in options.traces or list(GENERATORS):
        trace = _trace(name, seed=options.seed)
        for policy in options.policy or list(LADDER):
            found = figures(trace, simulate(trace, policy=LADDER[policy]))
            rows.append((trace.name, policy, found))
            if options.json:
                sys.stdout.write(json.dumps(tables.as_json(trace.name, policy, found)) + "\n")
                sys.stdout.flush()
    if not options.json:
        sys.stdout.write(tables.text(rows))


def _trace(name: str, *, seed: int) -> Trace:
    if name in GENERATORS:
        return GENERATORS[name](seed)
    path = Path(name)
    try:
        with path.open() as lines:
            return from_lines(lines)
    except OSError as error:
        known = ", ".join(GENERATORS)
        raise FarmError(
            f"'{name}' is neither a file that can be read ({error.strerror}) nor one of {known}."
        ) from error


def _recorded(home: str | None) -> Trace:
    found = settings.load(home=home)
    database = db.open_database(found.database_url)
    try:
        database.check()
        with database.read() as connection:
            return record(connection, name=found.home.name)
    finally:
        database.dispose()


def _write(trace: Trace) -> None:
    sys.stdout.writelines(f"{line}\n" for line in to_lines(trace))


if __name__ == "__main__":
    sys.exit(main())
