"""Alembic's environment. The connection is given by :mod:`farm.schema`, or made from ``FARM_DATABASE_URL``."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from farm import db, models, settings


def run(connection: sa.Connection) -> None:
    """Run the migrations on an open connection, in its transaction."""
    models.speak_postgresql()
    context.configure(
        connection=connection,
        target_metadata=models.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given: sa.Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with db.open_database(settings.load().database_url).write() as opened:
        run(opened)
