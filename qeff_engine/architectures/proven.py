"""Which architectures have been compared with transformers by the parity suite, which writes the list."""

from __future__ import annotations

import functools
import json
from pathlib import Path

FILE = Path(__file__).with_name("proven.json")


def is_proven(model_type: str) -> bool:
    """Whether exports of an architecture compute what transformers computes, as shown by a tiny model of it."""
    return model_type in _names()


@functools.cache
def _names() -> frozenset[str]:
    return frozenset(json.loads(FILE.read_text()))
