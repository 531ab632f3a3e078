"""What a starting node does about the one before it, so that a killed node costs seconds and not a whole lease.

The caller holds the lock of the queue, so every earlier node of it has ended. What may have outlived a node are process
groups of its attempts; the records that it kept say which.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import filelock

from farm.errors import StaleTransition, StorageFault
from farm.lifecycle import attempts, reaping, succession
from farm.lifecycle.succession import Key
from farm.settings import Settings
from farm.store.artifacts import Store, remove_tree
from workers.groups import AttemptRecord
from workers.workplace import Workplace

_logger = logging.getLogger(__name__)
_REASON = "Its node ended."


def take_over(workplace: Workplace) -> None:
    """End what is left of earlier attempts, then give their jobs and cores back."""
    unkillable = _end_groups(workplace.records, store=workplace.store)
    with workplace.database.read() as connection:
        estate = succession.estate(connection, node_id=workplace.node_id)
    for key in estate.running:
        _settle(workplace, key, gone=key not in unkillable)
    with workplace.database.write() as connection:
        for job_id, attempt in estate.draining:
            if (job_id, attempt) not in unkillable:
                attempts.confirm_gone(connection, host_id=workplace.host_id, job_id=job_id, attempt=attempt)
        for job_id, attempt in estate.queued:
            with contextlib.suppress(StaleTransition):
                attempts.give_back(connection, job_id, attempt, reason=_REASON)
    if estate.running or estate.queued:
        _logger.info("gave back %d running and %d queued jobs", len(estate.running), len(estate.queued))


def _settle(workplace: Workplace, key: Key, *, gone: bool) -> None:
    """Take an attempt from its dead node."""
    job_id, attempt = key
    with contextlib.suppress(StaleTransition), workplace.database.write() as connection:
        reaping.lose(connection, job_id, attempt, reason=_REASON, term=None)
        if gone:
            attempts.confirm_gone(connection, host_id=workplace.host_id, job_id=job_id, attempt=attempt)


def sweep(settings: Settings) -> int:
    """End what attempts of this home have left running after their nodes ended; how many there were.

    A node that lives keeps its own: it holds the lock of its queue.
    """
    count = 0
    for records in sorted((settings.run_dir / "attempts").glob("*")):
        with contextlib.suppress(filelock.Timeout), filelock.FileLock(lock_path(settings, records.name), timeout=0):
            count += len(list(records.glob("*.json")))
            _end_groups(records, store=Store(settings.store))
    return count


def lock_path(settings: Settings, queue: str) -> Path:
    """The file that the one node of a queue locks."""
    return settings.run_dir / f"{queue}.lock"


def _end_groups(records: Path, *, store: Store) -> set[Key]:
    """Kill recorded process groups and remove their files; the attempts whose group cannot be killed."""
    unkillable: set[Key] = set()
    for record in AttemptRecord.read_all(records):
        if not record.group.kill():
            _logger.error("job %d: its processes cannot be killed", record.job_id)
            unkillable.add((record.job_id, record.attempt))
            continue
        try:
            store.discard(record.tree)
            remove_tree(record.scratch)
            record.remove(records)
        except (OSError, StorageFault):
            _logger.exception("job %d: cannot clean up", record.job_id)
    return unkillable
