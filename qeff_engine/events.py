"""What a stage says while it works. Events are JSON objects on one line each; who listens decides how they look."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """One thing a stage says.

    Attributes:
        kind: ``started``, ``progress``, ``log``, ``finished`` or ``failed``.
        message: one sentence for people.
        fraction: how much of the stage is done, 0 to 1, or None when unknown.
        data: further JSON values, such as figures.
    """

    kind: str
    message: str
    fraction: float | None = None
    data: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """The event as one line of JSON, without empty fields."""
        fields = {key: value for key, value in dataclasses.asdict(self).items() if value not in (None, {})}
        return json.dumps(fields, sort_keys=True)


Emit = Callable[[Event], None]


def progress(message: str, *, fraction: float | None = None) -> Event:
    """A step of the stage that a person may want to see."""
    return Event(kind="progress", message=message, fraction=fraction)


def log(message: str) -> Event:
    """A line of a tool's output."""
    return Event(kind="log", message=message)


def discard(event: Event) -> None:
    """An :data:`Emit` that listens to nothing."""
