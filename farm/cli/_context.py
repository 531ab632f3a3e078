"""What a command gets besides its options: settings, output and the database, opened when first used."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from farm import settings as farm_settings
from farm.cli._output import Output
from farm.errors import DatabaseBusy, FarmNotUp, StorageFault, Usage

if TYPE_CHECKING:
    import sqlalchemy as sa

    from farm.db import Database


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """The surroundings of a command."""

    settings: farm_settings.Settings
    out: Output

    @functools.cached_property
    def database(self) -> Database:
        """The farm's database.

        Raises:
            FarmNotUp: there is none in this home.
            Refused: it was written by another version of the program.
        """
        url = self.settings.database_url
        path = url.removeprefix("sqlite:///").partition("?")[0]
        if self.settings.embedded_database and not path.startswith("file:") and not Path(path).exists():
            raise FarmNotUp(
                f"There is no farm in {self.settings.home}: it has no database. Start one with `farm up`, or say "
                "where it is with --home or FARM_HOME."
            )
        from farm import db

        database = db.open_database(url)
        with _storage_faults(self.settings):
            database.check()
        return database

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A read transaction."""
        with _storage_faults(self.settings), self.database.read() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A write transaction, committed at the end."""
        with _storage_faults(self.settings), self.database.write() as connection:
            yield connection

    @contextlib.contextmanager
    def storage_faults(self) -> Iterator[None]:
        """Turn a database that cannot be read or written into one sentence, where transactions are not our own."""
        with _storage_faults(self.settings):
            yield

    def heard_since(self, now: float) -> float:
        """Nodes that were not heard since then count as dead."""
        return now - self.settings.lease_s


@contextlib.contextmanager
def _storage_faults(settings: farm_settings.Settings) -> Iterator[None]:
    """Turn a database that cannot be read or written into one sentence."""
    import sqlalchemy as sa

    from farm import db

    try:
        yield
    except sa.exc.DBAPIError as error:
        if db.is_busy(error):
            raise DatabaseBusy(
                f"The database of {settings.home} is busy: another process has held it for "
                f"{db.BUSY_TIMEOUT_MS / 1000:g} s. Nothing was written; try again."
            ) from error
        where = settings.home if settings.embedded_database else sa.make_url(settings.database_url).host
        raise StorageFault(
            f"The database of {where} does not work: {error.orig}. `farm doctor` checks the home, the disk and the "
            "database."
        ) from error


def make(options: argparse.Namespace) -> Context:
    """The surroundings that the options and the environment ask for."""
    try:
        settings = farm_settings.load(home=getattr(options, "home", None))
    except ValueError as error:
        raise Usage(f"A FARM_ variable has a wrong value: {error}.") from error
    return Context(settings=settings, out=Output(quiet_talk=getattr(options, "json", False)))
