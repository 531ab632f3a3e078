"""All checks, in an order in which one repair does not make another finding."""

from __future__ import annotations

from collections.abc import Iterator

from farm.db import Database
from farm.fsck import _artifacts, _rows
from farm.fsck._findings import Finding
from farm.store.collection import Places


def check(database: Database, places: Places, *, deep: bool = False, repair: bool = False) -> Iterator[Finding]:
    """Everything that is not as it must be, as it is found.

    Args:
        database: the farm's.
        places: where its bytes lie.
        deep: read all bytes of all artifacts.
        repair: put right what can be.

    Raises:
        StorageFault: the store cannot be read or written.
    """
    for finding in _artifacts.check(database, places, deep=deep):
        yield finding.settle(repair=repair)
    for rows_check in _rows.CHECKS:
        for finding in list(rows_check(database)):
            yield finding.settle(repair=repair)
