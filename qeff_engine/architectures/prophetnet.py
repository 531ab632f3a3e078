"""ProphetNet: several predictions at once."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

ARCHITECTURE = Architecture(
    model_types=("prophetnet",),
    unsupported="with a cache it takes one token a call only, and predicts several tokens ahead at once.",
)
