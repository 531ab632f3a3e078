"""Where each tensor of a safetensors file lies, from the header alone. Standard library only.

Format: 8 bytes length of the header (little-endian), the header as JSON, then the tensors without gaps. See
https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qeff_engine.errors import InvalidInput

MAX_HEADER_BYTES = 100_000_000  # limit of the format's own reader
_ITEM_BYTES: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("F64", "I64", "U64"), 8),
        **dict.fromkeys(("F32", "I32", "U32"), 4),
        **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
        **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 1),
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """The bytes of one tensor.

    Attributes:
        file: name of the file, relative to the checkpoint.
        dtype: as safetensors spells it, such as ``BF16``.
        shape: sizes.
        offset: first byte in the file.
        nbytes: number of bytes.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read(path: Path) -> dict[str, TensorPlace]:
    """The tensors of one file by name.

    Raises:
        InvalidInput: the file is truncated or its header is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise InvalidInput(f"{path} has {size} bytes, expected a safetensors file.", advice=_FETCH_AGAIN)
        header_bytes = int.from_bytes(prefix, "little")
        if header_bytes > min(size - 8, MAX_HEADER_BYTES):
            raise InvalidInput(
                f"{path} is truncated or not a safetensors file: its header has {header_bytes} bytes, the file {size}.",
                advice=_FETCH_AGAIN,
            )
        header = _parsed(stream.read(header_bytes), path=path)
    start = 8 + header_bytes
    places = {name: _place(name, fields, path=path, start=start) for name, fields in header.items()}
    _check_extent(places, path=path, start=start, size=size)
    return places


_FETCH_AGAIN = "Fetch the file again."


def _parsed(raw: bytes, *, path: Path) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidInput(f"The header of {path} is damaged: {error}.", advice=_FETCH_AGAIN) from error
    return header


def _place(name: str, fields: Any, *, path: Path, start: int) -> TensorPlace:
    try:
        first, end = fields["data_offsets"]
        shape = tuple(int(axis) for axis in fields["shape"])
        place = TensorPlace(
            file=path.name, dtype=str(fields["dtype"]), shape=shape, offset=start + first, nbytes=end - first
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"Tensor {name} of {path} has a damaged entry in the header.", advice=_FETCH_AGAIN
        ) from error
    if place.nbytes < 0 or first < 0 or any(axis < 0 for axis in shape):
        raise InvalidInput(
            f"Tensor {name} of {path} has the shape {list(shape)} and lies from byte {first} to {end}, expected no "
            "negative number.",
            advice=_FETCH_AGAIN,
        )
    item_bytes = _ITEM_BYTES.get(place.dtype)
    if item_bytes is not None and place.nbytes != math.prod(shape) * item_bytes:
        raise InvalidInput(
            f"Tensor {name} of {path} has {place.nbytes} bytes, expected {math.prod(shape) * item_bytes} for "
            f"{place.dtype} {list(shape)}.",
            advice=_FETCH_AGAIN,
        )
    return place


def _check_extent(places: Mapping[str, TensorPlace], *, path: Path, start: int, size: int) -> None:
    """The tensors fill the rest of the file, one after another."""
    end = start
    for name, place in sorted(places.items(), key=lambda item: item[1].offset):
        if place.offset != end:
            raise InvalidInput(
                f"Tensor {name} of {path} begins at byte {place.offset}, expected {end}.", advice=_FETCH_AGAIN
            )
        end += place.nbytes
    if size != end:
        state = "truncated" if size < end else "damaged"
        raise InvalidInput(f"{path} is {state}: it has {size} bytes, expected {end}.", advice=_FETCH_AGAIN)
