"""Changes to other people's objects that are undone whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any


@contextlib.contextmanager
def attributes(changes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Set attributes (object, name, value) for the time of a ``with`` block."""
    done: list[tuple[Any, str, bool, Any]] = []
    try:
        for owner, name, value in changes:
            own = vars(owner)
            done.append((owner, name, name in own, own.get(name)))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, existed, value in reversed(done):
            if existed:
                setattr(owner, name, value)
            else:
                delattr(owner, name)
