"""Garbage collection of real bytes beside real transactions, on both databases."""

from __future__ import annotations

import collections
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database
from farm.errors import Refused, StaleTransition
from farm.lifecycle import attempts, jobs, leadership
from farm.models import actions
from farm.models import attempts as attempt_rows
from farm.models import jobs as job_rows
from farm.records import Usage
from farm.states import JobState
from farm.store import catalogue, collection
from farm.store.collection import Places, Policy, Report
from farm.store.disposal import DAMAGED_KEPT_S, LEFTOVER_AFTER_S, Ledger
from farm.store.manifest import Blob
from qeff_engine.errors import FailureClass
from tests.artifact_books import DAY_S, Books
from tests.proof import invariants

MONTH = Policy(unused_for_s=30 * DAY_S)
AT_ONCE = Policy(unused_for_s=30 * DAY_S, grace_s=0.0)


@pytest.fixture
def books(each_database: Database, tmp_path: Path) -> Books:
    return Books.open(each_database, tmp_path / "store")


@pytest.fixture
def local_books(tmp_path: Path) -> Iterator[Books]:
    """Books for what has nothing to do with the kind of database."""
    with testing.fresh_database() as database:
        yield Books.open(database, tmp_path / "store")


def collect(books: Books, policy: Policy = MONTH, **how: bool) -> Report:
    return collection.collect(books.database, Places(store=books.store), policy=policy, **how)


def finished(books: Books) -> dict[str, str]:
    """The artifacts of a submission that has ended, all of them unused for 40 days."""
    testing.add_submission(books.database)
    done = books.work()
    books.age(*done.values(), days=40)
    return done


def test_what_was_not_used_for_long_is_condemned_first_and_deleted_later(books: Books) -> None:
    done = finished(books)
    first = collect(books)
    assert (set(first.condemned), first.deleted) == (set(done.values()), ())
    assert set(books.store.digests()) == set(done.values())
    books.age(*done.values(), days=1)
    second = collect(books)
    assert (second.condemned, set(second.deleted)) == ((), set(done.values()))
    assert first.condemned_bytes == second.deleted_bytes == first.num_bytes
    assert list(books.store.digests()) == []
    with books.database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(actions)) == 0
        states = set(connection.scalars(sa.select(job_rows.c.state)))
        assert states == {JobState.SUCCEEDED}
        assert {row.digest for row in catalogue.artifact_list(connection, deleted=True)} == set(done.values())
        assert catalogue.artifact_list(connection) == []


def test_deleted_work_is_done_again_and_its_artifacts_are_as_new(books: Books) -> None:
    done = finished(books)
    collect(books, AT_ONCE)
    testing.add_submission(books.database)
    assert books.work() == done
    assert set(books.store.digests()) == set(done.values())
    assert collect(books, AT_ONCE).condemned == ()


def test_inputs_of_jobs_that_have_not_ended_stay(books: Books) -> None:
    testing.add_submission(books.database)
    done = books.work(upto=2)
    books.age(*done.values(), days=40)
    assert collect(books, AT_ONCE).condemned == ()
    rest = books.work()
    books.age(*done.values(), *rest.values(), days=40)
    assert len(collect(books, AT_ONCE).deleted) == 6


def test_pins_and_recent_use_keep_artifacts(books: Books) -> None:
    done = finished(books)
    with books.database.write() as connection:
        catalogue.pin(connection, [done["export"]], reason="baseline")
    books.age(done["export"], days=40)
    books.age(done["resolve"], days=-39.99)
    assert set(collect(books, AT_ONCE).deleted) == set(done.values()) - {done["export"], done["resolve"]}
    with books.database.write() as connection:
        assert catalogue.unpin(connection, [done["export"], done["resolve"]]) == 1
    assert collect(books, AT_ONCE).deleted == (done["export"],)


def test_a_pin_saves_the_condemned_and_is_refused_for_the_deleted(books: Books) -> None:
    done = finished(books)
    collect(books)
    with books.database.write() as connection:
        catalogue.pin(connection, [done["export"]], reason="x")
    books.age(*done.values(), days=1)
    assert done["export"] not in collect(books).deleted
    with pytest.raises(Refused, match="has been deleted"), books.database.write() as connection:
        catalogue.pin(connection, sorted(done.values()), reason="x")
    assert books.row(done["export"]).pinned == "x"


def test_a_hit_between_condemning_and_deleting_saves_the_artifact(books: Books) -> None:
    done = finished(books)
    collect(books)
    testing.add_submission(books.database)
    testing.admit_all(books.database)  # the first job is a hit
    books.age(*done.values(), days=1)
    assert set(collect(books).deleted) == set(done.values()) - {done["resolve"]}
    assert books.row(done["resolve"]).condemned_at is None
    assert books.actions_without_bytes() == []


def test_a_retry_between_condemning_and_deleting_saves_the_inputs(books: Books) -> None:
    submission = testing.add_submission(books.database)
    done = books.work(upto=1)
    with books.database.write() as connection:
        jobs.cancel_submission(connection, submission)
        cancelled = connection.scalars(sa.select(job_rows.c.id).where(job_rows.c.label == "export")).one()
    books.age(*done.values(), days=40)
    assert collect(books).condemned == (done["resolve"],)
    with books.database.write() as connection:
        jobs.retry(connection, cancelled)
    books.age(*done.values(), days=1)
    assert collect(books).deleted == ()
    assert books.row(done["resolve"]).condemned_at is None


def test_a_retry_has_collected_inputs_made_again_before_it_starts(books: Books) -> None:
    testing.add_submission(books.database)
    assert set(books.work(upto=2)) == {"resolve", "export"}
    testing.admit_all(books.database)
    failed = books.claim(stage="compile")
    assert failed is not None
    with books.database.write() as connection:
        how: dict[str, Any] = {"failure_class": FailureClass.BUG, "message": "why", "usage": Usage()}
        attempts.fail(connection, failed.job_id, failed.attempt, **how)
    books.work()
    books.age(*books.store.digests(), days=40)
    deleted = collect(books, AT_ONCE).deleted
    assert set(failed.inputs.values()) <= set(deleted)
    with books.database.write() as connection:
        jobs.retry(connection, failed.job_id)
    assert list(books.work()) == ["resolve", "export", failed.label, failed.label.replace("compile", "run")]
    invariants.check(books.database, store=books.store, struck=collections.Counter(deleted))
    with books.database.read() as connection:
        query = sa.select(attempt_rows.c.state).where(attempt_rows.c.job_id == failed.job_id)
        assert connection.scalars(query.order_by(attempt_rows.c.number)).all() == ["failed", "succeeded"]
        assert connection.scalar(sa.select(sa.func.count()).where(attempt_rows.c.state == "failed")) == 1


def test_a_retry_whose_work_is_known_needs_no_collected_input(books: Books) -> None:
    first = testing.add_submission(books.database)
    done = books.work(upto=2)
    with books.database.write() as connection:
        jobs.cancel_submission(connection, first)
        cancelled = connection.scalars(sa.select(job_rows.c.id).where(job_rows.c.stage == "compile")).all()
    testing.add_submission(books.database)
    books.work()
    books.age(*done.values(), days=40)
    assert set(collect(books, AT_ONCE).deleted) == set(done.values())
    with books.database.write() as connection:
        jobs.retry(connection, cancelled[0])
    testing.admit_all(books.database)
    with books.database.read() as connection:
        assert connection.scalar(sa.select(job_rows.c.state).where(job_rows.c.id == cancelled[0])) == JobState.CACHED


def test_an_artifact_published_after_it_was_struck_keeps_its_bytes(local_books: Books) -> None:
    done = finished(local_books)
    collect(local_books)
    local_books.age(*done.values(), days=1)
    local_books.publish(content="resolve{'tag': ''}")  # by an attempt whose end is not written yet
    assert done["resolve"] not in collect(local_books).deleted
    assert local_books.row(done["resolve"]).deleted_at is not None
    assert done["resolve"] in local_books.store.digests()
    testing.add_submission(local_books.database)
    assert local_books.work(upto=1) == {"resolve": done["resolve"]}
    assert local_books.row(done["resolve"]).deleted_at is None


def test_a_crash_between_striking_and_deleting_is_made_good_by_the_next_round(local_books: Books) -> None:
    done = finished(local_books)
    collect(local_books)
    with local_books.database.write() as connection:
        assert set(collection.strike(connection, grace_s=0.0, limit=None, term=None)) == set(done.values())
    assert local_books.actions_without_bytes() == []
    assert set(collect(local_books).deleted) == set(done.values())
    assert list(local_books.store.digests()) == []


def test_a_budget_takes_the_longest_unused_until_the_rest_fits(local_books: Books) -> None:
    done = finished(local_books)
    order = sorted(done.values())
    for number, digest in enumerate(order):
        local_books.age(digest, days=len(order) - number)
    total = collect(local_books, Policy(), dry_run=True).num_bytes
    sizes = [sum(blob.num_bytes for blob in local_books.store.blobs(digest)) for digest in order]
    fits = Policy(budget_bytes=total - sizes[0] - 1)
    assert collect(local_books, fits).condemned == tuple(order[:2])
    assert collect(local_books, fits).condemned == ()  # what is condemned counts as gone
    assert collect(local_books, Policy(budget_bytes=0, limit=3)).condemned == tuple(order[2:5])


def test_a_dry_run_tells_the_same_and_changes_nothing(local_books: Books) -> None:
    done = finished(local_books)
    told = collect(local_books, dry_run=True)
    assert all(local_books.row(digest).condemned_at is None for digest in done.values())
    assert collect(local_books) == told
    local_books.age(*done.values(), days=1)
    told = collect(local_books, dry_run=True)
    assert set(told.deleted) == set(local_books.store.digests())
    assert collect(local_books) == told


def test_a_collector_whose_term_is_over_changes_nothing(books: Books) -> None:
    done = finished(books)
    with books.database.write() as connection:
        term = leadership.acquire(connection, holder="a", lease_s=60)
    assert term is not None
    with pytest.raises(StaleTransition, match="is over"):
        collection.collect(books.database, Places(store=books.store), policy=AT_ONCE, term=term + 1)
    assert set(books.store.digests()) == set(done.values())


def test_bytes_without_a_row_go_after_a_day(local_books: Books) -> None:
    old, new = local_books.publish(a="1").digest, local_books.publish(a="2").digest
    os.utime(local_books.wrapper(old), (1.0, 1.0))
    assert collect(local_books).orphans == (old,)
    assert list(local_books.store.digests()) == [new]


def test_leftovers_go_but_not_those_of_a_running_attempt(local_books: Books, tmp_path: Path) -> None:
    testing.add_submission(local_books.database)
    (job_id,) = testing.admit_all(local_books.database)
    testing.claim(local_books.database, job_id, node_id=local_books.host.host_node)
    scratch, logs = tmp_path / "scratch", tmp_path / "logs"
    mine = local_books.store.new_tree(name=f"{job_id}.1").parent
    crashed = local_books.store.new_tree(name=f"{job_id}.7").parent
    fresh = local_books.store.new_tree(name="8.1").parent
    draft = local_books.store.root / "digests" / ".1-2.json.99.1"
    damaged = local_books.store.root / "damaged" / f"{'0' * 64}.{1:x}"
    left, log = scratch / f"{job_id}.7.abc", logs / "jobs" / "000" / "7.1.log"
    for path in (draft, damaged, log):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("12345")
    left.mkdir(parents=True)
    for path in (mine, mine / "tree", crashed, crashed / "tree", draft, left, log):
        os.utime(path, (1.0, 1.0))
    places = Places(store=local_books.store, scratch=scratch, logs=logs)
    report = collection.collect(local_books.database, places, policy=Policy(logs_older_than_s=DAY_S))
    assert (report.leftovers, report.leftover_bytes, report.logs, report.log_bytes) == (4, 10, 1, 5)
    assert {path for path in (mine, crashed, fresh, draft, damaged, left, log) if path.exists()} == {mine, fresh}
    assert min(LEFTOVER_AFTER_S, DAMAGED_KEPT_S) >= DAY_S


def blob(name: str, num_bytes: int, num_names: int) -> Blob:
    return Blob(id=name, num_bytes=num_bytes, num_names=num_names)


def test_shared_bytes_are_freed_with_the_last_name_and_a_users_file_never() -> None:
    ledger = Ledger(
        {
            "snapshot": [blob("weights", 1000, 2), blob("theirs", 500, 3), blob("config", 1, 1)],
            "export": [blob("weights", 1000, 2), blob("theirs", 500, 3), blob("graph", 20, 1)],
        }
    )
    assert ledger.num_bytes == 1021
    assert ledger.take("snapshot") == 1
    assert ledger.take("export") == 1020
    assert ledger.num_bytes == 0


def test_the_bytes_of_a_linked_checkpoint_are_counted_as_its_users(local_books: Books, tmp_path: Path) -> None:
    checkpoint = tmp_path / "weights"
    checkpoint.write_text("w" * 1000)
    local_books.publish(link=checkpoint, config="1")
    local_books.publish(link=checkpoint, graph="22")
    assert collect(local_books, dry_run=True).num_bytes == 3
    checkpoint.unlink()
    assert collect(local_books, dry_run=True).num_bytes == 1003


def test_no_action_leads_to_nothing_while_the_same_work_is_done_and_collected(books: Books) -> None:
    """A budget of nothing, in a loop, beside a farm that does the same work again and again."""
    nothing_is_kept = Policy(budget_bytes=0, grace_s=0.0)
    ended = threading.Event()
    wrong: list[object] = []
    deleted: list[str] = []

    def gather() -> None:
        try:
            while not ended.is_set():
                deleted.extend(collect(books, nothing_is_kept).deleted)
        except Exception as error:  # noqa: BLE001  the test tells it
            wrong.append(error)

    thread = threading.Thread(target=gather)
    thread.start()
    try:
        while len(deleted) < 8 and not wrong:
            testing.add_submission(books.database)
            books.work()
            assert books.actions_without_bytes() == []
            with books.database.read() as connection:
                made = [one.digest for one in catalogue.artifact_list(connection)]
            books.age(*made, days=1)  # so that it may be collected at once
    finally:
        ended.set()
        thread.join()
    assert wrong == []
    with books.database.read() as connection:
        assert set(connection.scalars(sa.select(job_rows.c.state))) <= {JobState.SUCCEEDED, JobState.CACHED}
