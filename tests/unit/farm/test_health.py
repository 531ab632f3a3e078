"""What a check of a device makes of it."""

from __future__ import annotations

import dataclasses

import pytest

from farm.lifecycle.health import MISSING, READY, Known, Quarantine, after_check

AT = 1000.0
QUARANTINE = Quarantine(after=3, first_pause_s=60.0, cool_down_s=5.0)
WELL = Known(health="ready", status=READY, faults=0, quarantined_until=None)


def check(known: Known, status: str, *, at: float = AT) -> Known:
    """What is known after a check."""
    changed = after_check(known, status=status, quarantine=QUARANTINE, at=at)
    return dataclasses.replace(known, **{name: changed[name] for name in changed if name != "health_reason"})


@pytest.mark.parametrize(
    ("status", "health", "faults"),
    [
        (MISSING, "lost", 1),
        ("Error", "quarantined", 1),
        ("Unknown", "quarantined", 1),
        ("Initializing", "quarantined", 0),
    ],
)
def test_a_device_that_is_not_ready_gets_no_work_and_is_a_fault_once(status: str, health: str, faults: int) -> None:
    once = check(WELL, status)
    assert (once.health, once.faults) == (health, faults)
    assert check(once, status) == once
    back = check(once, READY)
    assert back == Known(health="quarantined", status=READY, faults=faults, quarantined_until=AT + 5)
    assert check(back, READY, at=AT + 3600) == back, "a check alone gives it no work"


def test_one_that_comes_and_goes_rests_for_longer_each_time() -> None:
    known = WELL
    pauses = []
    for _ in range(5):
        known = check(check(known, "Error"), READY)
        assert known.health == "quarantined"
        assert known.quarantined_until is not None
        pauses.append(known.quarantined_until - AT)
        known = dataclasses.replace(known, health="ready", quarantined_until=None)  # it passes its test
    assert pauses == [5.0, 5.0, 60.0, 120.0, 240.0]


def test_one_that_fails_while_it_rests_rests_on_and_cools_down_when_it_is_back() -> None:
    resting = Known(health="quarantined", status=READY, faults=3, quarantined_until=AT + 60)
    assert check(resting, READY, at=AT + 59) == resting
    ill = check(resting, "Error", at=AT + 61)
    assert ill.health == "quarantined"
    assert check(ill, READY, at=AT + 30).quarantined_until == AT + 60
    back = check(ill, READY, at=AT + 70)
    assert (back.health, back.quarantined_until) == ("quarantined", AT + 70 + 120), "as one with four failures"


def test_what_a_user_wants_of_a_device_stays() -> None:
    draining = dataclasses.replace(WELL, health="draining")
    assert check(draining, READY) == draining


def test_no_pause_is_longer_than_a_day() -> None:
    assert QUARANTINE.until(2, at=AT) is None
    assert QUARANTINE.until(1000, at=AT) == AT + 86_400
