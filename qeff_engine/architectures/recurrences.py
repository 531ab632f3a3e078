"""How the recurrences of transformers are called: functions in a model's own module by name, and which rule they are.

A model whose module has a function of one of these names is exported with our form of the rule in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# Names of functions in qeff_engine.transforms.kernels, which take the arguments of the function that they stand for.
RULES: Mapping[str, str] = MappingProxyType(
    {
        "torch_chunk_gated_delta_rule": "gated_delta_rule",
        "chunk_kimi_delta_attention": "gated_delta_rule",
        "mamba2_chunk_scan": "grouped_state_space",
        "mamba_selective_scan": "selective_scan",
    }
)
