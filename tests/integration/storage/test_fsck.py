"""Every inconsistency is made, found, and repaired or told; a farm in order has none."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from farm import fsck, testing
from farm.db import Database
from farm.fsck import State
from farm.lifecycle import attempts, reaping
from farm.models import actions, artifacts, events, host_leases, jobs
from farm.models import attempts as attempt_rows
from farm.store.collection import Places
from tests.artifact_books import Books
from tests.proof import invariants


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    """Books whose first two jobs have ended and whose third one runs."""
    with testing.fresh_database() as database:
        yield begun(Books.open(database, tmp_path / "store"))


@pytest.fixture
def each_books(each_database: Database, tmp_path: Path) -> Books:
    """The same on each kind of database."""
    return begun(Books.open(each_database, tmp_path / "store"))


def begun(books: Books) -> Books:
    testing.add_submission(books.database)
    books.work(upto=2)
    testing.admit_all(books.database)
    assert books.claim() is not None
    return books


def check(books: Books, **how: Any) -> list[tuple[str, str]]:
    places = Places(store=books.store, scratch=books.store.root / "scratch", logs=books.store.root / "logs")
    return [(finding.kind, finding.state) for finding in fsck.check(books.database, places, **how)]


def update(books: Books, statement: Any) -> None:
    with books.database.write() as connection:
        connection.execute(statement)


def exported(books: Books) -> str:
    """The digest of the artifact that the running job reads."""
    with books.database.read() as connection:
        return str(connection.scalar(sa.select(jobs.c.artifact).where(jobs.c.label == "export")))


def long_ago(path: Path) -> None:
    os.utime(path, (1.0, 1.0))


def test_a_farm_in_order_has_no_findings(each_books: Books) -> None:
    assert check(each_books, deep=True) == []
    each_books.work()
    assert check(each_books, deep=True, repair=True) == []


def lose_bytes(books: Books) -> None:
    books.wrapper(exported(books)).rename(books.store.root / "elsewhere")


def cut_file(books: Books) -> None:
    path = books.wrapper(exported(books)) / "tree" / "content"
    path.chmod(0o644)
    os.truncate(path, 1)


def flip_bit(books: Books) -> None:
    path = books.wrapper(exported(books)) / "tree" / "content"
    before = path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap_manifest(books: Books) -> None:
    other = books.publish(a="1").digest
    text = (books.wrapper(other) / "manifest.json").read_text()
    (books.wrapper(exported(books)) / "manifest.json").write_text(text)
    books.store.remove(other, untouched_since=time.time() + 1)


def misstate_size(books: Books) -> None:
    update(books, sa.update(artifacts).where(artifacts.c.digest == exported(books)).values(num_bytes=7))


def publish_for_nobody(books: Books) -> None:
    long_ago(books.wrapper(books.publish(a="1").digest))


def delete_by_half(books: Books) -> None:
    """As a collector does that dies before it deletes the bytes."""
    digest = exported(books)
    update(books, sa.delete(actions).where(actions.c.artifact == digest))
    update(books, sa.update(artifacts).where(artifacts.c.digest == digest).values(deleted_at=1.0))
    long_ago(books.wrapper(digest))


def leave_draft(books: Books) -> None:
    draft = books.store.new_tree(name="99.1")
    for path in (draft, draft.parent):
        long_ago(path)


def leave_scratch(books: Books) -> None:
    scratch = books.store.root / "scratch" / "99.1.abc"
    scratch.mkdir(parents=True)
    long_ago(scratch)


def leave_log(books: Books) -> None:
    log = books.store.root / "logs" / "jobs" / "000" / "99.1.log"
    log.parent.mkdir(parents=True)
    log.touch()
    long_ago(log)


BYTES = {
    lose_bytes: "lost",
    cut_file: "damaged",
    flip_bit: "damaged",
    swap_manifest: "damaged",
    misstate_size: "size",
    publish_for_nobody: "unknown",
    delete_by_half: "half-deleted",
    leave_draft: "leftover",
    leave_scratch: "leftover",
    leave_log: "log",
}


@pytest.mark.parametrize("damage", BYTES, ids=lambda damage: damage.__name__)
def test_what_is_wrong_with_bytes_is_found_and_repaired(books: Books, damage: Callable[[Books], None]) -> None:
    damage(books)
    deep = damage is flip_bit
    if deep:
        assert check(books) == []
    assert check(books, deep=deep) == [(BYTES[damage], State.FOUND)]
    assert check(books, deep=deep, repair=True) == [(BYTES[damage], State.REPAIRED)]
    assert check(books, deep=True) == []
    assert books.actions_without_bytes() == []


def test_lost_and_damaged_work_is_done_again(books: Books) -> None:
    done = books.work()
    cut_file(books)
    check(books, repair=True)
    testing.add_submission(books.database)
    again = books.work()
    assert again.items() >= {("export", exported(books))}
    assert check(books, deep=True) == []
    assert set(books.store.digests()) >= set(done.values())


def lead_nowhere(books: Books) -> None:
    """As a program does that knows nothing of deleted artifacts."""
    digest = exported(books)
    update(books, sa.update(artifacts).where(artifacts.c.digest == digest).values(deleted_at=time.time()))


def miscount(books: Books) -> None:
    update(books, sa.update(jobs).where(jobs.c.label == "run 8 cores").values(remaining=0))


def forget_attempt(books: Books) -> None:
    update(
        books, sa.update(attempt_rows).where(attempt_rows.c.state == "running").values(state="lost", finished_at=1.0)
    )
    update(books, sa.delete(host_leases))


def forget_job(books: Books) -> None:
    values = {"state": "ready", "node_id": None}
    update(books, sa.update(jobs).where(jobs.c.state == "running").values(**values))


def keep_slot(books: Books) -> None:
    """An attempt that is lost in the orderly way, and whose slot comes back."""
    with books.database.read() as connection:
        slot = connection.execute(sa.select(host_leases)).one()._mapping
    with books.database.write() as connection:
        reaping.lose(connection, slot["job_id"], slot["attempt"], reason="x", term=None)
    update(books, sa.insert(host_leases).values(**slot))


ROWS = {
    lead_nowhere: ["dead-action"],
    miscount: ["count"],
    forget_attempt: ["stuck-job"],
    forget_job: ["stray-attempt", "event"],
    keep_slot: ["lease"],
}


@pytest.mark.parametrize("damage", ROWS, ids=lambda damage: damage.__name__)
def test_what_is_wrong_with_rows_is_found_and_repaired(each_books: Books, damage: Callable[[Books], None]) -> None:
    damage(each_books)
    assert [kind for kind, _ in check(each_books)] == ROWS[damage]
    done = dict(check(each_books, repair=True))
    assert done.pop("event", State.REPORTED) is State.REPORTED
    assert set(done.values()) == {State.REPAIRED}
    assert [kind for kind, _ in check(each_books)] == (["event"] if "event" in ROWS[damage] else [])
    if damage in (miscount, keep_slot):  # the others leave traces that tell of what was made up here
        invariants.check(each_books.database)


def test_cores_of_an_attempt_that_has_ended_are_given_back(each_books: Books) -> None:
    with each_books.database.read() as connection:
        slot = connection.execute(sa.select(host_leases)).one()
    with each_books.database.write() as connection:
        attempts.interrupt(connection, slot.job_id, slot.attempt, reason="x")
    each_books.work(upto=1)
    testing.admit_all(each_books.database)
    claimed = each_books.claim(stage="run")
    assert claimed is not None
    update(
        each_books,
        sa.update(attempt_rows)
        .where(attempt_rows.c.job_id == claimed.job_id)
        .values(state="interrupted", finished_at=1.0),
    )
    kinds = [kind for kind, _ in check(each_books, repair=True)]
    assert kinds == ["stuck-job", "lease"]
    assert check(each_books) == []


def test_an_attempt_that_nobody_took_from_its_dead_node_is_told(each_books: Books) -> None:
    update(
        each_books,
        sa.update(attempt_rows).where(attempt_rows.c.state == "running").values(lease_until=time.time() - 99),
    )
    assert check(each_books, repair=True) == [("overdue", State.REPORTED)]


def test_a_change_without_its_event_is_told(each_books: Books) -> None:
    with each_books.database.write() as connection:
        last = connection.scalar(sa.select(sa.func.max(events.c.id)))
        connection.execute(sa.delete(events).where(events.c.id == last))
    assert check(each_books, repair=True) == [("event", State.REPORTED)]


def test_bytes_of_an_attempt_that_is_about_to_end_are_left_alone(books: Books) -> None:
    digest = books.publish(a="1").digest
    assert check(books, repair=True) == []
    assert digest in books.store.digests()


def test_what_came_back_before_its_repair_is_left_alone(books: Books) -> None:
    lose_bytes(books)
    digest = exported(books)
    places = Places(store=books.store)
    found = fsck.check(books.database, places)
    (finding,) = found
    (books.store.root / "elsewhere").rename(books.wrapper(digest))
    assert finding.settle(repair=True).state is State.GONE
    assert books.row(digest).deleted_at is None
