"""A node without Celery: attempts of small stages on a real database, in real processes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from farm import settings as farm_settings
from farm import testing
from farm.db import Database
from farm.lifecycle import admission, claims
from farm.models import attempts, core_leases, host_leases
from farm.plan import Plan
from farm.settings import Settings
from farm.states import JobState
from farm.store import stores
from farm.views import queries
from qeff_engine import actions
from tests import small_sweep
from workers.forks import STAGE_PROCESS, ForkServer
from workers.lease import Leases
from workers.ledger import Ledger
from workers.meter import Meter
from workers.steering import Steering
from workers.supervisor import carry_out
from workers.workplace import Stopping, Workplace

LIMIT_S = 60.0  # a deadline, not a measurement: what takes so long hangs
FORKS = ForkServer(preload=(*STAGE_PROCESS, "tests.small_stages"))


@dataclasses.dataclass
class AttemptNode:
    """Carries out ready jobs one at a time, or in a thread."""

    workplace: Workplace
    host: testing.FakeHost
    database: Database
    settings: Settings

    def admit(self) -> None:
        """Admit whatever may be."""
        with self.database.write() as connection:
            for job in admission.admissible(connection, limit=100):
                key, parts = actions.action_key(job.stage, fields=job.fields, input_digests=job.inputs, toolchain={})
                admission.admit(connection, job.id, action_key=key, parts=parts, term=None)

    def enqueue(self, job_id: int) -> int:
        """Place a ready job here, on the first devices if it wants any; the attempt's number."""
        job = self.job(job_id)
        device_ids = self.host.device_ids[: job.num_devices]
        node_id = self.host.device_nodes[0] if device_ids else self.host.host_node
        with self.database.write() as connection:
            return admission.enqueue(
                connection, job_id, node_id=node_id, queue="q", reason="test", term=None, device_ids=device_ids
            )

    def place(self, job_id: int) -> Workplace:
        """The workplace of the node that a job was placed on."""
        node_id = self.host.device_nodes[0] if self.job(job_id).num_cores else self.host.host_node
        return dataclasses.replace(self.workplace, node_id=node_id)

    def run(self, job_id: int) -> queries.Job:
        """Carry out one attempt of a ready job; the job afterwards."""
        run_attempt(self.place(job_id), job_id, self.enqueue(job_id))
        return self.job(job_id)

    @contextlib.contextmanager
    def running(self, job_id: int, *, until: Path) -> Iterator[str]:
        """An attempt in a thread, from when its stage has written the file ``until``; ended with the block."""
        thread = threading.Thread(
            target=run_attempt, args=(self.place(job_id), job_id, self.enqueue(job_id)), daemon=True
        )
        thread.start()
        try:
            wait_until(until.exists, what=str(until))
            yield until.read_text()
        except BaseException:
            self.workplace.stopping.set()  # a test that fails shall not wait for a stage that goes on for ever
            raise
        finally:
            thread.join(LIMIT_S)
            assert not thread.is_alive()

    def job(self, job_id: int) -> queries.Job:
        """A job as it is now."""
        with self.database.read() as connection:
            return queries.job(connection, job_id)

    def attempts(self, job_id: int) -> list[queries.Attempt]:
        """Its attempts, oldest first."""
        with self.database.read() as connection:
            return queries.attempt_list(connection, job_id)

    def figures(self, job_id: int) -> dict[str, Any]:
        """What its successful attempt measured."""
        with self.database.read() as connection:
            return dict(connection.scalar(sa.select(attempts.c.figures).where(attempts.c.job_id == job_id)))

    def held(self) -> tuple[int, int]:
        """How many cores and slots are held or draining."""
        with self.database.read() as connection:
            cores, slots = (
                connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
                for table in (core_leases, host_leases)
            )
        return cores, slots

    def log(self, job_id: int) -> str:
        """The log of its last attempt."""
        path = self.attempts(job_id)[-1].log_path
        assert path is not None
        return (self.settings.log_dir / path).read_text()

    def submit(self, plan: Plan) -> list[int]:
        """Submit and admit; the ids of its jobs."""
        submission_id = testing.add_submission(self.database, plan)
        self.admit()
        with self.database.read() as connection:
            return [job.id for job in queries.job_list(connection, submission_id=submission_id, limit=None)][::-1]

    def run_all(self, job_ids: list[int]) -> None:
        """Carry out jobs in order, each once what it needs is done."""
        for job_id in job_ids:
            assert self.run(job_id).state is JobState.SUCCEEDED, self.job(job_id)
            self.admit()

    def leftovers(self) -> list[str]:
        """Files of attempts that should be gone."""
        places = (self.workplace.scratch, self.workplace.records, self.settings.store / "tmp")
        return [str(path) for place in places if place.exists() for path in place.iterdir()]


@contextlib.contextmanager
def attempt_node(tmp_path: Path, **changes: Any) -> Iterator[AttemptNode]:
    """A node with a host of two slots and two devices of 16 cores, of which it serves the first."""
    home = tmp_path / "home"
    home.mkdir()
    settings = dataclasses.replace(
        farm_settings.load(home=str(home), environ={}),
        **{"heartbeat_s": 0.05, "cancel_grace_s": 0.3, "meter_s": 0.05, **changes},
    )
    with testing.fresh_database(settings.database_url) as database:
        host = testing.add_host(database, cores=(16, 16))
        workplace = Workplace(
            settings=settings,
            database=database,
            leases=Leases(database, settings=settings),
            ledger=Ledger(database),
            store=stores.open_store(stores.place(settings)),
            forks=FORKS,
            entry="tests.small_stages:run_stage",
            host_id=host.host_id,
            node_id=host.host_node,
            records=settings.run_dir / "attempts" / "q",
            scratch=home / "scratch",
            sdk_root=None,
            environ={"PATH": os.environ["PATH"], "FARM_SECRET": "x"},
            num_threads=1,
            meter=Meter(period_s=settings.meter_s, lock=settings.run_dir / "memory.lock"),
            steering=Steering(database, poll_s=0.05),
            stopping=Stopping(),
        )
        yield AttemptNode(workplace=workplace, host=host, database=database, settings=settings)


def run_attempt(workplace: Workplace, job_id: int, attempt: int) -> None:
    """Claim a queued attempt and carry it out; nothing when it is not due or has no room."""
    since = time.monotonic()
    with workplace.database.write() as connection:
        found = claims.claim_all(
            connection,
            [(job_id, attempt)],
            node_id=workplace.node_id,
            lease_s=workplace.settings.lease_s,
            run_limits_s=workplace.settings.run_limits_s,
        )
    for claim in found.taken:
        carry_out(workplace, claim, since)


class Absent(Database):
    """A database that does not answer while ``away``; with ``hangs`` it does not even refuse."""

    def __init__(self, engine: sa.Engine, *, hangs: bool = False) -> None:
        super().__init__(engine)
        self._back = threading.Event()
        self._hangs = hangs
        self.refused = 0
        self._back.set()

    @property
    def away(self) -> bool:
        return not self._back.is_set()

    @away.setter
    def away(self, value: bool) -> None:
        self._back.clear() if value else self._back.set()

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        if self.away and not self._hangs:
            self.refused += 1
            raise sa.exc.OperationalError("", {}, ConnectionError("away"))
        assert self._back.wait(LIMIT_S)
        with super().write() as connection:
            yield connection


def cut_off(node: AttemptNode, *, hangs: bool = False) -> Absent:
    """Give a node a database that may go away."""
    database = Absent(node.database.engine, hangs=hangs)
    node.workplace = dataclasses.replace(
        node.workplace, database=database, leases=Leases(database, settings=node.settings), ledger=Ledger(database)
    )
    return database


def run_job(node: AttemptNode, prompt: str) -> int:
    """A run that is ready, with all that it needs done."""
    ids = node.submit(small_sweep.plan("model", cores=(8,), prompt=prompt))
    node.run_all(ids[:-1])
    return ids[-1]


def alive(*pids: int) -> list[int]:
    """Those of some processes that have not ended."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end between two looks
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def wait_until(condition: Callable[[], bool], *, what: str) -> None:
    """Wait for a state; fails the test after a deadline."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.01)
