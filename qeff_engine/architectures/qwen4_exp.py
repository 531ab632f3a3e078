"""Qwen4-Exp: blocks of index keys chosen token by token, and embeddings of hashed n-grams."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

ARCHITECTURE = Architecture(
    model_types=("qwen4_exp_text", "qwen4_exp"),
    unsupported=(
        "its indexer gathers blocks of visible tokens in a loop over every token, and its n-gram embeddings keep "
        "token numbers in a convolution's state, where float16 holds them exactly up to 2048 only."
    ),
)
