"""Jumps of the database's clock."""

from __future__ import annotations

import pytest

from farm.clockwatch import ClockWatch


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, 16.0])
def test_a_jump_is_noticed_once(jump_s: float) -> None:
    watch = ClockWatch(tolerance_s=15.0)
    assert watch.jump_s(database=1e9, own=5.0) == 0
    assert watch.jump_s(database=1e9 + 1, own=6.0) == 0
    assert watch.jump_s(database=1e9 + 2 + jump_s, own=7.0) == pytest.approx(jump_s)
    assert watch.jump_s(database=1e9 + 3 + jump_s, own=8.0) == 0


def test_a_long_time_between_two_looks_is_no_jump() -> None:
    watch = ClockWatch(tolerance_s=15.0)
    watch.jump_s(database=1e9, own=5.0)
    assert watch.jump_s(database=1e9 + 7200, own=7205.0) == 0
