"""What a quantized checkpoint consists of: tensor names and shapes, config, and layers as they are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

import qeff_engine
from qeff_engine.quantizers import base, packing
from qeff_engine.quantizers.base import Grid, QuantizedWeight, Quantizer
from qeff_engine.quantizers.block import LayerResult
from qeff_engine.quantizers.checkpoint_files import DTYPES, CheckpointReader, CheckpointWriter, TensorInfo
from qeff_engine.quantizers.layerwise import LayeredModel
from qeff_engine.quantizers.selection import Selection
from qeff_engine.spec import QuantizeSpec

Keys = Mapping[str, str]  # checkpoint names by parameter of a layer


def quantization_config(spec: QuantizeSpec, *, quantizer: Quantizer, chosen: Selection) -> dict[str, Any]:
    """The ``quantization_config`` of ``config.json``, in the words of the layout's own library."""
    made_by = {"quantizer": [f"qeff-farm:{qeff_engine.__version__}"], "method": spec.method}
    common = {"quant_method": quantizer.layout, "bits": spec.bits, "group_size": spec.group_size, "meta": made_by}
    if quantizer.layout == base.AWQ_LAYOUT:
        kept = ["lm_head", *sorted(chosen.kept)]
        return {**common, "zero_point": True, "version": "gemm", "modules_to_not_convert": kept}
    return {
        **common,
        "checkpoint_format": "gptq",
        "desc_act": False,
        "sym": False,
        "lm_head": False,
        "pack_dtype": "int32",
        # The layout's way to say that a module is left out: a pattern with a minus.
        "dynamic": {f"-:^{name.replace('.', '[.]')}$": {} for name in sorted(chosen.kept)},
    }


def left_in_float(chosen: Selection) -> list[str]:
    """Sentences about what of the decoder layers is not quantized."""
    messages = [f"{name} stays in float: {reason}" for name, reason in sorted(chosen.kept.items())[:4]]
    if len(chosen.kept) > len(messages):
        messages.append(f"{len(chosen.kept) - len(messages)} more linears stay in float for such reasons")
    if chosen.stacked:
        messages.append(
            f"{len(chosen.stacked)} stacked expert weights ({sum(chosen.stacked.values())} parameters) stay in float"
        )
    return messages


def keys_by_layer(model: LayeredModel, reader: CheckpointReader) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Checkpoint names of each layer's tensors, by layer and parameter in it, and the names of all other tensors.

    A tensor that becomes a part of a parameter is among the others: nothing of it changes.
    """
    layers: dict[str, dict[str, str]] = {name: {} for name in model.layer_names}
    inside: set[str] = set()
    for parameter, key in model.key_of_parameter.items():
        for layer_name in model.layer_names:
            if parameter.startswith(layer_name + "."):
                layers[layer_name][parameter.removeprefix(layer_name + ".")] = key
                inside.add(key)
    return layers, [key for key in reader.names if key not in inside]


def plan(
    reader: CheckpointReader, *, chosen: Selection, model: LayeredModel, layout: str, grid: Grid
) -> dict[str, TensorInfo]:
    """Type and shape of every tensor of the quantized checkpoint, by name, in the order of the original."""
    shapes = {model.key_of_parameter[f"{name}.weight"]: shape for name, shape in chosen.linears.items()}
    planned: dict[str, TensorInfo] = {}
    for key in reader.names:
        if key not in shapes:
            planned[key] = reader.info(key)
            continue
        out_features, in_features = shapes[key]
        stem = key.removesuffix("weight")
        for suffix, info in _packed_infos(out_features, in_features, layout=layout, grid=grid).items():
            planned[stem + suffix] = info
    return planned


def _packed_infos(out_features: int, in_features: int, *, layout: str, grid: Grid) -> dict[str, TensorInfo]:
    num_groups = in_features // grid.columns(in_features)
    words = packing.NIBBLES
    infos = {
        "qzeros": TensorInfo(dtype="I32", shape=(num_groups, out_features // words)),
        "scales": TensorInfo(dtype="F16", shape=(num_groups, out_features)),
    }
    if layout == base.AWQ_LAYOUT:
        return {"qweight": TensorInfo(dtype="I32", shape=(in_features, out_features // words)), **infos}
    return {
        "qweight": TensorInfo(dtype="I32", shape=(in_features // words, out_features)),
        "g_idx": TensorInfo(dtype="I32", shape=(in_features,)),
        **infos,
    }


def copy(reader: CheckpointReader, writer: CheckpointWriter, keys: Iterable[str]) -> None:
    """Write tensors as they are."""
    for key in keys:
        writer.write_chunks(key, reader.chunks(key))


def write_layer(
    layer: nn.Module,
    result: LayerResult,
    *,
    keys: Keys,
    reader: CheckpointReader,
    writer: CheckpointWriter,
    layout: str,
) -> None:
    """Write a layer: packed integers, changed parameters in their stored types, and the rest as it is."""
    for parameter, key in keys.items():
        weight = result.weights.get(parameter.removesuffix(".weight"))
        if weight is not None and parameter.endswith(".weight"):
            for suffix, values in pack(weight, layout=layout).items():
                writer.write(key.removesuffix("weight") + suffix, values)
        elif parameter in result.changed:
            writer.write(key, layer.get_parameter(parameter).detach().to(DTYPES[reader.info(key).dtype]))
        else:
            writer.write_chunks(key, reader.chunks(key))


def pack(weight: QuantizedWeight, *, layout: str) -> dict[str, packing.Array]:
    """The tensors of a weight by suffix, in a layout."""
    integers = packing.Integers(
        q_OI=weight.q_OI.numpy(),
        scales_OG=weight.scales_OG.numpy(),
        zeros_OG=weight.zeros_OG.numpy(),
        group_of_column_I=packing.sequential_groups(weight.q_OI.shape[1], group_size=weight.group_size),
    )
    return packing.pack_awq(integers) if layout == base.AWQ_LAYOUT else packing.pack_gptq(integers)
