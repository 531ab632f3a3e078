"""Zaya: convolved queries and keys, whose layers cut off by themselves what they keep."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

ARCHITECTURE = Architecture(
    model_types=("zaya",),
    unsupported="its attention keeps the last columns and values of a call, whether they are tokens or padding.",
)
