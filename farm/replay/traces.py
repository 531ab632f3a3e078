"""A trace: what machines there are and what work came when. JSON lines, one task each behind a line of machines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from farm.errors import Usage
from farm.placement.estimates import Sample
from farm.records import Capacity, DeviceCapacity, HostCapacity

VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One job of a trace.

    Attributes:
        at: when it was submitted, in seconds since the trace began.
        after: tasks that must have ended before.
        seconds: how long it runs.
        peak_rss_bytes: memory of its host at its peak; 0 when that was not measured.
        keys: what its duration is predicted by, finest first (:func:`farm.placement.estimates.keys_of`).
    """

    id: int
    at: float
    after: tuple[int, ...] = ()
    stage: str
    kind: str = "sweep"
    owner: str = ""
    priority: int = 0
    num_cores: int = 0
    num_devices: int = 1
    exclusive: bool = False
    needs: Mapping[str, Any] | None = None
    seconds: float
    peak_rss_bytes: int = 0
    model: str = ""
    keys: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """Machines, all of them empty, and tasks in the order in which they were submitted.

    Attributes:
        history: samples by key of what was known before (:mod:`farm.placement.estimates`).
    """

    name: str
    capacity: Capacity
    tasks: tuple[Task, ...]
    history: Mapping[str, Sequence[Sample]] = dataclasses.field(default_factory=dict)


def to_lines(trace: Trace) -> Iterator[str]:
    """The trace as JSON lines."""
    machines = {
        "version": VERSION,
        "name": trace.name,
        "hosts": [_fields(host, drop=("holdings", "free_slots", "free_ram_bytes")) for host in trace.capacity.hosts],
        "devices": [_fields(device, drop=("holdings", "free_cores")) for device in trace.capacity.devices],
        "history": trace.history,
    }
    yield json.dumps(machines)
    for task in trace.tasks:
        defaults = {field.name: field.default for field in dataclasses.fields(Task)}
        yield json.dumps({name: value for name, value in _fields(task).items() if defaults[name] != _tuple(value)})


def from_lines(lines: Iterable[str]) -> Trace:
    """The trace of JSON lines.

    Raises:
        Usage: they are not a trace of this version, or a task comes before one that it waits for.
    """
    head, *rest = [json.loads(line) for line in lines if line.strip()] or [{}]
    if head.get("version") != VERSION:
        raise Usage(
            f"The trace's version is {head.get('version')!r}, expected {VERSION}. "
            "Record it again with `python -m farm.replay record`."
        )
    hosts = tuple(
        HostCapacity(**_read(host), free_slots=host["num_slots"], free_ram_bytes=host["ram_bytes"])
        for host in head["hosts"]
    )
    devices = tuple(DeviceCapacity(**_read(device), free_cores=device["num_cores"]) for device in head["devices"])
    tasks = tuple(Task(**{name: _tuple(value) for name, value in fields.items()}) for fields in rest)
    _check(tasks)
    capacity = Capacity(hosts=hosts, devices=devices)
    return Trace(name=head["name"], capacity=capacity, tasks=tasks, history=head["history"])


def _check(tasks: Iterable[Task]) -> None:
    known: set[int] = set()
    for task in tasks:
        for parent in task.after:
            if parent not in known:
                raise Usage(f"Task {task.id} comes after {parent}, expected a task of an earlier line.")
        if task.id in known:
            raise Usage(f"Two tasks have the id {task.id}, expected one.")
        known.add(task.id)


def _fields(value: Any, *, drop: tuple[str, ...] = ()) -> dict[str, Any]:
    found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: sorted(one) if isinstance(one, frozenset) else one for name, one in found.items() if name not in drop}


def _read(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: frozenset(value) if name == "warm" else _tuple(value) for name, value in fields.items()}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
