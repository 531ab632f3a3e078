"""Processes known by when they started, by a count that nobody sets: numbers are given again, and clocks are moved."""

from __future__ import annotations

from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # of Linux
_START = 22  # the field of /proc/PID/stat, counted from 1: ticks from the boot to the start (proc_pid_stat(5))


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
