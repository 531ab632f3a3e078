"""Compare all architectures, and write ``docs/architectures.md``.

::

    python -m tests.parity run --shards 2
    python -m tests.parity run --only llama,qwen3
    python -m tests.parity run --failed
    python -m tests.parity table
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.parity import configs, results, table
from tests.parity.results import PASS, Result

_RESULTS = Path("build") / "parity.jsonl"
_LIMIT_S = 600.0


def main() -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="compare architectures that have no result of the current code yet")
    run.add_argument("--shards", type=int, default=1, help="processes at a time")
    run.add_argument("--limit", type=float, default=_LIMIT_S, help="seconds for one architecture")
    run.add_argument("--only", default="", help="names, comma-separated")
    run.add_argument("--failed", action="store_true", help="those whose last result is not pass, whatever the code was")
    written = commands.add_parser("table", help="write docs/architectures.md")
    for command in (run, written):
        command.add_argument("--results", type=Path, default=_RESULTS, help=f"result file, default {_RESULTS}")
    arguments = parser.parse_args()
    if arguments.command == "table":
        return _table(arguments.results)
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    names = [name for name in arguments.only.split(",") if name] or configs.listed()
    unknown = sorted(set(names) - set(configs.TABLE))
    if unknown:
        sys.stderr.write(f"No architecture is called {', '.join(unknown)}." + "\n")
        return 2
    known = results.load(arguments.results)
    keys = results.keys(names)
    if arguments.failed:
        names = [name for name in names if name not in known or known[name].status != PASS]
    else:
        names = [name for name in names if name not in known or known[name].key != keys[name]]
    done = 0

    def report(result: Result) -> None:
        nonlocal done
        done += 1
        results.append(arguments.results, result)
        figures = (
            f"{result.max_difference:.1e}, {result.export_cpu_s:.1f} s" if result.status == PASS else result.reason
        )
        sys.stdout.write(f"{done}/{len(names)} {result.name}: {result.status}  {figures}\n")
        sys.stdout.flush()

    from tests.parity import running  # models and runtimes are imported for those who compare only

    running.run(names, keys=keys, shards=arguments.shards, limit_s=arguments.limit, report=report)
    return 0


def _table(path: Path) -> int:
    known = results.load(path)
    current = results.keys(known)
    outdated = sorted(name for name, result in known.items() if result.key != current[name])
    counts = table.write(known)
    sys.stdout.write(", ".join(f"{number} {name}" for name, number in counts.most_common()) + "\n")
    if outdated:
        sys.stderr.write(f"{len(outdated)} results are of other code: {', '.join(outdated)}" + "\n")
    return 0 if set(counts) <= table.FAULTLESS else 1


if __name__ == "__main__":
    sys.exit(main())
