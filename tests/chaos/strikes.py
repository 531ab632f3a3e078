"""What can happen to a farm: the death of a process of each kind, and what is not a death."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable

import psutil
import sqlalchemy as sa
import valkey

from farm.errors import Refused
from farm.home import local
from farm.lifecycle import jobs
from farm.models import jobs as job_rows
from farm.states import FINAL, JobState
from tests.acceptance.running_farm import RunningFarm

KEEPER = "keeper"
# Kinds of processes, and how often each is struck: what stages leave behind is the hardest to put right.
KINDS = {
    "stage process": 4,
    "host node": 2,
    "device node": 2,
    "scheduler": 2,
    "valkey": 1,
    "fork server": 1,
    KEEPER: 1,
}
_RETRIABLE = (JobState.FAILED, JobState.CANCELLED, JobState.BLOCKED)
_HOLD_S = (1.0, 2.0)  # of the database, by somebody else


def victims(farm: RunningFarm) -> dict[str, list[int]]:
    """Processes that live at the moment, by kind."""
    found = local.running(farm.settings)
    if found is None:
        return {}
    alive = {name: child.pid for name, child in found.children.items() if child.lives()}
    nodes = [pid for name, pid in alive.items() if name.startswith(("host", "device"))]
    kinds = {
        "host node": [pid for name, pid in alive.items() if name == "host"],
        "device node": [pid for name, pid in alive.items() if name.startswith("device")],
        "scheduler": [pid for name, pid in alive.items() if name == "scheduler"],
        "valkey": [pid for name, pid in alive.items() if name == "valkey"],
        "stage process": farm.stage_pids(),
        "fork server": [pid for node in nodes for pid in _fork_servers(node)],
        KEEPER: [found.pid],
    }
    return {kind: sorted(pids) for kind, pids in kinds.items() if pids}


def _fork_servers(node: int) -> list[int]:
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(node).children():
            with contextlib.suppress(psutil.Error):
                if any("fork_server" in word for word in process.cmdline()):
                    found.append(process.pid)
    return found


def kill(farm: RunningFarm, *, kind: str, pid: int) -> bool:
    """SIGKILL; whether it was there. A keeper is started again by hand, as nobody else does."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    if kind == KEEPER:
        farm.wait_until(lambda: local.running(farm.settings) is None, what="the end of the keeper")
        farm.start()
    return True


class Harm:
    """What is done to a farm beside killing.

    Args:
        farm: the victim.
        rng: chooses.
    """

    def __init__(self, farm: RunningFarm, *, rng: random.Random) -> None:
        self._farm = farm
        self._rng = rng
        self._frozen: list[tuple[float, int]] = []  # until when, by the monotonic clock; the process
        self.ways: dict[str, Callable[[], bool]] = {
            "freeze": self._freeze,
            "flush": self._flush,
            "hold database": self._hold_database,
            "cancel": self._cancel,
            "retry": self._retry,
        }
        if farm.database.dialect == "postgresql":
            self.ways["end session"] = self._end_session

    def thaw(self, *, all_of_them: bool = False) -> None:
        """Let those processes go on whose time is over."""
        for entry in list(self._frozen):
            until, pid = entry
            if all_of_them or time.monotonic() >= until:
                self._frozen.remove(entry)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def await_victims(self, kind: str) -> list[int]:
        """Processes of a kind, as soon as there are some."""
        found: list[int] = []

        def are_there() -> bool:
            self.thaw()
            found[:] = victims(self._farm).get(kind, [])
            return bool(found)

        self._farm.wait_until(are_there, what=f"a {kind}")
        return found

    def _freeze(self) -> bool:
        """Stop a node for longer than its lease."""
        found = victims(self._farm)
        nodes = [pid for kind in ("host node", "device node") for pid in found.get(kind, [])]
        frozen = [pid for _, pid in self._frozen]
        nodes = [pid for pid in nodes if pid not in frozen]
        if not nodes:
            return False
        pid = self._rng.choice(nodes)
        try:
            self._farm.freeze(pid)
        except ProcessLookupError:
            return False
        settings = self._farm.settings
        self._frozen.append((time.monotonic() + settings.lease_s + 2 * settings.heartbeat_s, pid))
        return True

    def _flush(self) -> bool:
        broker = valkey.Valkey(unix_socket_path=str(self._farm.settings.broker_socket))
        try:
            broker.flushall()
        except valkey.exceptions.ConnectionError:  # it is being started again
            return False
        finally:
            broker.close()
        return True

    def _hold_database(self) -> bool:
        """Let nobody else write for a while."""
        # An engine without the farm's patience and rules: somebody else.
        other = sa.create_engine(self._farm.database.engine.url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with other.connect() as connection:
            if self._farm.database.dialect == "sqlite":
                connection.exec_driver_sql("PRAGMA busy_timeout = 60000")
                begin = ["BEGIN EXCLUSIVE"]
            else:
                begin = ["BEGIN", "LOCK TABLE jobs, attempts IN EXCLUSIVE MODE"]
            for statement in begin:
                connection.exec_driver_sql(statement)
            time.sleep(self._rng.uniform(*_HOLD_S))
            connection.exec_driver_sql("ROLLBACK")
        return True

    def _end_session(self) -> bool:
        """Let PostgreSQL end a session of the farm, whatever it is doing."""
        sessions = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        with self._farm.database.write() as connection:
            pids = sorted(connection.scalars(sa.text(sessions)))
            if not pids:
                return False
            return bool(connection.scalar(sa.select(sa.func.pg_terminate_backend(self._rng.choice(pids)))))

    def _cancel(self) -> bool:
        return self._ask(jobs.cancel, of=[state for state in JobState if state not in FINAL])

    def _retry(self) -> bool:
        return self._ask(jobs.retry, of=_RETRIABLE)

    def _ask(self, what: Callable[[sa.Connection, int], object], *, of: tuple[JobState, ...] | list[JobState]) -> bool:
        """Ask something of a random job in one of some states; whether the farm agreed."""
        with self._farm.database.write() as connection:
            chosen = sa.select(job_rows.c.id).where(job_rows.c.state.in_(list(map(str, of)))).order_by(job_rows.c.id)
            found = list(connection.scalars(chosen))
            if not found:
                return False
            try:
                what(connection, self._rng.choice(found))
            except Refused:
                return False
        return True
