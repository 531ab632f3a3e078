"""What the database notes about the use of artifacts, on both databases."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from farm import testing
from farm.db import Database, now
from farm.lifecycle import admission
from farm.models import artifacts


def row(database: Database, digest: str) -> Any:
    with database.read() as connection:
        return connection.execute(sa.select(artifacts).where(artifacts.c.digest == digest)).one()


def set_row(database: Database, digest: str, **values: float | None) -> None:
    with database.write() as connection:
        connection.execute(sa.update(artifacts).where(artifacts.c.digest == digest).values(**values))


def resolved(database: Database) -> tuple[testing.FakeHost, str, float]:
    """A host, the digest of a snapshot that a submission resolved, and when that was."""
    host = testing.add_host(database)
    testing.add_submission(database)
    (job_id,) = testing.admit_all(database)
    testing.finish(database, testing.claim(database, job_id, node_id=host.host_node), digest="snap")
    return host, "snap", row(database, "snap").used_at


def test_a_hit_saves_a_condemned_artifact(each_database: Database) -> None:
    _, digest, used_at = resolved(each_database)
    set_row(each_database, digest, condemned_at=1.0, used_at=1.0)
    testing.add_submission(each_database)
    testing.admit_all(each_database)
    found = row(each_database, digest)
    assert found.condemned_at is None
    assert found.used_at >= used_at


def test_a_claim_notes_the_use_of_its_inputs_but_not_each_time(each_database: Database) -> None:
    host, digest, _ = resolved(each_database)
    (export,) = testing.admit_all(each_database)
    set_row(each_database, digest, condemned_at=1.0, used_at=1.0)
    testing.finish(each_database, testing.claim(each_database, export, node_id=host.host_node), digest="onnx")
    noted = row(each_database, digest)
    assert noted.condemned_at is None
    with each_database.read() as connection:
        assert 1.0 < noted.used_at <= now(connection)
    compile8, compile14 = testing.admit_all(each_database)
    set_row(each_database, "onnx", used_at=noted.used_at - 1800)
    testing.claim(each_database, compile8, node_id=host.host_node)
    assert row(each_database, "onnx").used_at == noted.used_at - 1800
    set_row(each_database, "onnx", used_at=noted.used_at - 4000)
    testing.claim(each_database, compile14, node_id=host.host_node)
    assert row(each_database, "onnx").used_at >= noted.used_at


def test_a_deleted_artifact_that_is_published_again_is_as_new(each_database: Database) -> None:
    host, digest, _ = resolved(each_database)
    set_row(each_database, digest, condemned_at=1.0, used_at=1.0, deleted_at=2.0)
    testing.add_submission(each_database, testing.small_plan(tag="other"))
    with each_database.read() as connection:
        (job,) = (job for job in admission.admissible(connection, limit=9) if job.stage == "resolve")
    testing.admit_all(each_database)
    testing.finish(each_database, testing.claim(each_database, job.id, node_id=host.host_node), digest=digest)
    found = row(each_database, digest)
    assert (found.condemned_at, found.deleted_at) == (None, None)
    assert found.used_at > 2.0
