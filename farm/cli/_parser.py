"""argparse as the ``farm`` command uses it: errors are :class:`Usage`, unknown options get their near miss."""

from __future__ import annotations

import argparse
import difflib
import itertools
from collections.abc import Mapping, Sequence
from typing import NoReturn

from farm import durations, sizes
from farm.errors import Usage

DESCRIPTION = "A compile farm for Qualcomm Cloud AI 100: sweeps of models, on real or simulated devices."


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of leaving the process."""

    def error(self, message: str) -> NoReturn:
        """Raise :class:`Usage` with argparse's message."""
        raise Usage(f"{message}. `{self.prog} --help` shows what there is.")


def main_parser() -> Parser:
    """The parser of what may stand before the command."""
    parser = Parser(prog="farm", description=DESCRIPTION, allow_abbrev=False)
    add_shared_arguments(parser)
    parser.add_argument("--version", action="store_true", help="print the version")
    return parser


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every command takes, before or after its name."""
    parser.add_argument(
        "--home",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="where the farm lives (default: $FARM_HOME, else ~/.local/share/qeff-farm)",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="print tracebacks of errors"
    )


def split(arguments: Sequence[str]) -> tuple[argparse.Namespace, str | None, list[str]]:
    """The options before the command, its name (None when there is none), and what follows it."""
    parser = Parser(prog="farm", allow_abbrev=False, add_help=False)
    add_shared_arguments(parser)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    at = 0
    while at < len(arguments) and arguments[at].startswith("-"):
        at += 2 if arguments[at] == "--home" else 1
    options = parse(parser, arguments[:at], defaults=argparse.Namespace())
    name = arguments[at] if at < len(arguments) and not options.help else None
    return options, name, list(arguments[at + 1 :])


def command_parser(name: str, *, description: str) -> Parser:
    """The parser of one command, without its own arguments."""
    parser = Parser(prog=f"farm {name}", description=description, allow_abbrev=False)
    add_shared_arguments(parser)
    return parser


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str], *, defaults: argparse.Namespace
) -> argparse.Namespace:
    """The parsed arguments; ``defaults`` are those that stood before the command.

    Raises:
        Usage: with the near miss of an unknown option.
    """
    known = [option for action in parser._actions for option in action.option_strings]
    arguments = _joined(parser, arguments)
    # Before argparse looks: it would name what a mistyped option leaves missing, not the option.
    for word in itertools.takewhile(lambda word: word != "--", arguments):
        if word.startswith("--") and word.partition("=")[0] not in known:
            raise Usage(_unknown_option(parser, word.partition("=")[0], known))
    options, unknown = parser.parse_known_args(arguments, argparse.Namespace(**vars(defaults)))
    if unknown and unknown[0].startswith("-"):
        raise Usage(_unknown_option(parser, unknown[0], known))
    if unknown:
        raise Usage(f"'{unknown[0]}' is one argument too many. `{parser.prog} --help` shows what there is.")
    return options


def _joined(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """The arguments with the value of an option whose metavar begins with a dash in one word with it: argparse takes
    what begins with a dash for an option."""
    dashed = {
        option
        for action in parser._actions
        if isinstance(action.metavar, str) and action.metavar.startswith("-")
        for option in action.option_strings
    }
    found: list[str] = []
    for word in arguments:
        if found and found[-1] in dashed:
            found[-1] = f"{found[-1]}={word}"
        else:
            found.append(word)
    return found


def _unknown_option(parser: argparse.ArgumentParser, word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"`{parser.prog} --help` shows those that there are."
    return f"{parser.prog} has no option {word}. {hint}"


def main_help(commands: Mapping[str, str], epilog: str) -> str:
    """What ``farm --help`` prints. No command is imported for it."""
    width = max(map(len, commands))
    lines = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in commands.items())
    options = main_parser().format_help().split("\n\n")[-1]
    return (
        f"usage: farm [--home DIR] [-v] COMMAND ...\n\n{DESCRIPTION}\n\ncommands:\n{lines}\n\n{options}\n"
        f"`farm COMMAND --help` shows the options of a command.\n\n{epilog}"
    )


def whole_number(text: str) -> int:
    """An argument type: a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return value


def size(text: str) -> int:
    """An argument type: bytes, written as 200GB."""
    try:
        return sizes.parse(text)
    except Usage as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def duration(text: str) -> float:
    """An argument type: seconds, written as 30d."""
    try:
        return durations.parse(text)
    except Usage as error:
        raise argparse.ArgumentTypeError(str(error)) from error
