"""Cache operators as graphs of Qualcomm's library bring them: functions on any shape, with invalid positions in them.

The bodies are written from the operators' documented meaning: no mask, no clamp. What the card does with -1 and
2147483647, dropping such writes and skipping such reads, is what makes them right.
"""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from onnx import TensorProto, helper

from tests.unit.qeff_engine.simulated_sdk import graphs

_DOMAIN = "com.qualcomm.cloud"
_INT32_MAX = 2147483647
_FBS, _B, _H, _L, _S, _D = 3, 2, 2, 6, 4, 3

# Indices (row, head, position), or (row, position) without heads, of shape [..., 1] each.
_INDICES = """
    shape = Shape (data)
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    last = Constant <value_ints: ints = [-1]> ()
    v0 = Constant <value_ints: ints = [0]> ()
    v1 = Constant <value_ints: ints = [1]> ()
    v2 = Constant <value_ints: ints = [2]> ()
    batch = Gather (shape, zero)
    heads = Gather (shape, one)
    v12 = Constant <value_ints: ints = [1, 2]> ()
    v02 = Constant <value_ints: ints = [0, 2]> ()
"""
_ROWS = "rows0 = Range (zero, batch, one)\n rows = Unsqueeze (rows0, {axes})\n"
_SLOTS = "rows0 = Cast <to: int = 7> (batch_index)\n rows = {slots}\n"
_HEADS = "heads0 = Range (zero, heads, one)\n heads3 = Unsqueeze (heads0, v02)\n"
_JOINED = """
    wide = Cast <to: int = 7> (where)
    rows_e = Expand (rows, full)
    {heads}
    positions_e = Expand (wide, full)
    rows_i = Unsqueeze (rows_e, last)
    positions_i = Unsqueeze (positions_e, last)
    indices = Concat <axis: int = -1> ({parts})
"""
_3D = _JOINED.format(heads="", parts="rows_i, positions_i")
_4D = _JOINED.format(
    heads="heads_e = Expand (heads3, full)\n heads_i = Unsqueeze (heads_e, last)",
    parts="rows_i, heads_i, positions_i",
)
_OF_UPDATES = "u = Shape (updates)\n full = Slice (u, v0, {end})\n"
_WRITE = "result = ScatterND (data, indices, updates)"
_READ = "result = GatherND (data, indices)"
_BATCHED_READ = """
    wide = Cast <to: int = 7> (ctx_indices)
    cut = Slice (shape, v0, {depth})
    length = Unsqueeze (comp_ctx_len, v0)
    full = Concat <axis: int = 0> (cut, length)
    expanded = Expand (wide, full)
    indices = Unsqueeze (expanded, last)
    result = GatherND <batch_dims: int = {dims}> (data, indices)
"""
_SQUEEZED = _SLOTS.format(slots="Identity (rows0)")
_WITH_HEADS = _SLOTS.format(slots="Unsqueeze (rows0, v2)") + _HEADS
_POSITIONS_PER_HEAD = "where = Unsqueeze (position_ids, v1)\n"
_POSITIONS = "where = Identity (position_ids)\n"
_CTX = "where = Identity (ctx_indices)\n full = Shape (ctx_indices)\n"

_WRITES = {
    "CtxScatter": _POSITIONS_PER_HEAD + _ROWS.format(axes="v12") + _HEADS + _OF_UPDATES.format(end="v3") + _4D + _WRITE,
    "CtxScatter3D": _POSITIONS + _ROWS.format(axes="v1") + _OF_UPDATES.format(end="v2") + _3D + _WRITE,
    "CtxScatterCB": _POSITIONS_PER_HEAD + _WITH_HEADS + _OF_UPDATES.format(end="v3") + _4D + _WRITE,
    "CtxScatterCB3D": _POSITIONS + _SQUEEZED + _OF_UPDATES.format(end="v2") + _3D + _WRITE,
}
_READS = {
    "CtxGather": _BATCHED_READ.format(depth="v2", dims=2),
    "CtxGather3D": _BATCHED_READ.format(depth="v1", dims=1),
    "CtxGatherCB": _CTX + _WITH_HEADS + _4D + _READ,
    "CtxGatherCB3D": _CTX + _SQUEEZED + _3D + _READ,
}


def _function(name, inputs, body, *, opset):
    text = f'<opset_import: ["": {opset}], domain: "{_DOMAIN}">\n{name} ({", ".join(inputs)}) => (result) {{ {_INDICES}'
    return onnx.parser.parse_function(text + "v3 = Constant <value_ints: ints = [3]> ()\n" + body + "}")


def _in_layer(function, inputs, *, opset):
    """The operator called from a function, as from a layer of a decoder."""
    call = helper.make_node(function.name, inputs, ["result"], domain=_DOMAIN)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(_DOMAIN, 1)]
    return helper.make_function("layers", "Layer", inputs, ["result"], [call], imports)


@pytest.fixture
def run(tmp_path, compile_in, runtime):
    """Compile an operator inside a layer with symbolic shapes, run it on arrays, return its result."""
    clients = []

    def compute(name, body, arrays, *, symbols, shapes, result, weights=None, opset=17):
        inputs = [*arrays, *(weights or {})]
        function = _function(name, inputs, body, opset=opset)
        kinds = {key: helper.np_dtype_to_tensor_dtype(array.dtype) for key, array in arrays.items()}
        graph = graphs.model(
            [helper.make_node("Layer", inputs, ["y"], domain="layers")],
            inputs={key: (kinds[key], shapes[key]) for key in arrays},
            outputs={"y": (TensorProto.FLOAT, result)},
            weights=weights,
            opsets={"layers": 1, _DOMAIN: 1},
            functions=[_in_layer(function, inputs, opset=opset), function],
        )
        graph.opset_import[0].version = opset
        assert compile_in(graphs.save(graph, tmp_path), specializations=[symbols]) == 0
        clients.append(graphs.Client(*runtime, program=tmp_path / "qpc"))
        assert clients[-1].activate() == 0
        out = np.zeros([int(symbols.get(axis, axis)) for axis in result], np.float32)
        return clients[-1].call(clients[-1].exec_object(), arrays, outputs={"y": out})["y"]

    yield compute
    for client in clients:
        client.program.deactivate()


def _symbols():
    return {"batch": str(_B), "slots": str(_FBS), "ctx": str(_L), "seq": str(_S)}


def _data(name):
    continuous = "CB" in name
    dims = [_FBS if continuous else _B, *([] if "3D" in name else [_H]), _L, _D]
    symbolic = ["slots" if continuous else "batch", *([] if "3D" in name else [_H]), "ctx", _D]
    values = np.arange(1, 1 + np.prod(dims), dtype=np.float32).reshape(dims)
    return values, symbolic


@pytest.mark.parametrize("name", _WRITES)
@pytest.mark.parametrize("opset", [13, 17, 18])
def test_writes_at_invalid_positions_are_dropped(run, name, opset):
    data, symbolic = _data(name)
    positions = np.array([[2, 0, -1, _INT32_MAX], [_INT32_MAX, -1, _L, 5]], np.int32)
    updates = -np.arange(1, 1 + _B * _H * _S * _D, dtype=np.float32).reshape(_B, _H, _S, _D)
    heads = [_H]
    if "3D" in name:
        updates, heads = updates[:, 0], []
    arrays = {"data": data, "position_ids": positions, "updates": np.ascontiguousarray(updates)}
    shapes = {"data": symbolic, "position_ids": ["batch", "seq"], "updates": ["batch", *heads, "seq", _D]}
    slots = np.arange(_B)
    if "CB" in name:
        slots = np.array([2, 0])
        arrays["batch_index"], shapes["batch_index"] = slots[:, None].astype(np.int32), ["batch", 1]
    got = run(name, _WRITES[name], arrays, symbols=_symbols(), shapes=shapes, result=symbolic, opset=opset)
    expected = data.copy()
    for row, token in np.ndindex(_B, _S):
        if 0 <= positions[row, token] < _L:
            expected[slots[row], ..., positions[row, token], :] = updates[row, ..., token, :]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", _READS)
@pytest.mark.parametrize("invalid", [-1, _INT32_MAX])
def test_reads_at_invalid_positions_are_skipped_and_others_are_right(run, name, invalid):
    data, symbolic = _data(name)
    heads = [] if "3D" in name else [_H]
    per_row = np.array([[0, 3, invalid, 5], [invalid, invalid, 1, 1]], np.int32)
    weights = None
    arrays, slots = {"data": data}, np.arange(_B)
    if "CB" in name:
        slots = np.array([2, 0])
        arrays["batch_index"] = slots[:, None].astype(np.int32)
        indices = per_row if not heads else np.broadcast_to(per_row[:, None], (_B, _H, _S))
        shapes = {"data": symbolic, "batch_index": ["batch", 1], "ctx_indices": ["batch", *heads, "seq"]}
    else:
        # One row of indices stands for all.
        per_row[1] = per_row[0]
        indices = per_row[:1] if not heads else per_row[None, :1]
        shapes = {"data": symbolic, "ctx_indices": [1, *([1] if heads else []), "seq"]}
        weights = {"comp_ctx_len": np.array(_S)}
    arrays["ctx_indices"] = np.ascontiguousarray(indices)
    result = ["batch", *heads, "seq", _D]
    got = run(name, _READS[name], arrays, symbols=_symbols(), shapes=shapes, result=result, weights=weights)
    for row, token in np.ndindex(_B, _S):
        if per_row[row, token] != invalid:
            np.testing.assert_array_equal(got[row, ..., token, :], data[slots[row], ..., per_row[row, token], :])
    assert np.isin(got, data).all(), "a skipped read brings nothing from elsewhere"
