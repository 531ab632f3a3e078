"""Waiting for writes of others."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database
from farm.scheduling.pulse import Pulse

_LONG_S = 60.0


def test_a_write_of_another_is_noticed_once(each_database: Database) -> None:
    pulse = Pulse(each_database)
    pulse.wait(0.0)
    assert not pulse.wait(0.0)
    testing.add_submission(each_database)
    assert pulse.wait(0.0)
    assert not pulse.wait(0.0)
    pulse.close()


def test_a_submission_ends_the_wait(each_database: Database) -> None:
    pulse = Pulse(each_database)
    pulse.wait(0.0)
    found: list[bool] = []
    waiter = threading.Thread(target=lambda: found.append(pulse.wait(_LONG_S)))
    waiter.start()
    testing.add_submission(each_database)
    waiter.join(_LONG_S / 2)  # a wait to its end would be longer
    assert found == [True]
    pulse.close()


def test_a_connection_that_breaks_is_an_error_of_the_database_and_the_next_wait_makes_a_new_one(
    postgresql_url: str,
) -> None:
    with testing.fresh_database(postgresql_url) as database:
        pulse = Pulse(database)
        pulse.wait(0.0)
        with database.write() as connection:
            others = sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT (SELECT%'"
            )
            connection.execute(others)
        with pytest.raises(sa.exc.DBAPIError):
            pulse.wait(0.0)
        pulse.close()
        assert pulse.wait(0.0)
        pulse.close()
