"""Inkling 2: attention with a bias by distance, which counts on one row of positions for the whole batch."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

ARCHITECTURE = Architecture(
    model_types=("inkling2_text",),
    replacements={
        "transformers.models.inkling2.modeling_inkling2:Inkling2RelativeLogits.forward": (
            "qeff_engine.transforms.relative_attention:relative_logits"
        ),
    },
)
