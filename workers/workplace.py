"""What an attempt finds on its node."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from farm.db import Database
from farm.settings import Settings
from farm.store.artifacts import Store
from workers.forks import ForkServer
from workers.lease import Leases
from workers.ledger import Ledger
from workers.meter import Meter
from workers.steering import Steering


class Stopping:
    """Whether the node is shutting down: an event that selectors can wait for, too."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._reader, self._writer = os.pipe()

    def set(self) -> None:
        """Begin to shut down. May be called in a signal handler, and twice."""
        if not self._event.is_set():
            self._event.set()
            os.close(self._writer)  # the end of the pipe stays readable for everybody

    def is_set(self) -> bool:
        """Whether it has begun."""
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for it; whether it has begun."""
        return self._event.wait(timeout_s)

    def fileno(self) -> int:
        """A descriptor that is readable once it has begun."""
        return self._reader


class Busy:
    """How many attempts a node looks after; entered for each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def __enter__(self) -> None:
        with self._lock:
            self.count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.count -= 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workplace:
    """A node as its attempts see it.

    Attributes:
        settings: of the farm.
        database: where attempts are claimed and settled.
        leases: where the leases of its attempts are kept.
        ledger: where those that succeed are written.
        store: where artifacts are published.
        forks: where stage processes come from.
        entry: ``module:function`` that runs a stage.
        host_id: this host.
        node_id: this node.
        records: directory of the records of its attempts, see :class:`workers.groups.AttemptRecord`.
        scratch: directory of scratch directories.
        sdk_root: Cloud AI SDK; None where the host has none.
        environ: environment that stages may see parts of.
        num_threads: threads that one stage may compute with.
        meter: looks at what its attempts use.
        steering: what users ask of its attempts.
        stopping: set when the node shuts down.
        busy: how many attempts there are.
    """

    settings: Settings
    database: Database
    leases: Leases
    ledger: Ledger
    store: Store
    forks: ForkServer
    entry: str
    host_id: int
    node_id: int
    records: Path
    scratch: Path
    sdk_root: Path | None
    environ: Mapping[str, str]
    num_threads: int
    meter: Meter
    steering: Steering
    stopping: Stopping
    busy: Busy = dataclasses.field(default_factory=Busy)
