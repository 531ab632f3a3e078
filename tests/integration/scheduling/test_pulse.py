"""Waiting for writes of others."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database
from farm.scheduling import pulse as pulses
from farm.scheduling.file_watch import FileWatch
from farm.scheduling.pulse import Pulse

_LONG_S = 60.0


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    with testing.fresh_database(f"sqlite:///{tmp_path / 'farm.db'}") as database:
        yield database


@pytest.fixture
def deaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file than the log is watched."""
    (tmp_path / "other").touch()
    monkeypatch.setattr(pulses, "FileWatch", lambda _: FileWatch(tmp_path / "other"))


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file can be watched."""

    def refuse(path: Path) -> FileWatch:
        raise OSError(f"no more of inotify for {path}")

    monkeypatch.setattr(pulses, "FileWatch", refuse)


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


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_the_kernel_tells_of_a_write_to_sqlite(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulses, "_LONGEST_LOOK_S", 2 * _LONG_S)  # nothing is found by looking
    test_a_submission_ends_the_wait(sqlite)


@pytest.mark.usefixtures("deaf")
@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_a_write_that_the_kernel_does_not_tell_of_is_found_all_the_same(sqlite: Database) -> None:
    test_a_submission_ends_the_wait(sqlite)


@pytest.mark.usefixtures("blind")
def test_where_no_file_can_be_watched_a_write_is_found_by_looking(sqlite: Database) -> None:
    test_a_submission_ends_the_wait(sqlite)


def test_a_commit_that_comes_after_its_pages_were_written_is_found_at_once(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that does not fit into the cache writes to the log long before its commit."""
    monkeypatch.setattr(pulses, "_LONGEST_LOOK_S", 2 * _LONG_S)
    pulse = Pulse(sqlite)
    pulse.wait(0.0)
    with sqlite.write() as connection:
        connection.exec_driver_sql("PRAGMA cache_size = 1")
        connection.exec_driver_sql("CREATE TABLE large (words TEXT)")
        connection.exec_driver_sql("INSERT INTO large VALUES (hex(randomblob(1000000)))")
        assert not pulse.wait(0.0)
    assert pulse.wait(_LONG_S)
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
