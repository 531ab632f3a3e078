"""A node whose stages do nothing: ``python -m benchmarks.noop_node host``. What remains is the farm itself."""

from __future__ import annotations

from qeff_engine import spec
from qeff_engine.stage import StageContext, StageResult


def run_stage(stage_spec: spec.StageSpec, *, context: StageContext) -> StageResult:
    """Leave one file that tells this job from the others."""
    (context.out / "done.txt").write_text(spec.digest(stage_spec.to_json()))
    return StageResult()
