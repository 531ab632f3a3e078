"""CPM-Ant: tokens look ahead."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

ARCHITECTURE = Architecture(
    model_types=("cpmant",),
    unsupported="every token looks at those behind it, so that nothing of what was computed before can be kept.",
)
