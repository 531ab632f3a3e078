"""xLSTM: blocks that are passed states from a cache of xLSTM's own, in chunks of a fixed length."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

_MODEL = "transformers.models.xlstm.modeling_xlstm"
_OURS = "qeff_engine.transforms.passed_states"

ARCHITECTURE = Architecture(
    model_types=("xlstm",),
    replacements={
        f"{_MODEL}:xLSTMModel.forward": f"{_OURS}:xlstm_blocks",
        f"{_MODEL}:xLSTMBlock.forward": f"{_OURS}:xlstm_block",
        f"{_MODEL}:xLSTMBackend.forward": f"{_OURS}:xlstm_memory",
    },
)
