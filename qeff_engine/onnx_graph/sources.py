"""Where the bytes of an initializer come from: a range of a checkpoint file, or something that is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from qeff_engine.errors import Unsupported
from qeff_engine.onnx_graph import arrangements
from qeff_engine.onnx_graph.arrangements import Arrangement
from qeff_engine.safetensors_header import TensorPlace

# Types of safetensors in the words of ONNX.
DTYPES: Mapping[str, ir.DataType] = MappingProxyType(
    {
        "F64": ir.DataType.DOUBLE,
        "F32": ir.DataType.FLOAT,
        "F16": ir.DataType.FLOAT16,
        "BF16": ir.DataType.BFLOAT16,
        "I64": ir.DataType.INT64,
        "I32": ir.DataType.INT32,
        "I16": ir.DataType.INT16,
        "I8": ir.DataType.INT8,
        "U8": ir.DataType.UINT8,
        "BOOL": ir.DataType.BOOL,
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor that is contiguous bytes of a file of the checkpoint; it is referred to and never read.

    Attributes:
        place: file, offset, length, type and shape.
    """

    place: TensorPlace

    @property
    def dtype(self) -> str:
        """Type, as safetensors spells it."""
        return self.place.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        return self.place.shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arranged:
    """A tensor that nodes of the graph put together from bytes of the checkpoint, which are referred to, too.

    Attributes:
        arrangement: how.
    """

    arrangement: Arrangement

    @property
    def dtype(self) -> str:
        """Type, as safetensors spells it."""
        return arrangements.dtype_of(self.arrangement)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        return self.arrangement.shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A tensor that no file has as it is; it is computed when the side file is written, and forgotten again.

    Attributes:
        dtype: type, as safetensors spells it.
        shape: sizes.
        make: the values, as a torch tensor or a numpy array of that type and shape.
    """

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Any]


Source = Stored | Arranged | Made


def onnx_dtype(source: Source, *, name: str) -> ir.DataType:
    """The ONNX type of a source.

    Raises:
        Unsupported: the graph has no use for the type.
    """
    if source.dtype not in DTYPES:
        raise Unsupported(
            f"Tensor {name} has the type {source.dtype}, expected one of {', '.join(DTYPES)}.",
            advice="Start from a checkpoint in float32, float16 or bfloat16.",
        )
    return DTYPES[source.dtype]
