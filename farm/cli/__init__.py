"""The ``farm`` command: a table of commands, and the only place that turns exceptions into words and exit codes.

A command is a module with ``DESCRIPTION``, ``add_arguments(parser)`` and ``run(options, context) -> int``. It is
imported only when it is named, and imports the database only when it runs.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from farm.errors import FarmError, Usage
from qeff_engine.errors import EngineError, FailureClass

if TYPE_CHECKING:
    import argparse
    from types import ModuleType

# name -> one line of help. Each is the module farm.cli.NAME, if not said otherwise. The order is that of `farm --help`.
COMMANDS = {
    "up": "start the farm of this home",
    "down": "stop it",
    "status": "what runs and what waits",
    "submit": "submit a sweep of models over cores, formats and shapes",
    "list": "list submissions, or jobs",
    "show": "show a submission or a job",
    "logs": "print what an attempt said",
    "why": "say why a job is where it is",
    "cancel": "cancel jobs or submissions",
    "retry": "try failed and cancelled jobs again",
    "pause": "place nothing more of a submission",
    "resume": "let a paused submission go on",
    "drain": "give a device or a host no new work",
    "undrain": "give it work again",
    "label": "give a device or a host words that jobs can ask for",
    "devices": "list devices, free cores and who holds the others",
    "report": "the results of a submission, a row per point",
    "artifacts": "list what the store holds",
    "pin": "keep artifacts whatever is collected",
    "unpin": "let them be collected again",
    "gc": "delete artifacts that nobody needs",
    "fsck": "compare the database with the bytes, and repair",
    "doctor": "check that a farm can work here",
    "completion": "print a completion script for a shell",
}

# A submodule called `list` would shadow the builtin in this package, one called `gc` the module.
_MODULES = {"list": "listing", "gc": "collect"}

EPILOG = """\
exit codes:
  0    done
  1    something failed: a job, a check, the disk
  2    the request is wrong: option, value, model path
  3    there is no such job, submission or artifact
  4    the state of things does not allow it: no farm here, job already ended
  5    another process holds the database, nothing was written: try again
  130  interrupted
"""

_INTERRUPTED = 130
_BROKEN_PIPE = 141  # as of a program that SIGPIPE killed
_REQUEST_IS_WRONG = (FailureClass.INVALID_INPUT, FailureClass.UNSUPPORTED)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; exceptions become one message on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Imports make objects by the ten thousand that never become garbage: looking for some took 5 % of `farm list`.
    gc.set_threshold(100_000)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
    except FarmError as error:
        return _fail(str(error), code=error.exit_code, error=error, arguments=arguments)
    except EngineError as error:
        code = Usage.exit_code if error.failure_class in _REQUEST_IS_WRONG else FarmError.exit_code
        return _fail(str(error), code=code, error=error, arguments=arguments)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has gone. What Python would flush at exit must not raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except OSError as error:
        return _fail(f"{_os_words(error)}.", code=FarmError.exit_code, error=error, arguments=arguments)
    except Exception as error:  # noqa: BLE001
        words = f"{type(error).__name__}: {error}\nThis is a mistake of the program. `farm -v ...` prints where it is."
        return _fail(words, code=FarmError.exit_code, error=error, arguments=arguments)
    return code


def load(name: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"farm.cli.{_MODULES.get(name, name)}")


def full_parser() -> argparse.ArgumentParser:
    """The parser of all commands at once: what completion and the tests of help look at."""
    from farm.cli import _parser

    parser = _parser.main_parser()
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        module = load(name)
        command = subparsers.add_parser(name, help=summary, description=module.DESCRIPTION, allow_abbrev=False)
        _parser.add_shared_arguments(command)
        module.add_arguments(command)
    return parser


def _dispatch(arguments: list[str]) -> int:
    from farm.cli import _parser

    if "--version" in arguments[:1]:
        return _version()
    options, name, rest = _parser.split(arguments)
    if name is None:
        sys.stdout.write(_parser.main_help(COMMANDS, EPILOG))
        return 0 if options.help else Usage.exit_code
    if name not in COMMANDS:
        from qeff_engine.errors import near_miss

        raise Usage(f"There is no command '{name}'. {near_miss(name, tuple(COMMANDS))}")
    module = load(name)
    parser = _parser.command_parser(name, description=module.DESCRIPTION)
    module.add_arguments(parser)
    parsed: Any = _parser.parse(parser, rest, defaults=options)
    from farm.cli import _context

    return int(module.run(parsed, _context.make(parsed)))


def _version() -> int:
    from importlib.metadata import version

    sys.stdout.write(f"farm {version('qeff-farm')}\n")
    return 0


def _fail(message: str, *, code: int, error: BaseException, arguments: Sequence[str]) -> int:
    if "-v" in arguments or "--verbose" in arguments:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    sys.stderr.write(f"farm: {message}\n")
    return code


def _os_words(error: OSError) -> str:
    if error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return str(error)
