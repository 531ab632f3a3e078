"""Checkpoints of the shape of large models whose weights are holes in files: they have their size and take no room.

Reading a hole gives zeros, so such a model computes nothing of use; an export never reads weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

_SHARD_BYTES = 5 * 10**9
_ITEM_BYTES = 2  # bfloat16


def save(directory: Path, config: Any) -> Path:
    """Write the checkpoint of a causal language model in bfloat16, in shards as the hub has them."""
    directory.mkdir()
    config.architectures = [transformers.AutoModelForCausalLM._model_mapping[type(config)].__name__]
    config.save_pretrained(directory)
    weight_map: dict[str, str] = {}
    shards = list(_shards(list(_tensors(config))))
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write(directory / file, shard)
        weight_map |= dict.fromkeys((name for name, _ in shard), file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


_Tensor = tuple[str, tuple[int, ...]]


def _tensors(config: Any) -> Iterator[_Tensor]:
    """Names and shapes as checkpoints have them: experts one by one."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    for name, tensor in model.state_dict().items():
        stem, _, last = name.rpartition(".")
        if name in tied:
            continue
        if not stem.endswith(".experts"):
            yield name, tuple(tensor.shape)
            continue
        num_experts, rows, columns = tensor.shape
        parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else (last,)
        for expert in range(num_experts):
            for part in parts:
                yield f"{stem}.{expert}.{part}.weight", (rows // len(parts), columns)


def _shards(tensors: list[_Tensor]) -> Iterator[list[_Tensor]]:
    shard: list[_Tensor] = []
    size = 0
    for name, shape in tensors:
        shard.append((name, shape))
        size += math.prod(shape) * _ITEM_BYTES
        if size > _SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _write(path: Path, tensors: list[_Tensor]) -> None:
    header = {}
    end = 0
    for name, shape in tensors:
        start, end = end, end + math.prod(shape) * _ITEM_BYTES
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        stream.truncate(8 + len(raw) + end)
