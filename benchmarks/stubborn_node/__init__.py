"""A node whose stages run until they are ended: ``python -m benchmarks.stubborn_node host``.

A stage's source says how much it resists, and where it writes the pids of its processes.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NoReturn

from qeff_engine import spec
from qeff_engine.stage import StageContext, StageResult


def run_stage(stage_spec: spec.StageSpec, *, context: StageContext) -> StageResult:
    """Start a child, a daemon when the source is ``stubborn:FILE``, and run for ever."""
    assert isinstance(stage_spec, spec.ResolveSpec)
    how, _, path = stage_spec.source.partition(":")
    if how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    reader, writer = os.pipe()
    if os.fork() == 0:
        if how == "stubborn":
            os.setsid()
            if os.fork():
                os._exit(0)
        os.write(writer, str(os.getpid()).encode())
        _run_for_ever()
    child = os.read(reader, 32).decode()
    draft = Path(f"{path}.draft")
    draft.write_text(f"{os.getpid()} {child}")
    draft.replace(path)
    _run_for_ever()


def _run_for_ever() -> NoReturn:
    while True:
        time.sleep(60)
