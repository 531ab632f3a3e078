"""The ``export`` stage: a snapshot becomes ONNX graphs that point into the snapshot's own weights."""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from qeff_engine import events, tasks
from qeff_engine.spec import ExportSpec
from qeff_engine.stage import SNAPSHOT, StageContext, StageResult

# One module per task, imported when it is needed: each has `export(spec, context) -> (ExportedModel, figures)`.
TASKS: Mapping[str, str] = MappingProxyType(
    {
        tasks.TEXT_GENERATION: "qeff_engine.exporters.text_generation",
        tasks.FEATURE_EXTRACTION: "qeff_engine.exporters.feature_extraction",
        tasks.IMAGE_TEXT_TO_TEXT: "qeff_engine.exporters.image_text_to_text",
    }
)


def run(spec: ExportSpec, context: StageContext) -> StageResult:
    """Export the snapshot of ``context.inputs`` into ``context.out``.

    Raises:
        InvalidInput: the weights do not belong to the config.
        Unsupported: an architecture or a quantization that cannot be exported.
    """
    task = spec.task or tasks.of_snapshot(context.inputs[SNAPSHOT])
    context.emit(events.progress(f"exporting for {task}"))
    with _without_collection():
        model, figures = importlib.import_module(TASKS[task]).export(spec, context)
    model.save(context.out)
    return StageResult(figures={"task": task, "class_name": model.class_name, **figures})


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Do not look for garbage in cycles for the time of a block.

    Importing and tracing make a million objects that live to the end; walking through them is a sixth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
