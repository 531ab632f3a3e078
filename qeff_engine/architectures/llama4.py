"""Llama 4: rotations by complex numbers, and a scale that depends on how full the cache is."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

_MODEL = "transformers.models.llama4.modeling_llama4"
_OURS = "qeff_engine.transforms.llama4"

ARCHITECTURE = Architecture(
    model_types=("llama4", "llama4_text"),
    replacements={
        f"{_MODEL}:Llama4TextRotaryEmbedding.forward": f"{_OURS}:frequencies",
        f"{_MODEL}:apply_rotary_emb": f"{_OURS}:rotate",
        f"{_MODEL}:Llama4TextAttention.forward": f"{_OURS}:attend",
    },
)
