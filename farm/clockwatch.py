"""Notices when the database's clock jumps: set by hand, put right after a boot, or a machine that slept.

All leases, and what else lasts until a time, are by that clock. After a jump forward all of them look over though
nobody is late; after a jump backward none ends for as long as the jump was. So the scheduler takes nothing for a while
after a jump, and what lasts much longer than it could ever have been given counts as over.
"""

from __future__ import annotations

FAR_LEASES = 10.0  # lengths of a lease; what ends so far ahead was written before the clock was set back


class ClockWatch:
    """Compares the progress of the database's clock with that of a clock that nobody sets.

    Args:
        tolerance_s: what the two may differ by between two looks, for looking takes time, too.
    """

    def __init__(self, *, tolerance_s: float) -> None:
        self._tolerance_s = tolerance_s
        self._last: tuple[float, float] | None = None

    def jump_s(self, *, database: float, own: float) -> float:
        """By how much the database's clock has jumped since the last look, in seconds; 0 when it has not.

        Args:
            database: what it says now, in seconds since the epoch.
            own: this process's monotonic clock.
        """
        last, self._last = self._last, (database, own)
        if last is None:
            return 0.0
        jump_s = (database - last[0]) - (own - last[1])
        return jump_s if abs(jump_s) > self._tolerance_s else 0.0
