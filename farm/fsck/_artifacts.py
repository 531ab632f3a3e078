"""Whether the artifacts of the database and the bytes of the store are the same, and what is left beside them."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from farm.db import Database, now
from farm.errors import DamagedArtifact
from farm.fsck._findings import Finding
from farm.lifecycle.transitions import hold_graph
from farm.models import actions, artifacts, attempts
from farm.store import catalogue, collection, disposal
from farm.store.artifacts import Store
from farm.store.collection import Places
from farm.store.disposal import Leftover

_LOG = re.compile(r"(\d+)\.(\d+)\.log")


def check(database: Database, places: Places, *, deep: bool) -> Iterator[Finding]:
    """Artifacts that are lost, damaged, unknown or deleted by half, actions that lead to nothing, and leftovers."""
    store = places.store
    with store.faults("read"):
        there = set(store.digests())  # before the rows: an artifact's bytes come before its row
    with database.read() as connection:
        rows = {row.digest: row for row in connection.execute(sa.select(artifacts).order_by(artifacts.c.digest))}
        at = now(connection)
    for digest, row in rows.items():
        if row.deleted_at is None and digest in there:
            yield from _present(database, store, row, deep=deep)
        elif row.deleted_at is None and not store.touched_at(digest):
            words = f"the {row.stage} artifact {digest[:12]} has a row and no bytes; its work is done again when wanted"
            yield Finding(
                kind="lost", subject=digest, words=words, repair=functools.partial(_forget, database, store, digest)
            )
        elif digest in there and row.deleted_at < at - collection.RECENT_S:
            words = f"the artifact {digest[:12]} is deleted by the books and its bytes are there"
            yield _remove_bytes("half-deleted", database, store, digest, words=words)
    for digest in sorted(there - set(rows)):
        if store.touched_at(digest) < at - collection.RECENT_S:  # else its attempt may be about to end
            words = f"the artifact {digest[:12]} has bytes and no row"
            yield _remove_bytes("unknown", database, store, digest, words=words)
    yield from _dead_actions(database)
    yield from _leftovers(database, places)


def _present(database: Database, store: Store, row: Any, *, deep: bool) -> Iterator[Finding]:
    """What is wrong with an artifact that has a row and bytes."""
    try:
        with store.faults("read"):
            manifest = store.verify(row.digest, reread_after_s=0.0 if deep else None)
    except DamagedArtifact as error:
        if not store.touched_at(row.digest):
            return  # collected while we looked
        yield Finding(
            kind="damaged",
            subject=row.digest,
            words=str(error),
            repair=functools.partial(_set_aside, database, store, row.digest),
        )
        return
    size = (manifest.num_bytes, len(manifest.files))
    if (row.num_bytes, row.num_files) != size:
        words = (
            f"the row of artifact {row.digest[:12]} says {row.num_bytes} bytes in {row.num_files} files, its manifest "
            f"{size[0]} in {size[1]}"
        )
        repair = functools.partial(_correct_size, database, row.digest, size)
        yield Finding(kind="size", subject=row.digest, words=words, repair=repair)


def _forget(database: Database, store: Store, digest: str) -> bool:
    """Write that the bytes of an artifact are gone, unless they have come back."""
    with database.write() as connection:
        hold_graph(connection)
        if store.touched_at(digest):
            return False
        return catalogue.forget(connection, [digest], at=now(connection)) == 1


def _set_aside(database: Database, store: Store, digest: str) -> bool:
    """Take a damaged artifact out of its place and out of the books."""
    store.set_aside(digest)
    _forget(database, store, digest)
    return True


def _correct_size(database: Database, digest: str, size: tuple[int, int]) -> bool:
    with database.write() as connection:
        statement = sa.update(artifacts).where(artifacts.c.digest == digest)
        connection.execute(statement.values(num_bytes=size[0], num_files=size[1]))
    return True


def _remove_bytes(kind: str, database: Database, store: Store, digest: str, *, words: str) -> Finding:
    def remove() -> bool:
        old = time.time() - collection.RECENT_S
        return collection.remove(database, store, digest, untouched_since=old)

    return Finding(kind=kind, subject=digest, words=words, repair=remove)


def _dead_actions(database: Database) -> Iterator[Finding]:
    """Actions that lead to artifacts whose bytes are gone."""
    with database.read() as connection:
        found = connection.execute(
            sa.select(actions.c.action_key, artifacts.c.digest)
            .join(artifacts, artifacts.c.digest == actions.c.artifact)
            .where(artifacts.c.deleted_at.is_not(None))
            .order_by(actions.c.action_key)
        ).all()
    for row in found:
        yield Finding(
            kind="dead-action",
            subject=row.action_key,
            words=f"the action {row.action_key[:12]} leads to the artifact {row.digest[:12]}, which is deleted",
            repair=functools.partial(_forget_action, database, row.action_key, row.digest),
        )


def _forget_action(database: Database, action_key: str, digest: str) -> bool:
    gone = sa.select(artifacts.c.digest).where(artifacts.c.digest == digest, artifacts.c.deleted_at.is_not(None))
    with database.write() as connection:
        hold_graph(connection)
        deleted = connection.execute(
            sa.delete(actions).where(actions.c.action_key == action_key, actions.c.artifact.in_(gone))
        )
        return deleted.rowcount == 1


def _leftovers(database: Database, places: Places) -> Iterator[Finding]:
    """What crashes left, and logs of attempts that nobody knows."""
    with database.read() as connection:
        tried = {
            (row.job_id, row.number): row.state == "running"
            for row in connection.execute(sa.select(attempts.c.job_id, attempts.c.number, attempts.c.state))
        }
    found = disposal.leftovers(places.store, scratch=places.scratch, is_running=lambda *key: tried.get(key, False))
    for leftover in found:
        yield _leftover("leftover", leftover, words=f"{leftover.path} is what a crash left")
    if places.logs is not None:
        for leftover in disposal.old_logs(places.logs, older_than_s=disposal.LEFTOVER_AFTER_S):
            name = _LOG.fullmatch(leftover.path.name)
            if name is None or (int(name[1]), int(name[2])) not in tried:
                yield _leftover("log", leftover, words=f"{leftover.path} is the log of no attempt")


def _leftover(kind: str, leftover: Leftover, *, words: str) -> Finding:
    def delete() -> bool:
        there = Path(leftover.path).exists()
        disposal.delete([leftover])
        return there

    return Finding(kind=kind, subject=str(leftover.path), words=words, repair=delete)
