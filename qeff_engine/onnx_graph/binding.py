"""Initializers bound to bytes: ranges of the checkpoint's own files, or of a side file that is written here.

A graph computes in float32; a weight that is stored in another floating type is cast behind its initializer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qeff_engine import files
from qeff_engine.errors import Bug
from qeff_engine.onnx_graph import folding
from qeff_engine.onnx_graph.arranging_nodes import Arranger
from qeff_engine.onnx_graph.sources import DTYPES, Arranged, Made, Source, Stored, onnx_dtype
from qeff_engine.safetensors_header import TensorPlace

_FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_ALIGNMENT = 64  # bytes, of tensors in a side file
_LARGEST_INLINE = 64 * 1024  # bytes of constants that stay in the graph


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """What was bound.

    Attributes:
        num_tensors: initializers with data outside the graph.
        files: names of the checkpoint's files that they lie in.
        side_bytes: bytes written into the side file.
    """

    num_tensors: int
    files: tuple[str, ...]
    side_bytes: int


def add_initializer(model: ir.Model, name: str, source: Source) -> ir.Value:
    """The float32 (or integer) value of a weight in the main graph, made when it is not there yet."""
    value = model.graph.initializers.get(name)
    if value is None:
        dtype = onnx_dtype(source, name=name)
        value = ir.Value(name=name, type=ir.TensorType(_computed(dtype)), shape=ir.Shape(source.shape))
        model.graph.initializers[name] = value
    return value


def rename(model: ir.Model, *, names: Mapping[str, str]) -> None:
    """Give the initializers of a traced module the names of their weights; two names of one weight become one value.

    Args:
        model: the graph.
        names: name of the weight by name in the traced module.
    """
    for old, value in list(model.graph.initializers.items()):
        new = names.get(old)
        if new is None or new == old:
            continue
        existing = model.graph.initializers.get(new)
        del model.graph.initializers[old]
        if existing is not None:
            ir.convenience.replace_all_uses_with(value, existing)
        else:
            value.name = new
            model.graph.initializers[new] = value


def bind(model: ir.Model, *, sources: Mapping[str, Source], snapshot: Path, out: Path, side_file: str) -> Bound:
    """Give every weight among the initializers its bytes.

    Args:
        model: the graph, with initializers named as in ``sources``.
        sources: sources by name; those that the graph does not use are passed over.
        snapshot: directory of the checkpoint; the files that are used are linked into ``out``.
        out: directory that the graph will be saved in.
        side_file: name of the file in ``out`` for tensors that are made; not written when there are none.
    """
    used = _used(model, sources=sources)
    places = {name: source.place for name, source in used.items() if isinstance(source, Stored)}
    with _SideFile(out / side_file) as side:
        for name, source in used.items():
            if isinstance(source, Made):
                places[name] = side.add(source)
        _move_large_constants(model, side=side, bound=used)
    for name, source in used.items():
        _set_stored_type(model, model.graph.initializers[name], dtype=onnx_dtype(source, name=name))
    arranger = Arranger(model)
    for name, source in used.items():
        if isinstance(source, Arranged):
            arranger.replace(model.graph.initializers[name], source.arrangement)
    places |= arranger.places
    for name, place in places.items():
        model.graph.initializers[name].const_value = ir.ExternalTensor(
            place.file,
            place.offset,
            place.nbytes,
            DTYPES[place.dtype],
            shape=ir.Shape(place.shape),
            name=name,
            base_dir=snapshot,
        )
    linked = sorted({place.file for place in places.values()} - {side_file})
    for file in linked:
        if not (out / file).exists():
            files.link_or_copy(snapshot / file, out / file)
    return Bound(num_tensors=len(places), files=tuple(linked), side_bytes=side.size)


def _used(model: ir.Model, *, sources: Mapping[str, Source]) -> dict[str, Source]:
    """The sources of the initializers that the graph uses; others are dropped from it."""
    used: dict[str, Source] = {}
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
        elif name in sources:
            used[name] = sources[name]
        elif value.const_value is None or folding.has_no_values(value):
            raise Bug(f"Initializer {name} has no source.")
    return used


def add_imports(model: ir.Model) -> None:
    """Import every domain that nodes or functions use, at version 1."""
    graphs: Iterable[Any] = (model.graph, *model.functions.values())
    for graph in graphs:
        for node in graph:
            if node.domain:
                graph.opset_imports.setdefault(node.domain, 1)
                model.opset_imports.setdefault(node.domain, 1)


def save(model: ir.Model, path: Path) -> int:
    """Write the graph without its external data and return the number of bytes."""
    content = ir.to_proto(model).SerializeToString(deterministic=True)
    path.write_bytes(content)
    return len(content)


def _computed(dtype: ir.DataType) -> ir.DataType:
    return ir.DataType.FLOAT if dtype in _FLOATS else dtype


def _set_stored_type(model: ir.Model, value: ir.Value, *, dtype: ir.DataType) -> None:
    """Cast to float32 where a weight is used; rows are looked up first and cast then."""
    value.type = ir.TensorType(dtype)
    if dtype not in _FLOATS:
        return
    uses = list(value.uses())
    lookups = [node for node, index in uses if node.op_type == "Gather" and not node.domain and index == 0]
    for node in lookups:
        _cast_after(model, node)
    rest = [(node, index) for node, index in uses if node not in lookups]
    if not rest:
        return
    cast = ir.node("Cast", [value], attributes={"to": int(ir.DataType.FLOAT)}, name=f"cast/{value.name}")
    cast.outputs[0].name = f"{value.name}/float32"
    model.graph.insert_before(model.graph[0], cast)
    for node, index in rest:
        node.replace_input_with(index, cast.outputs[0])


def _cast_after(model: ir.Model, node: ir.Node) -> None:
    output = node.outputs[0]
    uses = list(output.uses())
    cast = ir.node("Cast", [output], attributes={"to": int(ir.DataType.FLOAT)}, name=f"{node.name}/cast")
    cast.outputs[0].name = f"{output.name}/float32"
    model.graph.insert_after(node, cast)
    for user, index in uses:
        user.replace_input_with(index, cast.outputs[0])


def _move_large_constants(model: ir.Model, *, side: _SideFile, bound: Mapping[str, Source]) -> None:
    """Move tables that code computes (positions, for example) out of the graph."""
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if name in bound or tensor is None or tensor.nbytes <= _LARGEST_INLINE:
            continue
        offset = side.append(tensor.numpy().tobytes())
        value.const_value = ir.ExternalTensor(
            side.path.name,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=tensor.shape,
            name=name,
            base_dir=side.path.parent,
        )


class _SideFile:
    """Tensors one after another in a file that is made when the first one comes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._stream: Any = None

    def __enter__(self) -> _SideFile:
        return self

    def __exit__(self, *error: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def append(self, content: bytes | memoryview) -> int:
        """Write bytes and return where they begin."""
        if self._stream is None:
            self._stream = self.path.open("wb")
        padding = -self.size % _ALIGNMENT
        self._stream.write(b"\0" * padding)
        offset = self.size + padding
        self._stream.write(content)
        self.size = offset + len(content)
        return offset

    def add(self, source: Made) -> TensorPlace:
        """Write a tensor and return its place."""
        values = source.make()
        if hasattr(values, "detach"):  # a torch tensor: numpy has no bfloat16
            import torch

            values = values.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        content = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        offset = self.append(content)
        return TensorPlace(
            file=self.path.name, dtype=source.dtype, shape=source.shape, offset=offset, nbytes=len(content)
        )
