"""RWKV-4: blocks that are passed lists of states, and weights that it halves every so many blocks."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

_MODEL = "transformers.models.rwkv.modeling_rwkv"
_OURS = "qeff_engine.transforms.passed_states"

ARCHITECTURE = Architecture(
    model_types=("rwkv",),
    replacements={
        f"{_MODEL}:RwkvModel.forward": f"{_OURS}:rwkv_blocks",
        f"{_MODEL}:RwkvBlock.forward": f"{_OURS}:rwkv_block",
    },
)
