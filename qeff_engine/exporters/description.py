"""What ``export.json`` says of a model beside its graphs, and figures that all exports have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qeff_engine.onnx_graph.binding import Bound

_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


def eos_token_ids(config: Any, *, snapshot: Path) -> tuple[int, ...]:
    """Tokens that end a sequence: by the generation config, else by the model's config."""
    path = snapshot / "generation_config.json"
    found = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    if found is None:
        found = getattr(config.get_text_config(decoder=True), "eos_token_id", None)
    if found is None:
        found = getattr(config, "eos_token_id", None)
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list | tuple) else (int(found),)


def max_positions(config: Any) -> int:
    """Longest sequence that the config allows; 0 when it names none."""
    text = config.get_text_config(decoder=True)
    return next((int(value) for name in _POSITIONS if isinstance(value := getattr(text, name, None), int)), 0)


def figures(bound: Bound, *, graph_bytes: int) -> dict[str, Any]:
    """What an export measured of a graph."""
    return {
        "graph_bytes": graph_bytes,
        "side_bytes": bound.side_bytes,
        "written_bytes": graph_bytes + bound.side_bytes,
        "num_tensors_by_reference": bound.num_tensors,
    }
