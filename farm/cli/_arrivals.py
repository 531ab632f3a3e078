"""When submissions are expected to be done, as commands say it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from farm import durations
from farm.cli import _words
from farm.cli._context import Context

if TYPE_CHECKING:
    import sqlalchemy as sa

    from farm.views import queries


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrivals:
    """What is expected of the submissions that have not ended, by id.

    Attributes:
        at: when they are expected to be done; None when nobody can tell.
        now: the database's clock.
    """

    at: Mapping[int, float | None]
    now: float

    def briefly(self, submission_id: int) -> str:
        """Such as ``in 4m10s``, or ``unknown``; empty when it has ended."""
        if submission_id not in self.at:
            return ""
        at = self.at[submission_id]
        if at is None:
            return "unknown"
        left_s = round(at - self.now)
        return f"in {durations.words(left_s)}" if left_s > 0 else "at any moment"

    def fully(self, submission_id: int) -> str:
        """Such as ``done in 4m10s, at 2026-11-24 14:03:10``."""
        said = self.briefly(submission_id)
        at = self.at.get(submission_id)
        return said if at is None else f"done {said}, at {_words.moment(at)}"


def expected(context: Context, connection: sa.Connection, found: Sequence[queries.Submission]) -> Arrivals:
    """What is expected of those of some submissions that have not ended."""
    if all(row.finished_at is not None for row in found):
        return Arrivals(at={}, now=0.0)
    from farm import db
    from farm.views import arrivals

    now = db.now(connection)
    at = arrivals.expected(connection, found, now=now, heard_since=context.heard_since(now))
    return Arrivals(at=at, now=now)
