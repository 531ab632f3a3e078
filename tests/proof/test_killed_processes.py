"""Processes that are really killed, just before a commit and just after one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proof import snapshot
from tests.proof.crash_points import rehearse
from tests.proof.crashing import AFTER_COMMIT, BEFORE_COMMIT
from tests.proof.operations import OPERATIONS
from tests.proof.site import site_at
from tests.proof.world import World

ROOT = Path(__file__).parents[2]
NAME = "a_round_that_admits_places_and_sends"  # several transactions; the other operations crash in this process


@pytest.mark.slow
def test_what_a_killed_process_had_committed_is_kept_and_the_rest_is_not(empty_url: str) -> None:
    with site_at(empty_url) as site:
        world = World(site.database, clock=site.clock, shelf=site.shelf)
        whole = rehearse(world, OPERATIONS[NAME](world))
        last_commit = max(number for number, kind in enumerate(whole.moments) if kind == BEFORE_COMMIT)
        for moment in (last_commit, whole.moments.index(AFTER_COMMIT)):
            snapshot.restore(site.database, whole.states[0])
            command = [sys.executable, "-m", "tests.proof.victim", empty_url, NAME, str(moment)]
            killed = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
            assert killed.returncode == -signal.SIGKILL, killed.stderr
            found, expected = snapshot.take(site.database), whole.state_at(moment)
            assert found == expected, (whole.moments[moment], found.differences(expected))
        world.settle()
