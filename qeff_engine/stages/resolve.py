"""The ``resolve`` stage: a model source becomes a snapshot, a directory with config, tokenizer and safetensors.

Pickle is never taken along, and code only with consent to exactly this code; here none is run.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qeff_engine import checkpoint, code_files, events
from qeff_engine.architectures import classes
from qeff_engine.spec import ResolveSpec
from qeff_engine.stage import StageContext, StageResult

# One module per kind of source, imported when it is needed: each has `fetch(spec, context) -> figures`.
SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "directory": "qeff_engine.sources.directory",
        "gguf": "qeff_engine.sources.gguf",
        "hub": "qeff_engine.sources.hub",
    }
)


def run(spec: ResolveSpec, context: StageContext) -> StageResult:
    """Put a snapshot of the source into ``context.out``.

    Raises:
        InvalidInput: the source does not exist or is not whole, or needs its own code and there is no consent to it.
        Unsupported: transformers does not know its architecture.
        Infrastructure: the hub cannot be reached.
    """
    context.emit(events.progress(f"reading {spec.source}"))
    figures = importlib.import_module(SOURCES[spec.kind]).fetch(spec, context)
    _require_usable(spec, snapshot=context.out, commit=figures.get("commit", ""))
    return StageResult(figures={**figures, **_figures(context.out)})


def _require_usable(spec: ResolveSpec, *, snapshot: Path, commit: str) -> None:
    """Refuse an architecture that neither transformers nor code with consent knows."""
    config = checkpoint.config(snapshot)
    if classes.is_known(config):
        return
    if not code_files.has_code(config):
        classes.require_known(config)
    if not spec.trust_remote_code:
        name = f"{spec.source} at {commit}" if commit else spec.source
        raise code_files.not_consented(name, consent=commit or code_files.read(Path(spec.source)).digest)


def _figures(snapshot: Path) -> dict[str, Any]:
    index = checkpoint.safetensors_index(snapshot)
    bytes_by_dtype: Counter[str] = Counter()
    for place in index.values():
        bytes_by_dtype[place.dtype] += place.nbytes
    paths = [path for path in snapshot.rglob("*") if path.is_file()]
    return {
        "model_type": checkpoint.config(snapshot)["model_type"],
        "num_parameters": sum(math.prod(place.shape) for place in index.values()),
        "dtype": bytes_by_dtype.most_common(1)[0][0] if bytes_by_dtype else "",
        "num_files": len(paths),
        "snapshot_bytes": sum(path.stat().st_size for path in paths),
    }
