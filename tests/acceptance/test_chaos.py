"""Deaths and other harm at random moments while sweeps run: no law of the farm is broken. ``make chaos`` does more."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.history import Tally, live_through

NUM_KILLS = 12


def test_a_farm_that_is_struck_at_random_keeps_its_laws(tmp_path: Path) -> None:
    tally = Tally(seed=4)
    live_through(tmp_path / "home", tally=tally, num_kills=NUM_KILLS)
    assert tally.kills.total() == NUM_KILLS
    assert tally.states["succeeded"] > 0
