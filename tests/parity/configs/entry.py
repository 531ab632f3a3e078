"""One row of the tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """The tiny configuration of an architecture.

    Attributes:
        fields: of the config, over the common ones.
        text: the sub-config that the decoder's fields belong to; empty when they belong to the config itself.
        impossible: why there is nothing to compare; empty when there is.
    """

    fields: Mapping[str, Any]
    text: str = ""
    impossible: str = ""


def entry(*, text: str = "", **fields: Any) -> Entry:
    """An architecture with these fields over the common ones."""
    return Entry(fields=fields, text=text)


def impossible(reason: str) -> Entry:
    """An architecture without a tiny model to compare with."""
    return Entry(fields={}, impossible=reason)
