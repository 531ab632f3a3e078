"""CPU time of a stage that does nothing, from its claim to its settlement, beside an interpreter that does nothing.

Counted are the node, its fork server and the stage process, with torch and transformers imported before the fork.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from benchmarks import measure
from tests import small_sweep
from tests.integration import attempt_node
from workers.forks import PRELOAD, ForkServer

_NUM_STAGES = 60


def _cpu_s() -> float:
    """CPU seconds of this process, its fork servers and what they have waited for."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    total = used.ru_utime + used.ru_stime
    for server in psutil.Process().children():
        times = server.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


def stage_ms() -> float:
    """CPU milliseconds of a stage; the first, which waits for the server's imports, is left out."""
    forks = ForkServer(preload=(*PRELOAD, "tests.small_stages"))
    with tempfile.TemporaryDirectory(prefix="bench-") as name, attempt_node.attempt_node(Path(name)) as node:
        job_ids = [node.submit(small_sweep.plan(f"/noop/{index}", cores=(8,)))[0] for index in range(_NUM_STAGES + 1)]
        numbers = [node.enqueue(job_id) for job_id in job_ids]
        place = dataclasses.replace(node.workplace, forks=forks)
        attempt_node.run_attempt(place, job_ids[0], numbers[0])
        before_s = _cpu_s()
        for job_id, number in zip(job_ids[1:], numbers[1:], strict=True):
            attempt_node.run_attempt(place, job_id, number)
        used_s = _cpu_s() - before_s
    forks.close()
    return used_s / _NUM_STAGES * 1e3


def interpreter_ms(runs: int) -> float:
    """CPU milliseconds of an interpreter that starts and ends."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(runs):
        subprocess.run([sys.executable, "-c", "pass"], check=True, env={"PATH": os.environ["PATH"]})
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime) / runs * 1e3


def measure_all(runs: int) -> list[measure.Figure]:
    """CPU milliseconds."""
    peer = interpreter_ms(10 * runs)
    return [
        measure.Figure(
            name="CPU of a no-op stage from claim to settlement beside a fresh interpreter",
            ours=stage_ms(),
            peer=peer,
            unit="ms",
            goal=100.0,
        )
    ]


if __name__ == "__main__":
    measure.main(measure_all)
