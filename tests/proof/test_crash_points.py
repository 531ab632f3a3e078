"""Each operation ends in the middle, wherever it can. ``make proof`` starts farms again from more of what is left."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from farm.states import TRANSITIONS
from tests.databases import empty_postgresql
from tests.proof.crash_points import Starts, Thorough, crash_all
from tests.proof.operations import OPERATIONS
from tests.proof.site import site_at

ALL = {(str(source), name, str(target)) for source, name, target in TRANSITIONS}


@pytest.mark.slow
def test_a_crash_at_any_moment_keeps_what_is_committed_and_nothing_else(subtests: pytest.Subtests) -> None:
    with site_at(None) as site:
        thorough = Thorough(every=1, starts=Starts.LAST)
        tally = crash_all(site, OPERATIONS, thorough=thorough, attempt=subtests.test)
    assert tally.transitions == ALL, "every way between the states must be among the operations"


@pytest.mark.slow
def test_a_crash_on_postgresql_keeps_what_is_committed_and_nothing_else(
    postgresql_url: sa.URL, subtests: pytest.Subtests
) -> None:
    with site_at(empty_postgresql(postgresql_url)) as site:
        thorough = Thorough(every=8, starts=Starts.NONE)
        tally = crash_all(site, OPERATIONS, thorough=thorough, attempt=subtests.test)
    assert tally.transitions == ALL, "every way between the states must be among the operations"
