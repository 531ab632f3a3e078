"""Inkling: attention with a bias by distance, which counts on one row of positions for the whole batch."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

ARCHITECTURE = Architecture(
    model_types=("inkling_text",),
    replacements={
        "transformers.models.inkling.modeling_inkling:InklingAttention.forward": (
            "qeff_engine.transforms.relative_attention:forward"
        ),
    },
)
