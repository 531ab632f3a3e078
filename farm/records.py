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
        run_limit_s: how long it may run; None for as long as it takes.
        left_s: until the deadline of the whole; None when there is none.
        ram_bytes: memory of the host that is reserved for it.
        toolchain: versions by name in its action key.
        ram_known: that is what it was predicted to need; else it is a slot's share.
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
    run_limit_s: float | None = None
    left_s: float | None = None
    ram_bytes: int = 0
    ram_known: bool = False
    toolchain: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a user allows the jobs of a submission; None for no limit of the user's.

    Attributes:
        wait_limit_s: how long each may wait for a place.
        run_limit_s: how long each attempt may run.
        deadline_s: how long the whole may take, from now.
    """

    wait_limit_s: float | None = None
    run_limit_s: float | None = None
    deadline_s: float | None = None


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
    """An attempt whose artifact is published, with its figures and what it used.

    Attributes:
        as_keyed: it ran with the toolchain that its action key names, so others may have its result by that key.
    """

    job_id: int
    attempt: int
    artifact: ArtifactRecord
    figures: Mapping[str, Any]
    usage: Usage
    as_keyed: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """A message of the outbox."""

    id: int
    queue: str
    job_id: int
    attempt: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceRecord:
    """A device as its host reports it; its identity is board serial and PCI address, never the qid alone.

    Attributes:
        status: in the tool's words; of one that is not ``Ready`` the tool may know neither serial nor cores.
        free_cores: cores that no program holds; None when that was not asked.
    """

    board_serial: str
    pci_address: str
    qid: int
    sku: str
    num_cores: int
    dram_mb: int
    simulated: bool
    status: str = "Ready"
    free_cores: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadyJob:
    """A job that may be placed.

    Attributes:
        kind: class of urgency: interactive, nightly or sweep.
        owner: who asked for it, for fair shares.
        priority: the highest of its own and those of the jobs that have followed it.
        ready_at: since when it waits for a place.
        chain: longest chain of jobs behind it.
        rest_s: predicted seconds of the longest chain behind it, itself included; 0 when nobody knows.
        num_cores: cores wanted on each device; 0 when it wants a host slot.
        num_devices: devices of one host that it spans.
        exclusive: nobody else may use its devices meanwhile.
        needs: what its place must be (``sku``, ``labels``, ``host``, ``sdk``); None when any will do.
        ram_bytes: predicted peak of the host's memory; 0 when nobody knows.
        expected_s: predicted running time, the median.
        reserved_s: predicted running time that reservations are made with, the 90th percentile.
        avoid: devices that it has just failed on.
        model: what it loads; a device that has run it lately is preferred. Empty when that does not matter.
    """

    id: int
    stage: str
    kind: str = "sweep"
    owner: str = ""
    priority: int
    ready_at: float
    chain: int
    rest_s: float = 0.0
    num_cores: int
    num_devices: int
    exclusive: bool = False
    needs: Mapping[str, Any] | None = None
    ram_bytes: int = 0
    expected_s: float | None = None
    reserved_s: float | None = None
    avoid: frozenset[int] = frozenset()
    model: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holding:
    """What a running or queued job takes of one device or host.

    Attributes:
        amount: cores of the device, or slots of the host. What is still draining counts. 0 of a host: a run on its
            devices, of which only the memory counts here.
        ram_bytes: memory of the host that is reserved for it.
        ends_at: predicted end by the database's clock, already put off when it was exceeded; None when nobody knows.
    """

    job_id: int
    amount: int
    ram_bytes: int = 0
    ends_at: float | None = None
    exclusive: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostCapacity:
    """A live host node and the slots that nobody holds and no queued job will take.

    Attributes:
        labels: what a user has said about the host.
        sdk: version of its SDK.
        ram_bytes: memory that jobs may reserve altogether: less than the host has. 0 when memory is not counted.
        free_ram_bytes: of that, what no running or queued job has reserved.
        queued_s: predicted seconds that each slot will be busy with what is queued.
    """

    node_id: int
    host_id: int
    queue: str
    host: str
    labels: tuple[str, ...] = ()
    sdk: str = ""
    num_slots: int
    free_slots: int
    queued_s: float = 0.0
    ram_bytes: int = 0
    free_ram_bytes: int = 0
    holdings: tuple[Holding, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceCapacity:
    """A live, healthy device node and the cores that nobody holds and no queued job will take.

    Attributes:
        board: serial number of the card; the devices of a job that spans several are taken from one if possible.
        labels: what a user has said about the device or its host.
        sdk: version of its host's SDK.
        warm: models that it has run lately.
    """

    node_id: int
    device_id: int
    host_id: int = 0
    host: str = ""
    queue: str
    name: str
    sku: str = ""
    board: str = ""
    labels: tuple[str, ...] = ()
    sdk: str = ""
    simulated: bool = False
    num_cores: int
    free_cores: int
    holdings: tuple[Holding, ...] = ()
    warm: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capacity:
    """Where jobs may be placed now.

    Attributes:
        hosts: with a live node.
        devices: with a live node.
        silent_hosts: hosts of such devices that have none: no slot of theirs is to be had, but their memory counts.
    """

    hosts: tuple[HostCapacity, ...]
    devices: tuple[DeviceCapacity, ...]
    silent_hosts: tuple[HostCapacity, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """A job and the node that it goes to, with the reason for people.

    Attributes:
        device_ids: the devices whose cores it gets, that of the node first; empty for a host slot.
        ram_bytes: memory of the host to reserve for a stage of which none was predicted; 0 when the prediction stands,
            and of a run of which nobody knows what it takes.
    """

    job_id: int
    node_id: int
    queue: str
    device_ids: tuple[int, ...] = ()
    ram_bytes: int = 0
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waiting:
    """Why a ready job is not placed, and when it is expected to be; None when nobody can tell."""

    reason: str
    forecast_at: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Admissible:
    """A waiting job whose inputs are done: what its action key is made of.

    Attributes:
        fields: its spec, with what of its place makes it other work.
    """

    id: int
    stage: str
    fields: dict[str, Any]
    inputs: dict[str, str]
