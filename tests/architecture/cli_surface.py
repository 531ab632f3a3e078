"""The option surface of the ``farm`` command as text, a line per option.

A change of it is a change for users, so it stands in a golden file. Write the file anew with
``python -m tests.architecture.cli_surface > tests/golden/cli_surface.txt``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from farm import cli

GOLDEN = Path(__file__).parent.parent / "golden" / "cli_surface.txt"


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command by name."""
    (subparsers,) = (action for action in cli.full_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(subparsers.choices)


def surface() -> Iterator[str]:
    """The lines, in the order of the help."""
    for name, parser in commands().items():
        for action in parser._actions:
            words = [name, "/".join(action.option_strings) or str(action.metavar or action.dest)]
            if action.option_strings and action.nargs != 0:
                words.append(str(action.metavar or action.dest.upper()))
            if action.choices is not None:
                words.append("of " + ",".join(map(str, action.choices)))
            if action.required and action.option_strings:
                words.append("required")
            if type(action).__name__ in ("_AppendAction", "_ExtendAction"):
                words.append("repeatable")
            yield " ".join(words)


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in surface())
