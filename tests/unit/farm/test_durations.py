"""Durations as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm import durations
from farm.errors import Usage


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86_400), ("1h30m", 5400), (" 1.5H ", 5400), ("0.25s", 0.25)],
)
def test_a_duration_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert durations.parse(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "s", "5 m", "1w", "-1h", "0s", "1h and more", "inf"])
def test_anything_else_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(Usage, match=r"expected a (number with a unit|duration above zero), such as 90s"):
        durations.parse(text)


@given(st.integers(1, 10**7))
def test_what_is_said_reads_back_as_what_was_meant_but_for_small_units(seconds: int) -> None:
    read = durations.parse(durations.words(seconds))
    assert read <= seconds
    assert seconds - read < max(1, seconds / 24)


def test_limits_by_name_may_be_none() -> None:
    names = frozenset({"compile", "run"})
    assert durations.parse_by_name("compile=36h, run=none,", names=names) == {"compile": 36 * 3600, "run": None}
    for wrong in ("compile", "link=1h", "run=", "run=5"):
        with pytest.raises(Usage):
            durations.parse_by_name(wrong, names=names)
