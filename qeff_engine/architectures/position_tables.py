"""Models whose positions are rows of tables, taken by lengths."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

_MODELS = "transformers.models"
_OURS = "qeff_engine.transforms.position_tables"

ARCHITECTURE = Architecture(
    model_types=("falcon", "gpt_neo", "roformer"),
    replacements={
        f"{_MODELS}.falcon.modeling_falcon:build_alibi_tensor": f"{_OURS}:falcon_alibi",
        f"{_MODELS}.gpt_neo.modeling_gpt_neo:GPTNeoSelfAttention._attn": f"{_OURS}:gpt_neo",
        f"{_MODELS}.roformer.modeling_roformer:RoFormerSelfAttention.apply_rotary_position_embeddings": (
            f"{_OURS}:roformer"
        ),
    },
)
