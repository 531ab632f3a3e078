"""Sizes as people write them."""

from __future__ import annotations

import pytest

from farm import sizes
from farm.errors import Usage


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("512", 512), ("200GB", 200 * 10**9), ("1.5 GiB", 3 << 29), ("10 k", 10_000), ("2TiB", 2 << 40), ("0", 0)],
)
def test_sizes_are_read(text: str, num_bytes: int) -> None:
    assert sizes.parse(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GB", "5 PB", "-1", "1e9", "5 GB more"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(Usage, match="is not a size"):
        sizes.parse(text)
