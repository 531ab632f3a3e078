"""The grammar of a sweep on the command line: comma lists, prompts, models."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from farm import needs
from farm.axes import flag_values, number
from farm.cli import _models
from farm.errors import Usage
from farm.sweep import Sweep
from farm.sweep import axes as axes_of_a_sweep
from qeff_engine import spec
from qeff_engine.compiler_flags import asking

_T = TypeVar("_T")
# Flags of the compiler with an option of their own; the others go through --compiler-option.
_OWN_OPTIONS = ("mos", "ols")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the axes of a sweep. Lists are comma lists; a repeated option adds to its list."""
    axes = parser.add_argument_group("axes of the sweep", "every combination is a point; lists as in --cores 8,14,16")
    _models.add_arguments(axes)
    for facts in axes_of_a_sweep().values():
        axes.add_argument(facts.option, action="extend", type=_list_of(facts.parse), metavar="LIST", help=facts.about)
    _add_flags(parser)
    places = parser.add_argument_group("where it is done", "what no place of the farm can be is refused at once")
    places.add_argument("--devices", type=number, default=1, metavar="N", help="devices of one host per program (1)")
    places.add_argument(
        "--parts",
        type=number,
        default=1,
        metavar="N",
        help="parts of a pipeline that they form (1: all share everything)",
    )
    places.add_argument(
        "--link",
        choices=spec.DEVICE_LINKS,
        default=spec.DEVICE_LINKS[0],
        help=f"how they exchange data: directly, or through the host's memory ({spec.DEVICE_LINKS[0]})",
    )
    places.add_argument("--exclusive", action="store_true", help="each run has its devices alone")
    places.add_argument("--sku", default="", metavar="SKU", help="kind of device of the runs, such as ultra")
    places.add_argument(
        "--device-label",
        action="append",
        default=[],
        metavar="LABEL",
        help="that the runs' devices, or their host, must have (`farm label`); may be repeated",
    )
    places.add_argument("--host", default="", metavar="HOST", help="that does all of it")
    places.add_argument(
        "--sdk", default="", metavar="VERSION", help="SDK that compiles and runs, or how its version begins"
    )
    runs = parser.add_argument_group("what each point runs")
    runs.add_argument(
        "--generation-len", type=number, metavar="N", help="tokens to generate at most (what the context has room for)"
    )
    runs.add_argument("--task", default="", metavar="TASK", help=f"{', '.join(spec.TASKS)} (by the model's config)")
    runs.add_argument("--prompt", action="append", metavar="TEXT", help="a text to continue; may be repeated")
    runs.add_argument(
        "--prompts-file",
        metavar="FILE",
        help="one prompt a line; of a .jsonl file, one JSON string a line",
    )


def make(options: argparse.Namespace) -> Sweep:
    """The sweep that the options ask for, every model looked at.

    Raises:
        Usage, InvalidInput, Unsupported: an axis, a prompt or a model is wrong.
    """
    asked = {name: getattr(options, name) for name in axes_of_a_sweep()}
    return Sweep(
        models=_models.read(options),
        generation_len=options.generation_len,
        prompts=_prompts(options.prompt, options.prompts_file),
        task=options.task,
        num_devices=options.devices,
        num_partitions=options.parts,
        device_link=options.link,
        needs=needs.Needs(
            sku=options.sku,
            labels=tuple(sorted(set(options.device_label))),
            host=options.host,
            sdk=options.sdk,
            exclusive=options.exclusive,
        ),
        flags=_flags(options),
        unlisted_flags=asking.unlisted(options.compiler_flag),
        skip_illegal=options.skip_illegal,
        **{name: tuple(values) for name, values in asked.items() if values is not None},
    )


def _add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the compiler, each of which is an axis."""
    flags = parser.add_argument_group(
        "flags of the compiler",
        "axes, too; `default` as a value leaves the flag out, and 1:2 is one value with a number for each cluster",
    )
    for name in _OWN_OPTIONS:
        about = f"{asking.about(name)} (the compiler chooses)"
        flags.add_argument(f"--{name}", action="extend", type=_list_of(str), metavar="LIST", help=about)
    flags.add_argument(
        "--compiler-option",
        action="append",
        default=[],
        metavar="NAME[=LIST]",
        help="another one of docs/compiler-flags.md, checked; may be repeated",
    )
    flags.add_argument(
        asking.ESCAPE,
        action="append",
        default=[],
        metavar="-NAME[=VALUE]",
        help="one that is not known, as it is, for all points; nothing checks it; may be repeated",
    )
    flags.add_argument(
        "--skip-illegal",
        action="store_true",
        help="leave out points whose flags do not go together, such as mos above the cores, instead of refusing all",
    )


def _flags(options: argparse.Namespace) -> dict[str, tuple[Any, ...]]:
    """The values of each flag of the compiler.

    Raises:
        Usage, InvalidInput: a flag or a value is wrong.
    """
    words: dict[str, list[str]] = {name: found for name in _OWN_OPTIONS if (found := getattr(options, name))}
    for text in options.compiler_option:
        name, equals, values = text.partition("=")
        found = words.setdefault(asking.name_of(name), [])
        found += [word.strip() for word in values.split(",")] if equals else ["true"]
    return {name: flag_values(name, found) for name, found in words.items()}


def _list_of(parse: Callable[[str], _T]) -> Callable[[str], list[_T]]:
    def parse_list(text: str) -> list[_T]:
        words = [word.strip() for word in text.split(",")]
        if not all(words):
            raise argparse.ArgumentTypeError(f"'{text}' has an empty element, expected values between commas")
        return [parse(word) for word in words]

    return parse_list


def _prompts(given: Sequence[str] | None, path: str | None) -> tuple[str, ...]:
    prompts = list(given or ())
    if path is not None:
        prompts += _read_prompts(Path(path))
    elif given is None:
        prompts = [spec.DEFAULT_PROMPT]
    return tuple(prompts)


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise Usage(f"--prompts-file {path} cannot be read: {why}. Expected a text file.") from error
    if path.suffix == ".jsonl":
        lines = [_json_string(line, where=f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    if not lines:
        raise Usage(f"--prompts-file {path} has no prompt, expected at least one line.")
    return lines


def _json_string(line: str, *, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise Usage(f"{where} is not JSON: {error}. Expected a string.") from error
    if not isinstance(value, str):
        raise Usage(f"{where} is {line[:40]}, expected a JSON string.")
    return value
