"""Reads an ONNX model without its weights, and the weights piece by piece."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterator
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from qeff_engine.simulated_sdk.refusal import input_refusal, model_refusal

_BITS = {
    TensorProto.FLOAT: 32,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
    TensorProto.UINT16: 16,
    TensorProto.INT16: 16,
    TensorProto.INT32: 32,
    TensorProto.INT64: 64,
    TensorProto.BOOL: 8,
    TensorProto.FLOAT16: 16,
    TensorProto.DOUBLE: 64,
    TensorProto.UINT32: 32,
    TensorProto.UINT64: 64,
    TensorProto.BFLOAT16: 16,
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight:
    """An initializer and where its bytes are: in a file, or in memory when ``path`` is None.

    Attributes:
        name: of the initializer.
        onnx_type: ``TensorProto.DataType``.
        dims: its shape.
        path: file with its bytes.
        offset: of its bytes in that file.
        data: its bytes when they are inside the model file.
    """

    name: str
    onnx_type: int
    dims: tuple[int, ...]
    path: Path | None
    offset: int
    data: bytes

    @property
    def num_bytes(self) -> int:
        """Bytes in the source."""
        return -(-prod(self.dims) * _BITS[self.onnx_type] // 8)

    def raw(self, *, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes ``start`` to ``stop``, mapped when they are in a file."""
        if self.path is None:
            return np.frombuffer(self.data, np.uint8)[start:stop]
        return np.memmap(self.path, np.uint8, "r", offset=self.offset + start, shape=(stop - start,))

    def is_hole(self) -> bool:
        """Whether the file has no blocks for these bytes, which then are zero."""
        if self.path is None:
            return False
        with self.path.open("rb") as file:
            try:
                return os.lseek(file.fileno(), self.offset, os.SEEK_DATA) >= self.offset + self.num_bytes
            except OSError as error:
                return error.errno == errno.ENXIO  # no data behind this offset

    def raw_pieces(self, *, piece_bytes: int) -> Iterator[npt.NDArray[np.uint8]]:
        """All bytes in order, in pieces."""
        for start in range(0, self.num_bytes, piece_bytes):
            yield self.raw(start=start, stop=min(start + piece_bytes, self.num_bytes))

    def floats(self, *, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Elements ``start`` to ``stop`` of the flat tensor as fp32; of fp32, fp16 and bf16 sources."""
        item_bytes = _BITS[self.onnx_type] // 8
        raw = self.raw(start=start * item_bytes, stop=stop * item_bytes)
        if self.onnx_type == TensorProto.BFLOAT16:
            return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        source = "<f4" if self.onnx_type == TensorProto.FLOAT else "<f2"
        return raw.view(source).astype(np.float32)


def load_model(path: Path) -> onnx.ModelProto:
    """The model in an ``.onnx`` file, its external data left where it is.

    Raises:
        Refusal: no such file, or no ONNX model.
    """
    if path.suffix != ".onnx":
        raise input_refusal(f"Unable to load {path}: expected a model with the extension .onnx.")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise input_refusal(f"Unable to open {path}. Err={error.strerror}") from error
    except (DecodeError, ValueError) as error:
        raise model_refusal(f"{path} is not an ONNX model: {error}") from error
    if not model.graph.node or not model.opset_import:
        raise model_refusal(f"{path} is not an ONNX model: it has no nodes or no opset.")
    return model


def weights_of(model: onnx.ModelProto, *, directory: Path) -> dict[str, Weight]:
    """The initializers of the main graph by name.

    Raises:
        Refusal: external data lies outside ``directory``, is missing or too short.
    """
    if model.graph.sparse_initializer:
        raise model_refusal("Sparse initializers are not supported.")
    return {tensor.name: _weight(tensor, directory=directory) for tensor in model.graph.initializer}


def _weight(tensor: onnx.TensorProto, *, directory: Path) -> Weight:
    if tensor.data_type not in _BITS:
        kind = TensorProto.DataType.Name(tensor.data_type)
        raise model_refusal(f"Initializer '{tensor.name}' has the type {kind}, which is not supported.")
    fields: dict[str, Any] = {"name": tensor.name, "onnx_type": tensor.data_type, "dims": tuple(tensor.dims)}
    if tensor.data_location != TensorProto.EXTERNAL:
        data = tensor.raw_data if tensor.HasField("raw_data") else _packed(tensor)
        weight = Weight(**fields, path=None, offset=0, data=data)
        if len(data) != weight.num_bytes:
            raise model_refusal(
                f"Initializer '{tensor.name}' has {len(data)} bytes, its shape wants {weight.num_bytes}."
            )
        return weight
    external = {entry.key: entry.value for entry in tensor.external_data}
    path = directory / _inside(external.get("location", ""), name=tensor.name)
    try:
        offset = int(external.get("offset", 0))
        available = path.stat().st_size
    except OSError as error:
        raise model_refusal(f"External data of '{tensor.name}': unable to open {path}. Err={error.strerror}") from error
    except ValueError as error:
        raise model_refusal(f"External data of '{tensor.name}' has the offset {external.get('offset')!r}.") from error
    weight = Weight(**fields, path=path, offset=offset, data=b"")
    length = int(external.get("length", weight.num_bytes))
    if length != weight.num_bytes or offset < 0 or offset + weight.num_bytes > available:
        raise model_refusal(
            f"External data of '{tensor.name}' is truncated: bytes {offset} to {offset + weight.num_bytes} are wanted, "
            f"the entry has {length} and {path} ends at {available}."
        )
    return weight


def _packed(tensor: onnx.TensorProto) -> bytes:
    """The bytes of a tensor whose values are in a typed field."""
    array = onnx.numpy_helper.to_array(tensor)
    if _BITS[tensor.data_type] < 8:
        raise model_refusal(f"Initializer '{tensor.name}' has 4-bit values in a typed field, expected raw data.")
    return bytes(array.tobytes())


def _inside(location: str, *, name: str) -> str:
    """A location of external data, which must stay inside the model's directory."""
    path = PurePosixPath(location)
    if not location or path.is_absolute() or ".." in path.parts or "\0" in location:
        raise model_refusal(
            f"External data of '{name}' lies at '{location}', expected a relative path inside the model's directory."
        )
    return location
