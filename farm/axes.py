"""What an axis of a sweep is. An axis is a field of :class:`farm.sweep.Sweep` made by :func:`axis`, and nothing else:
option, checks, product, request and report are made of it. Every flag of the compiler is an axis without being named.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from farm.errors import Usage
from qeff_engine.compiler_flags import asking

DEFAULT = "default"  # as a value of a flag: the flag is not given
_KEY = "axis"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis.

    Attributes:
        name: in requests, points and JSON.
        title: in tables for people; in labels of jobs it stands before a value that is not the default.
        parse: a word of the command line.
        about: help, with the default in parentheses.
        default: the values without the option.
        spec_fields: fields of a compile spec that get the value.
        run_field: field of a run spec that gets it; such an axis is none of a point until it is asked for.
        words: the legal ones, where they can be counted.
        positive: only whole numbers of at least 1 are legal.
        show: a value as a word of requests and points.
    """

    name: str
    title: str
    parse: Callable[[str], Any]
    about: str
    default: tuple[Any, ...]
    spec_fields: tuple[str, ...] = ()
    run_field: str = ""
    words: tuple[str, ...] = ()
    positive: bool = False
    show: Callable[[Any], Any] = lambda value: value

    @property
    def option(self) -> str:
        """The option of the command line."""
        return f"--{self.name.replace('_', '-')}"

    def check(self, values: tuple[Any, ...]) -> None:
        """Refuse values that are not legal, and one twice.

        Raises:
            Usage: with what is expected.
        """
        require_distinct(self.option, map(self.show, values))
        for value in values:
            if self.positive and value is not None and value < 1:
                raise Usage(f"{self.option} is {value}, expected a whole number of at least 1.")
            if self.words and value not in self.words:
                close = "".join(f"Did you mean '{word}'?" for word in difflib.get_close_matches(value, self.words, n=1))
                raise Usage(f"{self.option} is '{value}', expected {' or '.join(self.words)}. {close}".rstrip())


def axis(*default: Any, title: str, parse: Callable[[str], Any], about: str, **facts: Any) -> Any:
    """A field of a dataclass that is an axis; the other facts are those of :class:`Axis`."""
    metadata = {_KEY: {"title": title, "parse": parse, "about": about, "default": default, **facts}}
    return dataclasses.field(default=default, metadata=metadata)


def axes_of(kind: type[Any]) -> dict[str, Axis]:
    """The axes of a dataclass by name, in the order of its fields, in which points are made, too."""
    fields = dataclasses.fields(kind)
    return {field.name: Axis(name=field.name, **field.metadata[_KEY]) for field in fields if _KEY in field.metadata}


def number(text: str) -> int:
    """A whole number of the command line."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None


def flag_values(name: str, words: Iterable[object]) -> tuple[Any, ...]:
    """The canonical values of a flag of the compiler; the word ``default`` stays.

    Raises:
        InvalidInput: there is no such flag, or a value is not legal.
    """
    values: list[Any] = []
    for word in words:
        if word == DEFAULT:
            values.append(word)
        else:
            values.append(asking.value_of(name, asking.with_files({name: word})[name]))
    return tuple(values)


def check_flags(flags: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse flags without a value and values that stand twice.

    Raises:
        Usage: with what is expected.
    """
    for name, values in flags.items():
        require_distinct(f"--compiler-option {name}", (shown(name, value) for value in values))


def asked(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a point that the compiler is given."""
    return {name: value for name, value in flags.items() if value != DEFAULT}


def shown(name: str, value: Any) -> Any:
    """A flag's value as it stands in points: of a file the beginning of its text's SHA-256."""
    if isinstance(value, str) and value.endswith("\n"):
        return f"text {hashlib.sha256(value.encode()).hexdigest()[:8]}"
    return value


def require_distinct(option: str, values: Iterable[Any]) -> None:
    """Refuse an empty list and a value that stands twice.

    Raises:
        Usage: with the value.
    """
    words = [str(value) for value in values]
    if not words:
        raise Usage(f"{option} is empty, expected at least one value.")
    for at, word in enumerate(words):
        if word in words[:at]:
            raise Usage(f"{option} has {word} twice, expected each value once. Take one of them out.")
