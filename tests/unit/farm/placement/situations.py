"""Made-up farms and lines of jobs for property tests: what is held and what is free always add up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hypothesis import strategies as st

from farm.records import Capacity, DeviceCapacity, Holding, HostCapacity, ReadyJob

NOW = 10_000.0
GIB = 2**30

_ends = st.one_of(st.none(), st.floats(NOW - 100, NOW + 5_000))


@st.composite
def _devices(draw: st.DrawFn, *, host_id: int, first: int) -> list[DeviceCapacity]:
    found = []
    for number in range(first, first + draw(st.integers(0, 4))):
        total = draw(st.sampled_from([14, 16]))
        held = _holdings(draw, total=total, first=1000 * number)
        found.append(
            DeviceCapacity(
                node_id=number,
                device_id=number,
                host_id=host_id,
                host=f"host{host_id}",
                queue=f"device.{number:03}",
                name=f"device/{number}",
                sku="ultra" if total == 16 else "standard",
                board=draw(st.sampled_from(["a", "b", ""])),
                labels=tuple(draw(st.lists(st.sampled_from(["fast", "lab"]), max_size=2, unique=True))),
                sdk=draw(st.sampled_from(["1.19.6", "1.20"])),
                num_cores=total,
                free_cores=total - sum(one.amount for one in held),
                holdings=held,
                warm=draw(st.sampled_from([frozenset(), frozenset({"m"})])),
            )
        )
    return found


def _holdings(draw: st.DrawFn, *, total: int, first: int, ram_bytes: int = 0) -> tuple[Holding, ...]:
    held: list[Holding] = []
    for number in range(draw(st.integers(0, 3))):
        room = total - sum(one.amount for one in held)
        if room:
            amount = draw(st.integers(1, room)) if not ram_bytes else 1
            ram = ram_bytes // total if ram_bytes else 0
            held.append(Holding(job_id=first + number, amount=amount, ram_bytes=ram, ends_at=draw(_ends)))
    return tuple(held)


@st.composite
def capacities(draw: st.DrawFn) -> Capacity:
    """Up to three hosts with up to four devices each."""
    hosts, devices = [], []
    for host_id in range(1, draw(st.integers(1, 3)) + 1):
        num_slots, ram_bytes = draw(st.integers(1, 4)), draw(st.sampled_from([0, 64 * GIB]))
        held = _holdings(draw, total=num_slots, first=100 * host_id, ram_bytes=ram_bytes)
        hosts.append(
            HostCapacity(
                node_id=host_id,
                host_id=host_id,
                queue=f"host.{host_id}",
                host=f"host{host_id}",
                sdk="1.19.6",
                num_slots=num_slots,
                free_slots=num_slots - len(held),
                ram_bytes=ram_bytes,
                free_ram_bytes=ram_bytes - sum(one.ram_bytes for one in held),
                holdings=held,
            )
        )
        devices += draw(_devices(host_id=host_id, first=10 * host_id))
    return Capacity(hosts=tuple(hosts), devices=tuple(devices))


_needs = st.one_of(
    st.none(),
    st.none(),
    st.fixed_dictionaries(
        {},
        optional={
            "sku": st.sampled_from(["ultra", "standard", "other"]),
            "host": st.sampled_from(["host1", "host2"]),
            "labels": st.sampled_from([["fast"], ["fast", "lab"]]),
            "sdk": st.sampled_from(["1.19", "1.20", "2"]),
        },
    ),
)

lines = st.lists(
    st.builds(
        ReadyJob,
        id=st.integers(1, 999),
        stage=st.sampled_from(["run", "compile", "export"]),
        kind=st.sampled_from(["sweep", "nightly", "interactive"]),
        owner=st.sampled_from(["alice", "bob", "carol"]),
        priority=st.integers(-2, 2),
        ready_at=st.floats(0, NOW),
        chain=st.integers(0, 3),
        rest_s=st.sampled_from([0.0, 500.0, 5000.0]),
        num_cores=st.sampled_from([0, 0, 1, 4, 8, 14, 16, 20]),
        num_devices=st.sampled_from([1, 1, 1, 2, 3]),
        exclusive=st.sampled_from([False, False, False, True]),
        needs=_needs,
        ram_bytes=st.sampled_from([0, 4 * GIB, 40 * GIB, 100 * GIB]),
        expected_s=st.one_of(st.none(), st.floats(1, 1_000)),
        reserved_s=st.one_of(st.none(), st.floats(1_000, 3_000)),
        avoid=st.sets(st.integers(10, 13), max_size=2).map(frozenset),
        model=st.sampled_from(["", "m"]),
    ),
    max_size=15,
    unique_by=lambda job: job.id,
)
shares = st.dictionaries(st.sampled_from(["alice", "bob", "carol"]), st.floats(0, 1e7))


def may_use(job: ReadyJob, device: DeviceCapacity) -> bool:
    """Whether a device, were it empty, would do for a job."""
    needs = job.needs or {}
    return (
        device.num_cores >= job.num_cores
        and needs.get("sku", device.sku) == device.sku
        and needs.get("host", device.host) == device.host
        and set(needs.get("labels", ())) <= set(device.labels)
        and f"{device.sdk}.".startswith(f"{needs.get('sdk', device.sdk)}.")
    )


def enough_on_one_host(job: ReadyJob, devices: Sequence[DeviceCapacity]) -> bool:
    """Whether some host has as many of the devices as the job spans."""
    hosts = [device.host_id for device in devices]
    return any(hosts.count(host_id) >= job.num_devices for host_id in hosts)


def reversed_capacity(capacity: Capacity) -> Capacity:
    """The same machines in another order."""
    return dataclasses.replace(capacity, hosts=capacity.hosts[::-1], devices=capacity.devices[::-1])
