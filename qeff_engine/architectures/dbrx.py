"""DBRX: experts in a loop over those that were hit."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

_MODEL = "transformers.models.dbrx.modeling_dbrx"
_OURS = "qeff_engine.transforms.experts"

ARCHITECTURE = Architecture(
    model_types=("dbrx",),
    replacements={
        f"{_MODEL}:DbrxExperts.forward": f"{_OURS}:dbrx",
    },
)
