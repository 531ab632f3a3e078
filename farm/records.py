"""Frozen values that cross the border of the farm's storage modules. No SQLAlchemy row leaves them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArtifactRecord:
    """A published artifact: digest of its manifest, the stage that made it, and its size."""

    digest: str
    stage: str
    num_bytes: int
    num_files: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """What an attempt's process used.

    Attributes:
        cpu_s: CPU seconds, user and system, of the process group.
        peak_rss_bytes: peak resident memory.
        exit_code: as :mod:`subprocess` gives it, negative for a signal; None when no process was started.
        log_path: the attempt's log, relative to the log directory.
    """

    cpu_s: float = 0.0
    peak_rss_bytes: int = 0
    exit_code: int | None = None
    log_path: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grant:
    """Cores of one device that an attempt holds, by number."""

    device_id: int
    qid: int
    cores: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A claimed attempt: all that a node must know to carry it out.

    Attributes:
        inputs: artifact digest by input name.
        grants: cores held; empty for a stage that holds a host slot.
    """

    job_id: int
    attempt: int
    submission_id: int
    stage: str
    label: str
    spec: dict[str, Any]
    priority: int
    inputs: dict[str, str]
    grants: tuple[Grant, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claims:
    """What became of queued attempts that a node wanted.

    Attributes:
        taken: those that are the node's now.
        refused: why there was no room, by job; they go back to be placed again.
    """

    taken: tuple[Claim, ...]
    refused: dict[int, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Success:
    """An attempt whose artifact is published, with its figures and what it used."""

    job_id: int
    attempt: int
    artifact: ArtifactRecord
    figures: Mapping[str, Any]
    usage: Usage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """A message of the outbox."""

    id: int
    queue: str
    job_id: int
    attempt: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceRecord:
    """A device as its host reports it; its identity is board serial and PCI address, never the qid alone."""

    board_serial: str
    pci_address: str
    qid: int
    sku: str
    num_cores: int
    dram_mb: int
    simulated: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadyJob:
    """A job that may be placed.

    Attributes:
        priority: the highest of its own and those of the jobs that have followed it.
        ready_at: since when it waits for a place.
        chain: longest chain of jobs behind it.
        num_cores: cores wanted on one device; 0 when it wants a host slot.
    """

    id: int
    stage: str
    priority: int
    ready_at: float
    chain: int
    num_cores: int
    num_devices: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostCapacity:
    """A live host node and the slots that nobody holds and no queued job will take."""

    node_id: int
    host_id: int
    queue: str
    host: str
    num_slots: int
    free_slots: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceCapacity:
    """A live, healthy device node and the cores that nobody holds and no queued job will take."""

    node_id: int
    device_id: int
    queue: str
    name: str
    num_cores: int
    free_cores: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capacity:
    """Where jobs may be placed now."""

    hosts: tuple[HostCapacity, ...]
    devices: tuple[DeviceCapacity, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """A job and the node that it goes to, with the reason for people."""

    job_id: int
    node_id: int
    queue: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Admissible:
    """A waiting job whose inputs are done: what its action key is made of."""

    id: int
    stage: str
    spec: dict[str, Any]
    inputs: dict[str, str]
