"""The schema as migrations make it, on both databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from farm import db, models, schema, testing
from farm.db import Database
from farm.errors import DatabaseTooNew, FarmNotUp, StorageFault


def test_migrations_make_the_tables_of_the_models(each_database: Database) -> None:
    # Alembic cannot read the direction of an index's columns from SQLite; the test below compares indexes word by word.
    options = {"include_object": lambda _object, _name, kind, *_: kind != "index"}
    with each_database.read() as connection:
        found = compare_metadata(MigrationContext.configure(connection, opts=options), models.metadata)
    assert found == []


def test_indexes_and_checks_are_those_of_the_models(empty_url: str) -> None:
    # Alembic compares neither the conditions of indexes nor CHECK constraints.
    with testing.fresh_database(empty_url) as database:
        migrated = indexes_and_checks(database)
        with database.write() as connection:
            command.downgrade(schema.config(connection), "base")
            models.metadata.create_all(connection)
        assert migrated == indexes_and_checks(database)
    known = {index.name for table in models.metadata.tables.values() for index in table.indexes}
    assert known | {"ck_jobs_state", "ck_attempts_finished"} <= {name for name, _ in migrated}


def indexes_and_checks(database: Database) -> set[tuple[str, str]]:
    """Every index as the statement that makes it, and every CHECK constraint as its condition, by name."""
    text = {
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
        "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' "
        "AND tablename != 'alembic_version'",
    }[database.dialect]
    with database.read() as connection:
        found = {(name, sql) for name, sql in connection.execute(sa.text(text))}
        inspector = sa.inspect(connection)
        for table in models.metadata.tables:
            found |= {(check["name"], check["sqltext"]) for check in inspector.get_check_constraints(table)}
    return found


def test_there_is_one_head_and_the_program_knows_it() -> None:
    script = ScriptDirectory.from_config(schema.config())
    assert script.get_heads() == [db.HEAD]
    assert tuple(reversed([revision.revision for revision in script.walk_revisions()])) == db.REVISIONS


def test_down_and_up_again_with_rows_in_the_tables(each_database: Database) -> None:
    testing.add_host(each_database)
    testing.add_submission(each_database)
    testing.admit_all(each_database)
    with each_database.write() as connection:
        command.downgrade(schema.config(connection), "base")
    with each_database.read() as connection:
        assert set(sa.inspect(connection).get_table_names()) == {"alembic_version"}
    with each_database.write() as connection:
        command.upgrade(schema.config(connection), "head")
    each_database.check()
    testing.add_submission(each_database)


def test_upgrading_twice_changes_nothing(each_database: Database) -> None:
    submission_id = testing.add_submission(each_database)
    schema.upgrade(each_database.engine.url.render_as_string(hide_password=False))
    with each_database.read() as connection:
        assert list(connection.scalars(sa.select(models.submissions.c.id))) == [submission_id]


def test_a_database_of_a_newer_program_is_refused(each_database: Database) -> None:
    with each_database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseTooNew, match=r"9999.*Use the newer qeff-farm"):
        each_database.check()
    with pytest.raises(DatabaseTooNew, match="9999"):
        schema.upgrade(each_database.engine.url.render_as_string(hide_password=False))


def test_a_database_without_a_farm_says_how_to_start_one(empty_url: str) -> None:
    database = db.open_database(empty_url)
    try:
        with pytest.raises(FarmNotUp, match="farm up"):
            database.check()
    finally:
        database.dispose()


def test_a_database_that_cannot_be_written_is_one_clear_message() -> None:
    with pytest.raises(StorageFault, match=r"Cannot write the database .*nowhere/farm\.db"):
        schema.upgrade("sqlite:////nowhere/farm.db")


def test_a_farm_of_the_first_revision_keeps_its_rows_and_gets_owners(empty_url: str) -> None:
    with testing.fresh_database(empty_url) as database:
        testing.add_host(database)
        testing.add_submission(database, owner="grace")
        testing.admit_all(database)
        with database.write() as connection:
            command.downgrade(schema.config(connection), "0001")
        before = rows_of(database, "submissions", "jobs", "edges", "points", "events", "hosts", "devices", "cores")
        assert "owner" not in before["jobs"][0]
        with database.write() as connection:
            command.upgrade(schema.config(connection), "head")
        after = rows_of(database, *before)
        for table, rows in before.items():
            assert [{name: row[name] for name in rows[0]} for row in after[table]] == rows
        assert {row["owner"] for row in after["jobs"]} == {"grace"}
        with database.read() as connection:
            if database.dialect == "sqlite":
                assert connection.execute(sa.text("PRAGMA foreign_key_check")).all() == []
        database.check()
        testing.add_submission(database, testing.small_plan(tag="more"))


def rows_of(database: Database, *tables: str) -> dict[str, list[dict[str, object]]]:
    """Rows of tables as they are, whatever columns they have now."""
    with database.read() as connection:
        return {
            name: [dict(row) for row in connection.execute(sa.text(f"SELECT * FROM {name} ORDER BY 1, 2")).mappings()]
            for name in tables
        }
