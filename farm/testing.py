"""For tests of the farm and of what is built on it: fresh databases, a host with devices, a small plan."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from farm import db, schema, wire
from farm.fleet import devices
from farm.lifecycle import admission, attempts, jobs
from farm.models import devices as device_rows
from farm.plan import Plan, PlannedJob, PlannedPoint
from farm.records import ArtifactRecord, Claim, DeviceRecord, Usage
from qeff_engine.spec import Stage


@contextlib.contextmanager
def fresh_database(url: str | None = None, *, clock: Callable[[], float] | None = None) -> Iterator[db.Database]:
    """A database at the newest revision.

    Args:
        url: where; it must be empty. None for a temporary SQLite file.
        clock: the database's clock; None for the real one.
    """
    with tempfile.TemporaryDirectory(prefix="farm-test-") as directory:
        url = url or f"sqlite:///{Path(directory) / 'farm.db'}"
        schema.upgrade(url)
        database = db.open_database(url, clock=clock)
        try:
            yield database
        finally:
            database.dispose()


def set_health(connection: sa.Connection, device_id: int, *, health: str, reason: str) -> None:
    """Let a device have some health, whatever its host's tool would say."""
    found = device_rows.c.id == device_id
    connection.execute(sa.update(device_rows).where(found).values(health=health, health_reason=reason))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeHost:
    """Ids of a host that was registered without processes."""

    host_id: int
    host_node: int
    host_queue: str
    device_ids: tuple[int, ...]
    device_nodes: tuple[int, ...]
    device_queues: tuple[str, ...]


def add_host(
    database: db.Database, *, name: str = "box", cores: tuple[int, ...] = (16, 14), num_slots: int = 2
) -> FakeHost:
    """Register a host with simulated devices of the given numbers of cores, and a node for each."""
    with database.write() as connection:
        host_id = devices.register_host(
            connection, name=name, num_cpus=num_slots, ram_bytes=2**34, num_slots=num_slots, toolchain={"engine": "1"}
        )
        records = [
            DeviceRecord(
                board_serial=f"{name}-board",
                pci_address=f"0000:0{qid}:00.0",
                qid=qid,
                sku="ultra" if number == 16 else "standard",
                num_cores=number,
                dram_mb=16_384,
                simulated=True,
            )
            for qid, number in enumerate(cores)
        ]
        device_ids = devices.register_devices(connection, host_id=host_id, found=records)
        host_queue = wire.host_queue(name)
        host_node = devices.register_node(
            connection, host_id=host_id, device_id=None, kind="host", queue=host_queue, pid=1
        )
        queues = tuple(wire.device_queue(name, record.qid) for record in records)
        device_nodes = tuple(
            devices.register_node(connection, host_id=host_id, device_id=device_id, kind="device", queue=queue, pid=1)
            for device_id, queue in zip(device_ids, queues, strict=True)
        )
    return FakeHost(
        host_id=host_id,
        host_node=host_node,
        host_queue=host_queue,
        device_ids=tuple(device_ids),
        device_nodes=device_nodes,
        device_queues=queues,
    )


def small_plan(*, cores: tuple[int, ...] = (8, 14), tag: str = "") -> Plan:
    """One resolve, one export, and a compile and a run per number of cores; ``tag`` makes it another model."""
    jobs_by_key = {
        key: PlannedJob(plan_key=key + tag, stage=stage, spec={"tag": tag}, label=key, inputs=inputs, chain=chain)
        for key, stage, inputs, chain in (
            ("resolve", Stage.RESOLVE, {}, 3),
            ("export", Stage.EXPORT, {"snapshot": "resolve" + tag}, 2),
        )
    }
    points = []
    for number in cores:
        for stage, inputs in (
            (Stage.COMPILE, {"onnx": "export" + tag}),
            (Stage.RUN, {"program": f"compile{number}{tag}", "snapshot": "resolve" + tag}),
        ):
            key = f"{stage}{number}"
            jobs_by_key[key] = PlannedJob(
                plan_key=key + tag,
                stage=stage,
                spec={"cores": number, "tag": tag},
                label=f"{stage} {number} cores",
                inputs=inputs,
                num_cores=number if stage is Stage.RUN else 0,
                num_devices=1 if stage is Stage.RUN else 0,
                chain=1 if stage is Stage.COMPILE else 0,
            )
        keys = tuple(key + tag for key in ("resolve", "export", f"compile{number}", f"run{number}"))
        points.append(PlannedPoint(axes={"model": "m", "cores": number}, plan_keys=keys))
    return Plan(jobs=tuple(jobs_by_key.values()), points=tuple(points))


def add_submission(
    database: db.Database,
    plan: Plan | None = None,
    *,
    priority: int = 0,
    owner: str = "ada",
    kind: str = "sweep",
    anew: Collection[str] = (),
) -> int:
    """Submit a plan, :func:`small_plan` by default; returns the submission's id."""
    how: dict[str, Any] = {"owner": owner, "priority": priority, "kind": kind, "anew": anew}
    with database.write() as connection:
        return jobs.submit(connection, plan or small_plan(), name="test", request={}, **how)


def admit_all(database: db.Database, *, keys: Mapping[int, str] | None = None) -> list[int]:
    """Admit every admissible job, with its spec and inputs as the key unless ``keys`` says otherwise."""
    admitted = []
    with database.write() as connection:
        for job in admission.admissible(connection, limit=10_000):
            key = (keys or {}).get(job.id, f"{job.stage}:{job.fields}:{sorted(job.inputs.items())}")
            admission.admit(connection, job.id, action_key=key, parts={"key": key}, term=None)
            admitted.append(job.id)
    return admitted


def claim(
    database: db.Database,
    job_id: int,
    *,
    node_id: int,
    queue: str = "q",
    lease_s: float = 60.0,
    device_ids: Sequence[int] = (),
) -> Claim:
    """Enqueue a ready job on a node, or on several devices, and claim it there."""
    with database.write() as connection:
        attempt = admission.enqueue(
            connection, job_id, node_id=node_id, queue=queue, reason="test", term=None, device_ids=device_ids
        )
    return claim_queued(database, job_id, attempt, node_id=node_id, lease_s=lease_s)


def claim_queued(database: db.Database, job_id: int, attempt: int = 1, *, node_id: int, lease_s: float = 60.0) -> Claim:
    """Claim what a node was sent."""
    with database.write() as connection:
        return attempts.claim(connection, job_id, attempt, node_id=node_id, lease_s=lease_s)


def artifact(digest: str, *, stage: str = "resolve") -> ArtifactRecord:
    """A record without bytes, for tests of the database alone."""
    return ArtifactRecord(digest=digest, stage=stage, num_bytes=1, num_files=1)


def finish(database: db.Database, claimed: Claim, *, digest: str | None = None) -> None:
    """End a claimed attempt with an artifact."""
    record = artifact(digest or f"digest-{claimed.label}-{claimed.spec}", stage=claimed.stage)
    with database.write() as connection:
        attempts.succeed(connection, claimed.job_id, claimed.attempt, artifact=record, figures={"x": 1}, usage=Usage())
