"""Does a farm's work without processes: scheduler and nodes in one, through the real transitions.

For tests of what is read from the database. Figures are made up; stages are not run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from farm import db, models, records, wire
from farm.lifecycle import admission, attempts
from farm.scheduling import candidates
from farm.states import JobState
from farm.views import inventory
from qeff_engine import actions, spec

TOOLCHAIN = {
    "engine": "1",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "onnx": "1.23.0",
    "onnxscript": "0.7.2",
    "gguf": "0.19.0",
    "sdk_apps": "1.20.0-simulated",
    "sdk_platform": "1.20.0-simulated",
}
FIGURES: dict[str, dict[str, Any]] = {
    "compile": {"compile_s": 12.5, "program_bytes": 150_000_000, "simulated": True},
    "run": {
        "ttft_s": 0.021,
        "decode_tok_s": 120.0,
        "total_tok_s": 100.0,
        "num_generated_tokens": 32,
        "tokens_equal": True,
        "num_tokens_equal": 32,
        "simulated": True,
    },
}


@dataclasses.dataclass(kw_only=True)
class Driver:
    """A host with four slots, a 16-core and a 14-core device, and the nodes of all three."""

    database: db.Database
    lease_s: float = 3600.0
    host_node: int = 0
    device_nodes: dict[int, tuple[int, int, str]] = dataclasses.field(default_factory=dict)  # cores, qid, sku by node

    @classmethod
    def start(cls, database: db.Database) -> Driver:
        """A driver whose devices are registered."""
        driver = cls(database=database)
        with database.write() as connection:
            at = db.now(connection)
            host = _insert(
                connection,
                models.hosts,
                name="h1",
                num_cpus=8,
                ram_bytes=1 << 34,
                num_slots=4,
                toolchain=TOOLCHAIN,
                registered_at=at,
            )
            node = {"host_id": host, "pid": 1, "started_at": at, "heartbeat_at": at}
            driver.host_node = _insert(connection, models.nodes, kind="host", queue="host.h1", **node)
            for qid, (sku, num_cores) in enumerate((("ultra", 16), ("standard", 14))):
                device = _insert(
                    connection,
                    models.devices,
                    host_id=host,
                    board_serial=f"b{qid}",
                    pci_address=f"0000:0{qid}:00.0",
                    qid=qid,
                    sku=sku,
                    num_cores=num_cores,
                    dram_mb=32768,
                    simulated=True,
                    checked_at=at,
                )
                rows = [{"device_id": device, "number": number} for number in range(num_cores)]
                connection.execute(sa.insert(models.cores), rows)
                queue = f"device.h1.{qid}"
                node_id = _insert(connection, models.nodes, kind="device", device_id=device, queue=queue, **node)
                driver.device_nodes[node_id] = (num_cores, qid, sku)
        return driver

    def admit(self) -> int:
        """Admit every job whose inputs are done; how many there were."""
        with self.database.write() as connection:
            toolchain = inventory.toolchain(connection)
            found = admission.admissible(connection, limit=1000)
            for job in found:
                key, parts = actions.action_key(
                    job.stage, fields=job.fields, input_digests=job.inputs, toolchain=toolchain
                )
                admission.admit(connection, job.id, action_key=key, parts=parts, term=None)
        return len(found)

    def claim(self, job_id: int, num_cores: int) -> records.Claim:
        """Place a ready job and claim it."""
        with self.database.write() as connection:
            nodes = [node for node, (cores, _, _) in self.device_nodes.items() if cores >= num_cores]
            node_id = nodes[0] if num_cores else self.host_node
            attempt = admission.enqueue(connection, job_id, node_id=node_id, queue="q", reason="placed", term=None)
            return attempts.claim(connection, job_id, attempt, node_id=node_id, lease_s=self.lease_s)

    def succeed(self, claim: records.Claim) -> None:
        """Finish a claimed job with made-up figures."""
        figures = dict(FIGURES.get(claim.stage, {}))
        if claim.stage == "run":
            sku = next(sku for _, qid, sku in self.device_nodes.values() if qid == claim.grants[0].qid)
            figures |= {"qid": claim.grants[0].qid, "sku": sku, "decode_tok_s": 8.0 * len(claim.grants[0].cores)}
        digest = spec.digest([claim.stage, claim.spec, claim.inputs])
        artifact = records.ArtifactRecord(digest=digest, stage=claim.stage, num_bytes=10, num_files=1)
        log_path = wire.attempt_log(claim.job_id, claim.attempt)
        usage = records.Usage(cpu_s=1.5, peak_rss_bytes=1 << 20, exit_code=0, log_path=log_path)
        with self.database.write() as connection:
            attempts.succeed(connection, claim.job_id, claim.attempt, artifact=artifact, figures=figures, usage=usage)

    def fail(self, claim: records.Claim, *, failure_class: str, message: str) -> None:
        """Let a claimed job fail."""
        with self.database.write() as connection:
            attempts.fail(
                connection,
                claim.job_id,
                claim.attempt,
                failure_class=failure_class,
                message=message,
                usage=records.Usage(exit_code=1),
            )

    def interrupt(self, claim: records.Claim) -> None:
        """End a claimed attempt without anybody's fault."""
        with self.database.write() as connection:
            attempts.interrupt(connection, claim.job_id, claim.attempt, reason="the node stops")

    def work(self, finish: Callable[[records.Claim], None] | None = None) -> None:
        """Do everything there is to do, one job after another."""
        while True:
            num_admitted = self.admit()
            with self.database.read() as connection:
                ready = candidates.ready(connection, limit=1000)
            if not ready and not num_admitted:
                return
            for job in ready:
                (finish or self.succeed)(self.claim(job.id, job.num_cores))


def count(database: db.Database, state: JobState) -> int:
    """Jobs in a state."""
    query = sa.select(sa.func.count()).select_from(models.jobs).where(models.jobs.c.state == state)
    with database.read() as connection:
        return connection.execute(query).scalar_one()


def _insert(connection: sa.Connection, table: sa.Table, **values: Any) -> int:
    return int(connection.execute(sa.insert(table).values(**values).returning(table.c.id)).scalar_one())
