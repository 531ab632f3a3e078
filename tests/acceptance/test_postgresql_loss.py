"""A farm on a PostgreSQL that is stopped, killed and started again in mid-run, with real processes."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from tests import small_sweep
from tests.acceptance.running_farm import RunningFarm, running_farm
from tests.databases import empty_postgresql


class Server:
    """The PostgreSQL server of this test process, as its operator has it."""

    def __init__(self, url: sa.URL) -> None:
        self._url = url
        engine = sa.create_engine(url)
        with engine.connect() as connection:
            self._data = Path(str(connection.scalar(sa.text("SHOW data_directory"))))
            backend = psutil.Process(int(connection.scalar(sa.text("SELECT pg_backend_pid()")) or 0))
            parent = backend.parent()
            assert parent is not None
            self._postmaster = parent
            self._command = parent.cmdline()
        engine.dispose()
        self._started: subprocess.Popen[bytes] | None = None

    def stop(self, number: signal.Signals) -> None:
        """End it with a signal; SIGQUIT is its immediate shutdown, SIGKILL a crash."""
        children = self._postmaster.children(recursive=True)
        self._postmaster.send_signal(number)
        # After a crash the others notice that their postmaster is gone.
        _, alive = psutil.wait_procs([self._postmaster, *children], timeout=30)
        assert alive == []
        if self._started is not None:
            self._started.wait()

    def start(self) -> None:
        """Start it on the same directory."""
        owner = pwd.getpwuid(self._data.stat().st_uid)
        as_owner = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
        process = subprocess.Popen(
            self._command, cwd=self._data, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_owner
        )
        self._postmaster = psutil.Process(process.pid)
        self._started = process

    def forget(self) -> None:
        """Leave it to the fixture that made it, which does not wait for it as a parent does."""
        if self._started is not None:
            self._started.returncode = 0

    def kill_a_backend(self) -> None:
        """SIGKILL to one session's process: the server ends all others, too, and recovers."""
        engine = sa.create_engine(self._url)
        with engine.connect() as connection:
            query = sa.text("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid != :mine")
            mine = connection.scalar(sa.text("SELECT pg_backend_pid()"))
            victim = int(connection.execute(query, {"mine": mine}).scalars().first() or 0)
        engine.dispose()
        os.kill(victim, signal.SIGKILL)

    def answers(self) -> bool:
        """Whether it takes connections."""
        engine = sa.create_engine(self._url)
        try:
            with engine.connect():
                return True
        except sa.exc.OperationalError:
            return False
        finally:
            engine.dispose()


@pytest.fixture(scope="module")
def server(postgresql_url: sa.URL) -> Iterator[Server]:
    # What is committed must survive a crash of the server here, if not one of the machine.
    admin = sa.create_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text("ALTER SYSTEM SET synchronous_commit = on"))
        connection.execute(sa.text("SELECT pg_reload_conf()"))
    admin.dispose()
    found = Server(postgresql_url)
    yield found
    found.forget()


@pytest.fixture(scope="module")
def farm(server: Server, postgresql_url: sa.URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFarm]:
    home = tmp_path_factory.mktemp("loss") / "home"
    with running_farm(home, database_url=empty_postgresql(postgresql_url), lease_s=40.0) as found:
        yield found


LOSSES = {
    "restart": (signal.SIGINT, True),
    "immediate shutdown": (signal.SIGQUIT, True),
    "crash": (signal.SIGKILL, True),
    "crash of a session": (signal.SIGKILL, False),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_goes_on_and_a_sweep_ends_over_a(loss: str, farm: RunningFarm, server: Server, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    waiting = farm.submit(small_sweep.plan(loss, cores=(8,), prompt=f"wait={flag}"))
    farm.wait_until(flag.exists, what="the run")
    stage = int(flag.read_text())
    sweep = farm.submit(small_sweep.plan(f"sleep=0.1;{loss}", prompt=f"sleep=0.1;{loss}"))
    number, all_of_it = LOSSES[loss]
    if all_of_it:
        server.stop(number)
        server.start()
    else:
        server.kill_a_backend()
    farm.wait_until(server.answers, what="the server")
    assert psutil.pid_exists(stage)
    farm.wait_for_end(sweep)
    flag.unlink()
    farm.wait_for_end(waiting)
    farm.assert_sound(waiting)
    farm.assert_sound(sweep)
    assert farm.starts()[farm.jobs(waiting)[-1].id] == 1
