"""Each operation ends in the middle, wherever it can. ``make proof`` starts farms again from more of what is left."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from farm.states import TRANSITIONS
from tests.databases import empty_postgresql
from tests.proof.crash_points import Tally, Thorough, crash_everywhere
from tests.proof.operations import OPERATIONS
from tests.proof.site import site_at

ALL = {(str(source), name, str(target)) for source, name, target in TRANSITIONS}


def crash_all(url: str | None, *, thorough: Thorough, subtests: pytest.Subtests) -> Tally:
    tally = Tally()
    with site_at(url) as site:
        for name, operation in OPERATIONS.items():
            with subtests.test(name):
                crash_everywhere(site, operation, thorough=thorough, tally=tally)
    return tally


@pytest.mark.slow
def test_a_crash_at_any_moment_keeps_what_is_committed_and_nothing_else(subtests: pytest.Subtests) -> None:
    tally = crash_all(None, thorough=Thorough.STATEMENTS, subtests=subtests)
    assert tally.transitions == ALL, "every way between the states must be among the operations"


@pytest.mark.slow
def test_a_crash_around_a_commit_on_postgresql_keeps_what_is_committed(
    postgresql_url: sa.URL, subtests: pytest.Subtests
) -> None:
    tally = crash_all(empty_postgresql(postgresql_url), thorough=Thorough.COMMITS, subtests=subtests)
    assert tally.transitions == ALL, "every way between the states must be among the operations"
