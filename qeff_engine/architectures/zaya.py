"""Zaya: convolved queries and keys, whose layers cut off by themselves what they keep."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

ARCHITECTURE = Architecture(
    model_types=("zaya",),
    replacements={
        # It keeps the last columns and values of a call, whether they are tokens or padding.
        "transformers.models.zaya.modeling_zaya:ZayaCCAProjection.forward": (
            "qeff_engine.transforms.convolved_attention:projection"
        ),
    },
)
