"""Tiny checkpoints that are wide enough for several groups in a row, and what the stage makes of them."""

import torch

from qeff_engine import spec, stage
from qeff_engine.stages import quantize
from tests import tiny

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "ffn_dim": 128, "word_embed_proj_dim": 64}


def save(directory, model_type, *, dtype=torch.float32, max_shard_size="1GB", **fields):
    """A saved checkpoint with its tokenizer; returns its directory."""
    wide = {} if model_type == "gpt2" else WIDE
    return tiny.save_model(directory, model_type, dtype=dtype, max_shard_size=max_shard_size, fields={**wide, **fields})


def quantized(snapshot, out, *, method, group_size=32, num_samples=3, seed=0):
    """What the stage makes of a snapshot: its result and the events it emitted."""
    out.mkdir(parents=True, exist_ok=True)
    emitted = []
    result = quantize.run(
        spec.QuantizeSpec(method=method, group_size=group_size, num_samples=num_samples, seq_len=48, seed=seed),
        stage.StageContext(out=out, work=out, inputs={stage.SNAPSHOT: snapshot}, emit=emitted.append),
    )
    return result, emitted
