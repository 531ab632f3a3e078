"""What the runtime prints, and the clock that only predicted times move. Standard library only."""

from __future__ import annotations

import sys
import threading
import time

from qeff_engine.simulated_sdk.status import QLogLevel

_level = QLogLevel.QL_ERROR
_time_lock = threading.Lock()
_time_ns = 0


def set_level(level: int) -> None:
    """Print messages of this weight and above.

    Raises:
        ValueError: there is no such level.
    """
    global _level
    _level = QLogLevel(level)


def error(where: str, *, message: str) -> None:
    """Print an error in the runtime's form; ``where`` is ``[Class][function:#line]``."""
    now = time.localtime()
    stamp = f"[{now.tm_hour:02d}:{now.tm_min:02d}:{now.tm_sec:02d}.000]"
    say(f"ERROR : {stamp}[error]{where} {message}")


def say(text: str) -> None:
    """Print a line that the runtime prints without a stamp."""
    print(text, file=sys.stderr, flush=True)


def simulatedTimeNs() -> int:
    """Nanoseconds of this process's simulated clock: when the last call that was waited for ended."""
    return _time_ns


def advance_to(time_ns: int) -> None:
    """Let the simulated clock show at least this."""
    global _time_ns
    with _time_lock:
        _time_ns = max(_time_ns, time_ns)
