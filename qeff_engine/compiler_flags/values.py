"""Kinds of values that flags of the compiler take: what is legal, its one canonical form, how it is spelt. Pure.

One value has one form, however it was written: ``"02"`` and ``2`` are ``2``, ``"7,7"``, ``"7:7"`` and ``[7, 7]`` are
``"7,7"``. Digests of requests are made of these forms.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import re
from collections.abc import Sequence

Value = bool | int | float | str

_TRUE, _FALSE = ("true", "yes", "1", "on"), ("false", "no", "0", "off")
MOST_FILE_BYTES = 64 << 10  # a file's text travels with every request that names it


class Kind(abc.ABC):
    """A kind of value."""

    @property
    @abc.abstractmethod
    def expected(self) -> str:
        """What is legal, in words that follow ``expected``."""

    @abc.abstractmethod
    def canonical(self, given: object) -> Value:
        """The one form of a value.

        Raises:
            ValueError: it is not legal.
        """

    def spelt(self, name: str, value: Value) -> str:
        """The compiler's argument for a canonical value."""
        return f"-{name}={value}"


def _whole(given: object) -> int:
    """A whole number; True is none."""
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    if isinstance(given, str) and re.fullmatch(r"\s*[0-9]+\s*", given, re.ASCII):
        return int(given)
    raise ValueError


def _truth(given: object) -> bool:
    if isinstance(given, bool):
        return given
    if isinstance(given, str) and given.strip().lower() in _TRUE + _FALSE:
        return given.strip().lower() in _TRUE
    raise ValueError


@dataclasses.dataclass(frozen=True)
class _TrueOrFalse(Kind):
    @property
    def expected(self) -> str:
        return "true or false"

    def canonical(self, given: object) -> Value:
        return _truth(given)


@dataclasses.dataclass(frozen=True)
class Bare(_TrueOrFalse):
    """There or not there: True writes it without a value, False leaves it out."""

    def spelt(self, name: str, value: Value) -> str:
        return f"-{name}"


@dataclasses.dataclass(frozen=True)
class Switch(_TrueOrFalse):
    """On or off, with a default of the compiler's that may be either; ``off`` and ``on`` are how it spells them."""

    off: str = "false"
    on: str = "true"

    def spelt(self, name: str, value: Value) -> str:
        return f"-{name}={self.on if value else self.off}"


@dataclasses.dataclass(frozen=True)
class Integer(Kind):
    """A whole number. ``most`` is None where no upper end is documented."""

    least: int = 0
    most: int | None = None

    @property
    def expected(self) -> str:
        if self.most is None:
            return f"a whole number of at least {self.least}"
        return f"a whole number from {self.least} to {self.most}"

    def canonical(self, given: object) -> Value:
        number = _whole(given)
        if number < self.least or (self.most is not None and number > self.most):
            raise ValueError
        return number


@dataclasses.dataclass(frozen=True)
class Decimal(Kind):
    """A number between two ends, ends included."""

    least: float
    most: float

    @property
    def expected(self) -> str:
        return f"a number from {self.least:g} to {self.most:g}"

    def canonical(self, given: object) -> Value:
        if isinstance(given, bool) or not isinstance(given, int | float | str):
            raise ValueError
        number = float(given)
        if not math.isfinite(number) or not self.least <= number <= self.most:
            raise ValueError
        return number + 0.0  # -0.0 becomes 0.0

    def spelt(self, name: str, value: Value) -> str:
        return f"-{name}={str(value).removesuffix('.0')}"


@dataclasses.dataclass(frozen=True)
class Numbers(Kind):
    """A whole number of at least 1, or several: one for each cluster. One is an int, several a text with commas."""

    @property
    def expected(self) -> str:
        return "whole numbers of at least 1: one, or one per cluster such as 7:7"

    def canonical(self, given: object) -> Value:
        if isinstance(given, str):
            parts: Sequence[object] = re.split("[,:]", given)
        else:
            parts = given if isinstance(given, list | tuple) else [given]
        numbers = [_whole(part) for part in parts]
        if not numbers or min(numbers) < 1:
            raise ValueError
        return numbers[0] if len(numbers) == 1 else ",".join(map(str, numbers))


def numbers_of(value: Value) -> list[int]:
    """The numbers of a canonical value of the kind :class:`Numbers`."""
    return [int(part) for part in str(value).split(",")]


@dataclasses.dataclass(frozen=True)
class Choice(Kind):
    """One of some words."""

    words: tuple[str, ...]

    @property
    def expected(self) -> str:
        return f"one of {', '.join(self.words)}"

    def canonical(self, given: object) -> Value:
        found = [word for word in self.words if isinstance(given, str) and word.lower() == given.strip().lower()]
        if not found:
            raise ValueError
        return found[0]


@dataclasses.dataclass(frozen=True)
class Names(Kind):
    """A set of names, sorted, since order makes no difference; ``most`` is None where no upper end is documented."""

    most: int | None = None

    @property
    def expected(self) -> str:
        return "names such as Add:Div" + (f", at most {self.most}" if self.most else "")

    def canonical(self, given: object) -> Value:
        if isinstance(given, str):
            given = re.split("[,:]", given)
        if not isinstance(given, list | tuple) or not all(isinstance(name, str) and name.strip() for name in given):
            raise ValueError
        names = sorted({name.strip() for name in given})
        if not names or (self.most is not None and len(names) > self.most):
            raise ValueError
        return ",".join(names)


@dataclasses.dataclass(frozen=True)
class Text(Kind):
    """A word of which no more is documented."""

    @property
    def expected(self) -> str:
        return "a word"

    def canonical(self, given: object) -> Value:
        if isinstance(given, bool) or not isinstance(given, str | int) or not re.fullmatch(r"\S+", str(given)):
            raise ValueError
        return str(given)


@dataclasses.dataclass(frozen=True)
class InputFile(Kind):
    """The text of a file that the compiler reads: its content and not its path says what is compiled.

    The text ends with a line break, by which a path that was given instead is told apart.
    """

    suffix: str = ".yaml"

    @property
    def expected(self) -> str:
        return f"the path of a text file of at most {MOST_FILE_BYTES >> 10} KiB"

    def canonical(self, given: object) -> Value:
        if not isinstance(given, str) or not given.endswith("\n") or len(given.encode()) > MOST_FILE_BYTES:
            raise ValueError
        return given


@dataclasses.dataclass(frozen=True)
class OutputFile(Kind):
    """The name of a file that the compiler writes; it comes to lie beside the program."""

    @property
    def expected(self) -> str:
        return "a file name without directories"

    def canonical(self, given: object) -> Value:
        if not isinstance(given, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", given):
            raise ValueError
        return given
