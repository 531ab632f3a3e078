"""Random histories of a farm on both databases. ``make proof`` tries many more of them."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from farm import testing
from tests.databases import empty_postgresql
from tests.proof.clock import Clock
from tests.proof.machine import Site, live_through
from tests.proof.world import shelf


def test_random_histories_on_sqlite_obey_the_laws() -> None:
    clock = Clock()
    with testing.fresh_database(clock=clock) as database, shelf() as here:
        site = Site(database, clock=clock, shelf=here)
        live_through(site, num_histories=10, num_steps=40, seed=None)
    assert site.num_steps > 10 * 10


@pytest.mark.slow
def test_random_histories_on_postgresql_obey_the_laws(postgresql_url: sa.URL) -> None:
    clock = Clock()
    url = empty_postgresql(postgresql_url)
    with testing.fresh_database(url, clock=clock) as database, shelf() as here:
        site = Site(database, clock=clock, shelf=here)
        live_through(site, num_histories=3, num_steps=40, seed=None)
    assert site.num_steps > 3 * 10
