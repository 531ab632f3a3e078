"""Command lines as the tools of the real SDK read them: by the rules of ``getopt_long``. Standard library only.

Short options may be grouped (``-qd 0``), values may stand behind a long option's ``=``, long options may be shortened
as long as they stay unique, and the texts of refusals are those of glibc.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence


class BadUsage(ValueError):
    """A command line that the tool cannot read; ``args[0]`` is what getopt prints."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One option.

    Attributes:
        short: its letter; empty when it has none.
        long: its name without dashes; empty when it has none.
        valued: it takes a value.
    """

    short: str = ""
    long: str = ""
    valued: bool = False

    @property
    def name(self) -> str:
        """By what :func:`parse` names it."""
        return self.long or self.short


def parse(
    arguments: Sequence[str], *, tool: str, options: Sequence[Option], one_dash: bool = False
) -> list[tuple[str, str]]:
    """Name and value of every option, in order; words that belong to none are left out, as the tools do.

    Args:
        arguments: without the tool.
        tool: its name, which stands before every refusal.
        options: what it knows.
        one_dash: long options may also have one dash, as with ``getopt_long_only``.

    Raises:
        BadUsage: an option is unknown, ambiguous, lacks its value or has one that it does not take.
    """
    return list(_Reader(arguments, tool=tool, options=options, one_dash=one_dash).read())


class _Reader:
    def __init__(self, arguments: Sequence[str], *, tool: str, options: Sequence[Option], one_dash: bool) -> None:
        self._rest = iter(arguments)
        self._tool = tool
        self._one_dash = one_dash
        self._long = {option.long: option for option in options if option.long}
        self._short = {option.short: option for option in options if option.short}

    def read(self) -> Iterator[tuple[str, str]]:
        for argument in self._rest:
            if argument == "--":
                return
            if argument.startswith("--"):
                yield self._read_long(argument, dashes="--")
            elif self._one_dash and len(argument) > 2 and argument[0] == "-" and self._is_long(argument[1:]):
                yield self._read_long(argument, dashes="-")
            elif argument.startswith("-") and argument != "-":
                yield from self._read_short(argument[1:])

    def _is_long(self, text: str) -> bool:
        name = text.partition("=")[0]
        return bool(self._candidates(name)) or text[0] not in self._short

    def _candidates(self, name: str) -> list[Option]:
        if name in self._long:
            return [self._long[name]]
        return [option for long, option in self._long.items() if long.startswith(name)]

    def _read_long(self, argument: str, *, dashes: str) -> tuple[str, str]:
        name, equals, value = argument.removeprefix(dashes).partition("=")
        found = self._candidates(name)
        if len(found) != 1:
            problem = f"option '{dashes}{name}' is ambiguous" if found else f"unrecognized option '{argument}'"
            raise BadUsage(f"{self._tool}: {problem}")
        option = found[0]
        if equals and not option.valued:
            raise BadUsage(f"{self._tool}: option '{dashes}{option.long}' doesn't allow an argument")
        if option.valued and not equals:
            value = self._next(f"option '{dashes}{option.long}' requires an argument")
        return option.name, value

    def _read_short(self, letters: str) -> Iterator[tuple[str, str]]:
        for position, letter in enumerate(letters):
            option = self._short.get(letter)
            if option is None:
                raise BadUsage(f"{self._tool}: invalid option -- '{letter}'")
            if not option.valued:
                yield option.name, ""
                continue
            attached = letters[position + 1 :]
            yield option.name, attached or self._next(f"option requires an argument -- '{letter}'")
            return

    def _next(self, problem: str) -> str:
        value = next(self._rest, None)
        if value is None:
            raise BadUsage(f"{self._tool}: {problem}")
        return value
