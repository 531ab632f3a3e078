"""MiniMax: layers of lightning attention, which keep their state in a cache of MiniMax's own."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

_MODEL = "transformers.models.minimax.modeling_minimax"

ARCHITECTURE = Architecture(
    model_types=("minimax",),
    replacements={
        # Only asked whether the cache that is passed is one.
        f"{_MODEL}:MiniMaxCache": "transformers.cache_utils:Cache",
        f"{_MODEL}:MiniMaxLightningAttention.forward": "qeff_engine.transforms.kernels:lightning_attention",
    },
)
