"""What a process that was started by a fork server finds: for tests of the server."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from workers.fork_server import Wires


def report(order: str, wires: Wires) -> None:
    """Write to the file ``order`` which modules and threads there were at the start, and what a computation gives."""
    found = {"modules": sorted(sys.modules), "threads": len(list(Path("/proc/self/task").iterdir()))}
    import torch

    torch.set_num_threads(2)
    total = (torch.ones(300, 300) @ torch.ones(300, 300) / 300).sum() / 15_000
    Path(order).write_text(json.dumps({**found, "sum": total.item()}))
    os._exit(0)


def evaluate(order: str, wires: Wires) -> None:
    """Report what an expression gives."""
    os.write(wires.channel, str(eval(order)).encode())
    os._exit(0)
