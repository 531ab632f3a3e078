"""Bring a database to this program's revision: ``python -m farm.schema upgrade``. The only user of Alembic here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

import migrations
from farm import db, settings
from farm.errors import DatabaseTooNew, FarmError, FarmNotUp, Refused, StorageFault

# Serializes upgrades of one PostgreSQL database; any number that nobody else uses.
_UPGRADE_LOCK = 7_200_100


def config(connection: sa.Connection | None = None) -> Config:
    """Alembic's configuration for the revisions that this program ships."""
    found = Config()
    found.set_main_option("script_location", str(Path(migrations.__file__).parent))
    found.attributes["connection"] = connection
    return found


def upgrade(url: str) -> None:
    """Create or upgrade the tables.

    Raises:
        DatabaseTooNew: a newer program wrote the database.
        StorageFault: the database cannot be written.
    """
    database = db.open_database(url)
    try:
        try:
            database.check()
        except (DatabaseTooNew, FarmNotUp) as error:
            if isinstance(error, DatabaseTooNew):
                raise
        except Refused:
            pass  # older: that is what we are here for
        with database.write() as connection:
            if database.dialect == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
            command.upgrade(config(connection), "head")
    except sa.exc.DBAPIError as error:
        raise StorageFault(
            f"Cannot write the database {database.engine.url.render_as_string()}: {error.orig}. "
            "Check that it exists, that you may write it and that the disk is not full."
        ) from error
    finally:
        database.dispose()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m farm.schema", description=__doc__)
    parser.add_argument("command", choices=["upgrade"])
    parser.add_argument("--home", help="home of the farm (FARM_HOME)")
    options = parser.parse_args()
    try:
        upgrade(settings.load(home=options.home).database_url)
    except FarmError as error:
        sys.stderr.write(f"farm.schema: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
