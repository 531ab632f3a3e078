"""What a clock that is set by hand, put right after a boot, or of a machine that slept must not deceive.

All leases, and what else lasts until a time, are by that clock. After a jump forward all of them look over though
nobody is late; after a jump backward none ends for as long as the jump was. So the scheduler takes nothing for a while
after a jump, and what lasts much longer than it could ever have been given counts as over. And processes are known by a
count that nobody sets.
"""

from __future__ import annotations

from pathlib import Path

FAR_LEASES = 10.0  # lengths of a lease; what ends so far ahead was written before the clock was set back
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # of Linux
_START = 22  # the field of /proc/PID/stat, counted from 1: ticks from the boot to the start (proc_pid_stat(5))


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


def birth(pid: int) -> str | None:
    """When a process started, to be compared and nothing else; None when there is no such process. A zombie is one.

    On Linux the boot and the tick since then. Seconds since the epoch would be counted from a time of the boot that
    moves with the clock: an hour forward, and every process looks like another one. Elsewhere the kernel notes the time
    at the start, and that stays.
    """
    if not _BOOT_ID.exists():
        import psutil  # takes a while, and commands need none of this

        try:
            return repr(psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None
    try:
        # The second field is the program's name, which may have spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return f"{_BOOT_ID.read_text(encoding='ascii').strip()} {int(fields[_START - 3])}"
