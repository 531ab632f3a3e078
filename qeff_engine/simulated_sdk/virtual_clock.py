"""When calls begin and end by the simulated clock, which only waiting for them moves. Standard library only.

Each activation does its calls one after another; activations overlap. A call begins when the host has prepared it and
the activation is free, so a queue hides the host, and it takes longer the more activations of its devices are busy at
that moment. Nothing is waited for in real time unless that is asked for.

``QAIC_SIM_CLOCK`` is a comma-separated list of what is off without it:

* ``pace=X``: X real seconds for each simulated one, as far as computing has not taken them already,
* ``noise=S``: every call takes exp(N(0, S)) times as long; ``seed=N`` chooses which, the same in every process,
* ``warm_up=F:N``: the first call of an activation takes F times as long, falling evenly to 1 at call N,
* ``throttle=F:T``: after T simulated seconds of work of an activation all its calls take F times as long.
"""

from __future__ import annotations

import dataclasses
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from random import Random

from qeff_engine.simulated_sdk import runtime_log

VARIABLE = "QAIC_SIM_CLOCK"
_WORDS = ("pace", "noise", "seed", "warm_up", "throttle")


class BadClock(ValueError):
    """The variable cannot be read; the text names the part and what was expected."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClockOptions:
    """What the variable says; the values here are those without it.

    Attributes:
        pace: real seconds for a simulated one.
        noise: standard deviation of a call's logarithm.
        seed: of the noise.
        warm_up: factor of the first call, and the call at which it has fallen to 1.
        throttle: factor, and the seconds of work after which it applies.
    """

    pace: float = 0.0
    noise: float = 0.0
    seed: int = 0
    warm_up: tuple[float, float] = (1.0, 0.0)
    throttle: tuple[float, float] = (1.0, math.inf)


def parse(text: str) -> ClockOptions:
    """Read the variable's text.

    Raises:
        BadClock: an unknown word, a value that is no number or out of range.
    """
    options = ClockOptions()
    for part in filter(None, text.split(",")):
        word, _, value = part.partition("=")
        if word not in _WORDS:
            raise BadClock(f"{VARIABLE} has the part '{part}', expected one of {', '.join(_WORDS)} with '='.")
        try:
            options = _with(options, word=word, value=value)
        except ValueError as error:
            raise BadClock(f"{VARIABLE} has the part '{part}': {error}") from error
    return options


def _with(options: ClockOptions, *, word: str, value: str) -> ClockOptions:
    if word == "seed":
        return dataclasses.replace(options, seed=int(value))
    numbers = [float(item) for item in value.split(":")]
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError("a number is negative or no finite one")
    if word in ("pace", "noise"):
        (number,) = numbers
        if word == "pace":
            return dataclasses.replace(options, pace=number)
        return dataclasses.replace(options, noise=number)
    factor, limit = numbers
    if factor < 1:
        raise ValueError(f"the factor {factor:g} is below 1, which would make calls faster")
    if word == "warm_up":
        return dataclasses.replace(options, warm_up=(factor, limit))
    return dataclasses.replace(options, throttle=(factor, limit))


class Timeline:
    """The calls of one activation.

    Attributes:
        qids: its devices.
        free_ns: when its last call ends.
        calls: how many there were.
        worked_s: how long they took.
    """

    def __init__(self, qids: Sequence[int]) -> None:
        self.qids = frozenset(qids)
        self.free_ns = 0
        self.calls = 0
        self.worked_s = 0.0


class Clock:
    """Activations of a process, and when their calls end."""

    def __init__(
        self,
        options: ClockOptions,
        *,
        real_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """A clock in which nothing is under way.

        Args:
            options: what is on.
            real_s: real time.
            sleep: waits in real time.
        """
        self._options = options
        self._random = Random(options.seed)  # noqa: S311  # noise that can be repeated
        self._timelines: weakref.WeakSet[Timeline] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._real_s = real_s
        self._sleep = sleep
        # A moment of both clocks from which real waiting is counted.
        self._anchor = (real_s(), runtime_log.simulatedTimeNs())

    def add(self, qids: Sequence[int]) -> Timeline:
        """The timeline of a new activation; it is forgotten when nobody holds it."""
        made = Timeline(qids)
        with self._lock:
            self._timelines.add(made)
        return made

    def schedule(self, timeline: Timeline, *, host_s: float, device_s: Callable[[int], float]) -> int:
        """When a call that is handed over now ends, in simulated nanoseconds.

        Args:
            timeline: of its activation.
            host_s: what the host needs before the device can begin.
            device_s: how long the devices need while that many activations, this one included, are busy.
        """
        with self._lock:
            begin_ns = max(runtime_log.simulatedTimeNs() + round(host_s * 1e9), timeline.free_ns)
            others = sum(
                other is not timeline and other.free_ns > begin_ns and bool(other.qids & timeline.qids)
                for other in self._timelines
            )
            taken_s = device_s(1 + others) * self._factor(timeline)
            timeline.calls += 1
            timeline.worked_s += taken_s
            timeline.free_ns = begin_ns + round(taken_s * 1e9)
            return timeline.free_ns

    def wait(self, end_ns: int) -> None:
        """Let the simulated clock show at least this; sleeps if real pacing is on."""
        runtime_log.advance_to(end_ns)
        if not self._options.pace:
            return
        with self._lock:
            real_s, simulated_ns = self._anchor
            missing_s = real_s + (end_ns - simulated_ns) * 1e-9 * self._options.pace - self._real_s()
            if missing_s < 0:
                # Computing was slower than the pace, which is not made up for later.
                self._anchor = (self._real_s(), end_ns)
        if missing_s > 0:
            self._sleep(missing_s)

    def _factor(self, timeline: Timeline) -> float:
        warm_factor, warm_calls = self._options.warm_up
        hot_factor, hot_after_s = self._options.throttle
        factor = 1.0
        if timeline.calls < warm_calls:
            factor += (warm_factor - 1) * (1 - timeline.calls / warm_calls)
        if timeline.worked_s >= hot_after_s:
            factor *= hot_factor
        if self._options.noise:
            factor *= math.exp(self._random.gauss(0.0, self._options.noise))
        return factor


_clock: Clock | None = None
_making = threading.Lock()


def of_process() -> Clock:
    """The clock of this process, as the variable said when it was first asked for.

    Raises:
        BadClock: the variable cannot be read.
    """
    global _clock
    with _making:
        if _clock is None:
            _clock = Clock(parse(os.environ.get(VARIABLE, "")))
        return _clock
