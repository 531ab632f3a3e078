"""Start of a stage process: forked with torch and transformers imported, beside an interpreter that imports them."""

from __future__ import annotations

import os
import select
import statistics
import subprocess
import sys
import time

from benchmarks import measure
from workers.fork_server import Wires
from workers.forks import PRELOAD, ForkServer

_FRESH = "import torch, transformers.modeling_utils"


def say(order: object, wires: Wires) -> None:
    """What the forked process does: one byte, and it is gone."""
    os.write(wires.channel, b".")
    os._exit(0)


def start_once(forks: ForkServer) -> float:
    """Seconds from asking for a process until it says something."""
    began = time.perf_counter()
    child = forks.start(say, order=None).result()
    select.select([child.channel], [], [])
    elapsed_s = time.perf_counter() - began
    select.select([child.sentinel], [], [])
    forks.collect(child)
    return elapsed_s


def import_once() -> float:
    """Seconds of a fresh interpreter that imports the same."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", _FRESH], check=True)
    return time.perf_counter() - began


def measure_all(runs: int) -> list[measure.Figure]:
    """Milliseconds of wall time; the first start, which waits for the server's own imports, is left out."""
    forks = ForkServer(preload=(*PRELOAD, "benchmarks.stage_start"))
    forks.warm_up()
    start_once(forks)
    ours = statistics.median(start_once(forks) for _ in range(10 * runs))
    forks.close()
    peer = statistics.median(import_once() for _ in range(runs))
    return [
        measure.Figure(
            name="start of a stage process beside a fresh interpreter",
            ours=ours * 1e3,
            peer=peer * 1e3,
            unit="ms",
            goal=50.0,
        )
    ]


if __name__ == "__main__":
    measure.main(measure_all)
