"""The stages in order, and how one of them is run. Read this first."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from qeff_engine import code_files, events, spec
from qeff_engine.errors import InvalidInput
from qeff_engine.stage import AS_RESOLVED, ORIGINAL, SNAPSHOT, StageContext, StageResult

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
    with _with_code(context):
        result: StageResult = module.run(stage_spec, context)
    wall_s = round(time.monotonic() - start_s, 3)
    context.emit(
        events.Event(kind="finished", message=f"{stage} finished in {wall_s:.1f} s", fraction=1.0, data=result.figures)
    )
    return StageResult(figures={**result.figures, "stage_wall_s": wall_s})


@contextlib.contextmanager
def _with_code(context: StageContext) -> Iterator[None]:
    """Let the code that comes with the stage's snapshot run in the block, if there is consent to it.

    Raises:
        InvalidInput: the code is not that to which consent was given, or cannot be imported.
        Unsupported: it needs a package that is not installed.
    """
    inputs = [context.inputs[name] for name in (SNAPSHOT, ORIGINAL) if name in context.inputs]
    codes = [_code_of(snapshot, consent=context.trust_remote_code) for snapshot in inputs]
    code = next((code for code in codes if code is not None), None)
    if code is None:
        yield
        return
    if any(other is None or other.digest != code.digest for other in codes):
        raise InvalidInput(
            f"{inputs[0]} and {inputs[-1]} do not have the same code.",
            advice="Both come of one model, or neither does.",
        )
    from qeff_engine.architectures import remote_code  # with transformers, which not every stage needs

    context.emit(events.progress(f"running code that comes with the model, {code.digest}", fraction=0.0))
    with remote_code.introduced(inputs[0], code=code) as left_out:
        for message in left_out:
            context.emit(events.progress(message, fraction=0.0))
        yield


def _code_of(snapshot: Path, *, consent: str) -> code_files.Code | None:
    if consent == AS_RESOLVED:
        return code_files.of_snapshot(snapshot)
    return code_files.consented(snapshot, consent=consent)
