"""A database and a store that belong together, and what must be true of both."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from farm import testing
from farm.db import Database
from farm.lifecycle import attempts
from farm.lifecycle.transitions import hold_graph
from farm.models import actions, artifacts, jobs
from farm.records import ArtifactRecord, Claim, Usage
from farm.store.artifacts import Store

DAY_S = 86_400.0


@dataclasses.dataclass
class Books:
    """Does the work of jobs: publishes a small tree for each and records it."""

    database: Database
    store: Store
    host: testing.FakeHost

    @classmethod
    def open(cls, database: Database, root: Path) -> Books:
        """Books with one host."""
        return cls(database=database, store=Store(root), host=testing.add_host(database))

    def publish(self, *, stage: str = "resolve", link: Path | None = None, **files: str) -> ArtifactRecord:
        """Publish a tree without telling the database."""
        tree = self.store.new_tree()
        for name, text in files.items():
            (tree / name).write_text(text)
        if link is not None:
            os.link(link, tree / link.name)
        return self.store.publish(tree, stage=stage)

    def work(self, *, upto: int = 99, tag: str = "") -> dict[str, str]:
        """Do up to so many jobs, one after another; the artifacts by the label of their job."""
        done: dict[str, str] = {}
        while len(done) < upto:
            admitted = testing.admit_all(self.database)
            claimed = self.claim()
            if claimed is None and not admitted:
                return done
            if claimed is None:
                continue  # hits, whose children are to be admitted
            for digest in claimed.inputs.values():
                self.store.path(digest)  # as a stage does, which fails without one
            record = self.publish(stage=claimed.stage, content=f"{claimed.label}{claimed.spec}{tag}")
            with self.database.write() as connection:
                attempts.succeed(
                    connection, claimed.job_id, claimed.attempt, artifact=record, figures={}, usage=Usage()
                )
            done[claimed.label] = record.digest
        return done

    def claim(self, *, stage: str | None = None) -> Claim | None:
        """Claim the first ready job, of a stage if that is given; None if there is no such job."""
        query = sa.select(jobs.c.id, jobs.c.num_cores).where(jobs.c.state == "ready").order_by(jobs.c.id)
        if stage is not None:
            query = query.where(jobs.c.stage == stage)
        with self.database.read() as connection:
            ready = connection.execute(query).first()
        if ready is None:
            return None
        node = self.host.device_nodes[0] if ready.num_cores else self.host.host_node
        return testing.claim(self.database, ready.id, node_id=node)

    def row(self, digest: str) -> Any:
        """The row of an artifact."""
        with self.database.read() as connection:
            return connection.execute(sa.select(artifacts).where(artifacts.c.digest == digest)).one()

    def age(self, *digests: str, days: float) -> None:
        """Let artifacts be made and last used some days ago."""
        with self.database.write() as connection:
            for digest in digests:
                row = connection.execute(sa.select(artifacts).where(artifacts.c.digest == digest)).one()
                connection.execute(
                    sa.update(artifacts)
                    .where(artifacts.c.digest == digest)
                    .values(
                        created_at=row.created_at - days * DAY_S,
                        used_at=(row.used_at or row.created_at) - days * DAY_S,
                        condemned_at=None if row.condemned_at is None else row.condemned_at - days * DAY_S,
                    )
                )
        for digest in digests:
            wrapper = self.wrapper(digest)
            with contextlib.suppress(FileNotFoundError):  # collected meanwhile
                touched_at = wrapper.stat().st_mtime - days * DAY_S
                os.utime(wrapper, (touched_at, touched_at))

    def wrapper(self, digest: str) -> Path:
        """Where an artifact lies."""
        return self.store.root / "objects" / digest[:2] / digest

    def actions_without_bytes(self) -> list[str]:
        """Actions that lead to nothing, at a moment when nobody changes that: there must be none."""
        with self.database.write() as connection:
            hold_graph(connection)
            known = connection.scalars(sa.select(actions.c.artifact).where(actions.c.artifact.is_not(None))).all()
            return sorted(set(known) - set(self.store.digests()))
