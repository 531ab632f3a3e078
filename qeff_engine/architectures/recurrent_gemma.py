"""RecurrentGemma: blocks that keep their states in themselves, and begin anew with every call of several tokens."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

_MODEL = "transformers.models.recurrent_gemma.modeling_recurrent_gemma"
_OURS = "qeff_engine.transforms.kernels"

ARCHITECTURE = Architecture(
    model_types=("recurrent_gemma",),
    replacements={
        f"{_MODEL}:RecurrentGemmaRecurrentBlock.forward": f"{_OURS}:griffin_block",
        f"{_MODEL}:RecurrentGemmaRglru._rnn_scan": f"{_OURS}:griffin_scan",
    },
)
