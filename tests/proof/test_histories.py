"""Random histories of a farm on both databases. ``make proof`` tries many more of them."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from tests.databases import empty_postgresql
from tests.proof.machine import live_through
from tests.proof.site import site_at


def test_random_histories_on_sqlite_obey_the_laws() -> None:
    with site_at(None) as site:
        live_through(site, num_histories=10, num_steps=40, seed=None)
    assert site.num_steps > 10 * 10


@pytest.mark.slow
def test_random_histories_on_postgresql_obey_the_laws(postgresql_url: sa.URL) -> None:
    with site_at(empty_postgresql(postgresql_url)) as site:
        live_through(site, num_histories=3, num_steps=40, seed=None)
    assert site.num_steps > 3 * 10
