"""An export in a stage process as the farm starts it: forked from a server that has done the imports."""

from __future__ import annotations

import os
import select
import statistics
import time
from pathlib import Path

from workers.fork_server import Wires
from workers.forks import PRELOAD, ForkServer


def export_once(order: tuple[str, str], wires: Wires) -> None:
    """What a stage process of the farm does: the export alone, since it was forked with its imports done."""
    from qeff_engine.spec import ExportSpec
    from qeff_engine.stage import SNAPSHOT, StageContext
    from qeff_engine.stages import export

    snapshot, out = map(Path, order)
    out.mkdir()
    export.run(ExportSpec(), StageContext(out=out, work=out, inputs={SNAPSHOT: snapshot}))
    os.write(wires.channel, str(time.process_time()).encode())
    os._exit(0)


def cpu_s(snapshot: Path, root: Path, *, runs: int) -> float:
    """CPU seconds of exports in processes forked by the farm's own server."""
    forks = ForkServer(preload=(*PRELOAD, "benchmarks.warm_export"))
    forks.warm_up()
    found = []
    for number in range(runs):
        child = forks.start(export_once, order=(str(snapshot), str(root / f"warm-{number}"))).result()
        select.select([child.channel], [], [])
        found.append(float(os.read(child.channel, 64)))
        select.select([child.sentinel], [], [])
        forks.collect(child)
    forks.close()
    return statistics.median(found)
