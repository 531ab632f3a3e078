"""A quantized checkpoint as a float model of transformers: a second reader, written without the packing module."""

import json
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

AWQ_NIBBLE_OF_COLUMN = (0, 4, 1, 5, 2, 6, 3, 7)


def nibbles(words, order=tuple(range(8))):
    """Columns [.., 8n] of words [.., n]: column j of a word is its nibble ``order[j]``."""
    return torch.stack([(words >> (4 * nibble)) & 15 for nibble in order], dim=-1).flatten(-2).float()


def float_weight(tensors, stem, method):
    """The float32 weight [out, in] of a linear."""
    qweight, qzeros = tensors[stem + "qweight"], tensors[stem + "qzeros"]
    scales_GO = tensors[stem + "scales"].float()
    if method == "awq":
        q_IO, zeros_GO = nibbles(qweight, AWQ_NIBBLE_OF_COLUMN), nibbles(qzeros, AWQ_NIBBLE_OF_COLUMN)
    else:
        q_IO, zeros_GO = nibbles(qweight.T.contiguous()).T, nibbles(qzeros) + 1
    columns = q_IO.shape[0] // scales_GO.shape[0]
    scales_IO, zeros_IO = (values.repeat_interleave(columns, dim=0) for values in (scales_GO, zeros_GO))
    return ((q_IO - zeros_IO) * scales_IO).T.contiguous()


def save_float(directory, target):
    """Write the checkpoint whose float32 weights are the dequantized ones of ``directory``; returns ``target``."""
    config = json.loads((directory / "config.json").read_text())
    method = config.pop("quantization_config")["quant_method"]
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors.update(load_file(path))
    state = {}
    for name, tensor in tensors.items():
        stem, _, suffix = name.rpartition(".")
        if suffix == "qweight":
            state[stem + ".weight"] = float_weight(tensors, stem + ".", method)
        elif suffix not in ("qzeros", "scales", "g_idx"):
            state[name] = tensor.float()
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return target


def load(directory):
    """The float32 model whose weights are the dequantized ones."""
    with tempfile.TemporaryDirectory() as scratch:
        target = save_float(directory, Path(scratch) / "float")
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            target, dtype=torch.float32, output_loading_info=True
        )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()
