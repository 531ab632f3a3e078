"""LongCat-Flash: experts in a loop over those that were hit, some of which do nothing."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

_MODEL = "transformers.models.longcat_flash.modeling_longcat_flash"
_OURS = "qeff_engine.transforms.experts"

ARCHITECTURE = Architecture(
    model_types=("longcat_flash",),
    replacements={
        f"{_MODEL}:LongcatFlashExperts.forward": f"{_OURS}:longcat_flash",
    },
)
