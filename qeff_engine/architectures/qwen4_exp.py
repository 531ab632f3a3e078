"""Qwen4-Exp: blocks of index keys chosen token by token, and embeddings of hashed n-grams."""

from __future__ import annotations

from qeff_engine.architectures.form import Architecture

_MODULE = "transformers.models.qwen4_exp.modeling_qwen4_exp"

ARCHITECTURE = Architecture(
    model_types=("qwen4_exp_text",),
    replacements={
        f"{_MODULE}:Qwen4ExpTextQSAIndexer.forward": "qeff_engine.transforms.block_indexing:choose",
        f"{_MODULE}:Qwen4ExpTextNGramEmbedding.forward": "qeff_engine.transforms.block_indexing:embed_ngrams",
    },
)
