"""What all tables share: metadata, types, and the ways to write conditions that partial indexes are found by."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME: sa.Double[float] = sa.Double()

_WHERE = "where"  # key of an index's condition in its info


def literal(value: str | int) -> sa.BindParameter[str | int]:
    """A value that is written into the statement, for columns of partial indexes.

    With a parameter in its place neither database can know that the index covers the question.
    """
    return sa.literal(str(value) if isinstance(value, str) else value, literal_execute=True)


def literals(values: Iterable[str]) -> sa.BindParameter[list[str]]:
    """As :func:`literal`, for ``IN``; sorted, since SQLite compares the list with the index's word by word."""
    return sa.bindparam(None, sorted(str(value) for value in values), expanding=True, literal_execute=True)


def one_of(column: str, values: Iterable[str]) -> str:
    """The SQL condition that a column has one of some values."""
    return f"{column} IN ({', '.join(repr(str(value)) for value in sorted(values))})"


def partial_index(name: str, *columns: str | sa.TextClause, where: str, unique: bool = False) -> sa.Index:
    """An index over the rows that a condition holds for."""
    return sa.Index(name, *columns, unique=unique, sqlite_where=sa.text(where), info={_WHERE: where})


def speak_postgresql() -> None:
    """Give the partial indexes their condition for PostgreSQL, too: before schemas are compared or created.

    Not at import, since SQLAlchemy then loads its PostgreSQL drivers: a seventh of the CPU of ``farm list``.
    """
    for table in metadata.tables.values():
        for index in table.indexes:
            if _WHERE in index.info:
                index.dialect_options["postgresql"]["where"] = sa.text(index.info[_WHERE])
