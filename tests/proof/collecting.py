"""The garbage collection beside everything else: it stands still between its transactions for as long as one wants."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from farm import models
from farm.db import Database
from farm.errors import StaleTransition
from farm.store import collection, disposal
from farm.store.collection import Places, Policy
from tests.proof import snapshot
from tests.proof.shelf import Shelf
from tests.proof.snapshot import Snapshot
from tests.proof.stepping import Stepped

EVERYTHING = Policy(unused_for_s=0.0, grace_s=0.0, recent_s=0.0)


class Collecting:
    """One round of the garbage collection at a time.

    Attributes:
        struck: how often an artifact was taken from the books, by digest.
    """

    def __init__(self, database: Database, *, shelf: Shelf, clock: Callable[[], float]) -> None:
        self.struck = collections.Counter[str]()
        self._database, self._shelf, self._clock = database, shelf, clock
        self._round: Stepped | None = None

    def begin(self, policy: Policy, *, term: int | None) -> None:
        """Begin a round, for a scheduler that believes that it leads or for a user, unless one is under way."""
        if self._round is None:
            named: dict[str, Any] = {"policy": policy, "term": term}
            places = Places(store=self._shelf.store)
            self._round = Stepped(
                self._database,
                lambda database: collection.collect(database, places, **named),
                watch=lambda: self._watched(policy, term=term),
            )

    def go_on(self, *, steps: int) -> None:
        """Let the round go on for some transactions."""
        for _ in range(steps):
            if self._round is None:
                return
            with contextlib.suppress(StaleTransition):
                if self._round.step():
                    continue
            self._round = None

    def unlock(self) -> None:
        """Let the round go on until it holds no lock of the store: who publishes waits for that."""
        while self._shelf.store.num_locks:
            self.go_on(steps=1)

    def kill(self) -> None:
        """End the process, wherever its round stands."""
        if self._round is not None:
            self._round.kill()
        self._round = None

    @contextlib.contextmanager
    def _watched(self, policy: Policy, *, term: int | None) -> Iterator[None]:
        before = snapshot.take(self._database)
        try:
            yield
        finally:
            after = snapshot.take(self._database)
            changed = {name for name in before.rows if before.rows[name] != after.rows[name]}
            assert changed <= {"artifacts", "actions"}, changed
            late = term is not None and [row.term for row in before[models.leader]] != [term]
            assert not late or not changed, changed
            self.struck.update(_struck(before, after, policy=policy, now=self._clock()))
            _budget_is_used(before, after, policy=policy, num_bytes=self._bytes_without_rows(after))

    def _bytes_without_rows(self, rows: Snapshot) -> int:
        held = disposal.holdings(self._shelf.store)
        known = {row.digest for row in rows[models.artifacts] if row.deleted_at is None}
        return sum(blob.num_bytes for digest, blobs in held.items() if digest not in known for blob in blobs)


def _struck(before: Snapshot, after: Snapshot, *, policy: Policy, now: float) -> list[str]:
    """What a transaction took from the books. Asserts that nobody wanted that, nor what it condemned."""
    was = {row.digest: row for row in before[models.artifacts]}
    needed = _needed(before)
    found = []
    for row in after[models.artifacts]:
        old = was[row.digest]
        if row == old:
            continue
        assert old.pinned is None, old
        assert old.deleted_at is None, old
        if row.deleted_at is not None:
            assert row.digest not in needed, old
            assert old.condemned_at is not None, old
            assert old.condemned_at <= now - policy.grace_s, old
            found.append(row.digest)
        elif row.condemned_at is not None:
            assert max(old.created_at, old.used_at or 0.0) <= now - policy.recent_s, old
        else:
            assert row.digest in needed, old
    return found


def _needed(rows: Snapshot) -> set[str]:
    """The inputs of jobs that have not ended."""
    jobs = {row.id: row for row in rows[models.jobs]}
    return {jobs[one.parent_id].artifact for one in rows[models.edges] if jobs[one.child_id].finished_at is None}


def _budget_is_used(before: Snapshot, after: Snapshot, *, policy: Policy, num_bytes: int) -> None:
    """What was condemned last would be over the budget together with what stays, and with so many bytes without rows.

    An artifact that is within the budget is not condemned for it.
    """
    condemned_before = {row.digest for row in before[models.artifacts] if row.condemned_at is not None}
    there = [row for row in after[models.artifacts] if row.deleted_at is None]
    fresh = [row for row in there if row.condemned_at is not None and row.digest not in condemned_before]
    if policy.unused_for_s is not None or not fresh:
        return
    assert policy.budget_bytes is not None, fresh
    last = max(fresh, key=lambda row: (max(row.created_at, row.used_at or 0.0), row.digest))
    kept = [row for row in there if row.condemned_at is None or row.digest in _needed(before) or row is last]
    assert num_bytes + sum(row.num_bytes for row in kept) > policy.budget_bytes, (fresh, kept)
