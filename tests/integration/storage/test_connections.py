"""How many connections one process of the farm opens."""

from __future__ import annotations

import threading

import sqlalchemy as sa

from farm.db import POSTGRESQL_CONNECTIONS, Database


def test_many_threads_share_few_connections(postgresql: Database) -> None:
    number = 3 * POSTGRESQL_CONNECTIONS
    seen: list[int] = []
    together = threading.Barrier(number)
    mine = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%threads%'"
    )

    def look() -> None:
        together.wait()
        with postgresql.read() as connection:
            connection.execute(sa.text("SELECT 'threads', pg_sleep(0.01)"))
            seen.append(connection.execute(mine).scalar_one())

    threads = [threading.Thread(target=look) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == number
    assert 1 <= max(seen) <= POSTGRESQL_CONNECTIONS
