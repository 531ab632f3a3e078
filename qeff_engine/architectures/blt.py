"""Byte latent transformers: bytes in patches of different lengths."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

ARCHITECTURE = Architecture(
    model_types=("blt",),
    unsupported="it groups bytes into patches, and how many there are depends on the text.",
)
