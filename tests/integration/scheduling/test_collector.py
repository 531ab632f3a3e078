"""What the leading scheduler collects by itself."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm import settings as farm_settings
from farm import testing
from farm.errors import StaleTransition
from farm.lifecycle import leadership
from farm.scheduler import Scheduler
from farm.settings import Settings
from farm.store import collector
from tests.artifact_books import Books

LIMIT_S = 60.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A farm whose store may hold nothing."""
    (tmp_path / "home").mkdir()
    return farm_settings.load(home=str(tmp_path / "home"), environ={"FARM_STORE_BUDGET": "0"})


@pytest.fixture
def books(settings: Settings) -> Iterator[Books]:
    """Its books, with a submission that ended a day ago."""
    with testing.fresh_database(settings.database_url) as database:
        books = Books.open(database, settings.store)
        testing.add_submission(database)
        books.age(*books.work().values(), days=1)
        yield books


def test_a_scheduler_keeps_the_store_within_its_budget(books: Books, settings: Settings) -> None:
    done = sorted(books.store.digests())
    scheduler = Scheduler(settings)
    deadline = time.monotonic() + LIMIT_S
    while not all(books.row(digest).condemned_at for digest in done):
        assert time.monotonic() < deadline
        scheduler.step()
    scheduler.close()
    books.age(*done, days=1)
    successor = Scheduler(settings)
    while list(books.store.digests()):
        assert time.monotonic() < deadline
        successor.step()
    successor.close()
    assert books.actions_without_bytes() == []


def test_without_a_budget_nothing_is_collected(books: Books, settings: Settings) -> None:
    without = dataclasses.replace(settings, store_budget_bytes=None)
    assert collector.collect_if_over(books.database, settings=without, term=None) is None
    idle = collector.Collector(without)
    idle.poke(None)
    assert idle._thread is None


def test_a_store_within_its_budget_is_not_looked_at(books: Books, settings: Settings) -> None:
    roomy = dataclasses.replace(settings, store_budget_bytes=1 << 30)
    assert collector.collect_if_over(books.database, settings=roomy, term=None) is None


def test_a_round_is_bounded(books: Books, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "AT_ONCE", 2)
    rounds = [collector.collect_if_over(books.database, settings=settings, term=None) for _ in range(3)]
    assert [len(report.condemned) for report in rounds if report is not None] == [2, 2, 2]


def test_a_collector_whose_term_is_over_stops(books: Books, settings: Settings) -> None:
    with books.database.write() as connection:
        term = leadership.acquire(connection, holder="other", lease_s=60)
    assert term is not None
    with pytest.raises(StaleTransition, match="is over"):
        collector.collect_if_over(books.database, settings=settings, term=term - 1)
    assert all(books.row(digest).condemned_at is None for digest in books.store.digests())
