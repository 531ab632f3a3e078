"""Headers that no writer of the format makes are refused before anything is allocated by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qeff_engine import safetensors_header
from qeff_engine.errors import InvalidInput


def write(path: Path, header: dict[str, Any] | list[Any], *, num_bytes: int = 16) -> Path:
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(num_bytes))
    return path


def tensor(shape: list[Any], start: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": tensor([-2, -2], 0, 16)}, r"shape \[-2, -2\].*no negative"),
        ({"a": tensor([4], 0, 16), "b": tensor([-2], 16, 8)}, "no negative"),
        ({"a": tensor([4], -16, 0)}, "no negative"),
        ({"a": tensor([10**18, 10**18], 0, 16)}, f"has 16 bytes, expected {4 * 10**36}"),
        ({"a": tensor([4], 0, 10**30)}, "expected 16 for F32"),
        ({"a": tensor([4], 0, 16), "b": tensor([4], 8, 24)}, "begins at byte"),
        ({"a": tensor(["x"], 0, 16)}, "a of .* has a damaged entry"),
        ({"a": tensor([4], None, 16)}, "a of .* has a damaged entry"),
        ({"a": {"dtype": "F32"}}, "a of .* has a damaged entry"),
        ({"a": 7}, "a of .* has a damaged entry"),
        ([1, 2], "header of .* is damaged"),
    ],
)
def test_a_header_that_cannot_be_true_is_refused(header: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=message):
        safetensors_header.read(write(tmp_path / "model.safetensors", header))


def test_a_header_longer_than_the_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(InvalidInput, match="truncated or not a safetensors file"):
        safetensors_header.read(path)
