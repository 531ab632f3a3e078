"""The stages in order, and how one of them is run. Read this first."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from types import MappingProxyType

from qeff_engine import events, spec
from qeff_engine.stage import StageContext, StageResult

# One module per stage, imported when the stage runs: each has `run(spec, context) -> StageResult`.
STAGES: Mapping[spec.Stage, str] = MappingProxyType({stage: f"qeff_engine.stages.{stage}" for stage in spec.Stage})


def run_stage(stage_spec: spec.StageSpec, *, context: StageContext) -> StageResult:
    """Run one stage to its end and return what it measured.

    Raises:
        EngineError: the stage failed for a reason that it knows; ``failure_class`` says which.
    """
    stage = stage_spec.STAGE
    module = importlib.import_module(STAGES[stage])
    context.emit(events.Event(kind="started", message=f"{stage} started"))
    start_s = time.monotonic()
    result: StageResult = module.run(stage_spec, context)
    wall_s = round(time.monotonic() - start_s, 3)
    context.emit(
        events.Event(kind="finished", message=f"{stage} finished in {wall_s:.1f} s", fraction=1.0, data=result.figures)
    )
    return StageResult(figures={**result.figures, "stage_wall_s": wall_s})
