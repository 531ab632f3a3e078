"""JetMoE: experts of feed-forward and of attention layers, called with tokens sorted by expert."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

_MODEL = "transformers.models.jetmoe.modeling_jetmoe"
_OURS = "qeff_engine.transforms.experts"

ARCHITECTURE = Architecture(
    model_types=("jetmoe",),
    replacements={
        f"{_MODEL}:JetMoeMoE.forward": f"{_OURS}:jetmoe",
        f"{_MODEL}:JetMoeMoA.map": f"{_OURS}:jetmoe_queries",
        f"{_MODEL}:JetMoeMoA.reduce": f"{_OURS}:jetmoe_outputs",
    },
)
