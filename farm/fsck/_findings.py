"""What a check finds."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable


class State(enum.StrEnum):
    """What was done about a finding."""

    FOUND = "found"  # a repair was not asked for
    REPAIRED = "repaired"
    REPORTED = "reported"  # nothing is to be done here
    GONE = "gone"  # it was not so any more when it was to be repaired


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it must be.

    Attributes:
        kind: one word for programs.
        subject: an artifact's digest, a job such as ``j12``, or a path.
        words: a sentence for people.
        repair: puts it right; False if it was not wrong any more. None: nothing is to be done here.
        state: what was done about it.
    """

    kind: str
    subject: str
    words: str
    repair: Callable[[], bool] | None = dataclasses.field(default=None, repr=False, compare=False)
    state: State = State.FOUND

    def settle(self, *, repair: bool) -> Finding:
        """The finding after it was repaired, if that is wanted and possible."""
        if self.repair is None:
            return dataclasses.replace(self, state=State.REPORTED)
        if not repair:
            return self
        return dataclasses.replace(self, state=State.REPAIRED if self.repair() else State.GONE)
