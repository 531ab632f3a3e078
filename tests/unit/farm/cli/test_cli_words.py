"""Figures are shown in units that people read."""

from __future__ import annotations

import pytest

from farm.cli import _words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""),
        (0.00123, "1.23 ms"),
        (0.5, "500 ms"),
        (12.34, "12.3 s"),
        (100, "1 min 40 s"),
        (245.4, "4 min 05 s"),
        (11_530, "3 h 12 min"),
    ],
)
def test_durations(seconds: float | None, words: str) -> None:
    assert _words.duration(seconds) == words


@pytest.mark.parametrize(
    ("num_bytes", "words"), [(None, ""), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes(num_bytes: int | None, words: str) -> None:
    assert _words.size(num_bytes) == words


def test_plurals() -> None:
    assert (_words.plural(1, "point"), _words.plural(0, "point")) == ("1 point", "0 points")
