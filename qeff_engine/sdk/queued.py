"""How fast a program is when calls are queued: several activations of it at once, several calls waiting for each."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from qeff_engine.errors import DeviceLost, InvalidInput
from qeff_engine.sdk import runtime_failures
from qeff_engine.sdk.location import Sdk
from qeff_engine.sdk.session import Array, Session

_ROUNDS = 4  # of a full queue: enough for the pace to be steady, few enough for devices that are simulated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Throughput:
    """The pace of queued calls.

    Attributes:
        num_calls: that were made.
        total_s: from the first submission to the last completion.
        latency_s: mean time from a call's submission to its completion, which includes waiting for others.
    """

    num_calls: int
    total_s: float
    latency_s: float

    @property
    def calls_s(self) -> float | None:
        """Calls per second; None when no time passed."""
        return self.num_calls / self.total_s if self.total_s > 0 else None


class QueuedSession(Session):
    """Several activations of a program on one device. Active inside a ``with`` block, and only there."""

    def __init__(self, sdk: Sdk, *, program: Path, qid: int, set_size: int, activations: int) -> None:
        """Read the program's description; nothing is held on the device yet.

        Args:
            sdk: whose runtime is used.
            program: directory with ``programqpc.bin``.
            qid: device.
            set_size: calls that may be queued on each activation.
            activations: how many there are.

        Raises:
            InvalidInput: ``program`` is not a program, or one with several shapes or retained states.
            Infrastructure: the runtime cannot be loaded.
        """
        super().__init__(sdk, program=program, qids=[qid])
        if len(self.specializations) > 1 or self.retained:
            raise InvalidInput(
                f"{program} has {len(self.specializations)} shapes and {len(self.retained)} retained states; queued "
                "calls are measured of programs with one shape and none.",
                advice="Leave out set size and activations.",
            )
        self._set_size, self._activations, self._qid = set_size, activations, qid
        self._set: Any = None

    def __enter__(self) -> Self:
        """Activate: from here on the cores of all activations are held.

        Raises:
            DeviceLost: not enough free cores or channels, or the device does not answer.
            DeviceOutOfMemory: the activations do not fit the device's memory.
            InvalidInput: the program was made by another SDK.
        """
        rt = self._runtime.qaicrt
        where = f"device {self._qid}"
        try:
            self._context = self._call(f"open {where}", lambda: rt.Context(rt.QIDList([self._qid])))
            self._set = self._call(
                f"activate the program {self._activations} times on {where}",
                lambda: rt.InferenceSet(self._context, self._qpc, self._qid, self._set_size, self._activations),
            )
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Give everything back. A second call does nothing."""
        self._set = None  # activations end with their objects
        super().close()

    def pace(self, batches: Sequence[Mapping[str, Array]], *, outputs: Sequence[str]) -> Throughput:
        """Make some rounds of calls with the queues kept full.

        Args:
            batches: inputs of calls, used in turn.
            outputs: names of the outputs that are fetched.

        Raises:
            InvalidInput: names or shapes are not the program's.
            DeviceLost: the device failed during a call.
        """
        if self._set is None:
            raise InvalidInput("The session is not active.", advice="Use it inside a with block.")
        in_flight = self._set_size * self._activations
        prepared = [
            self._own_buffers(batches[number % len(batches)], outputs=outputs)
            for number in range(max(in_flight, len(batches)))
        ]
        waiting: deque[tuple[int, float]] = deque()
        latencies_s: list[float] = []
        num_calls = max(_ROUNDS * in_flight, len(batches))
        start_s = self.clock()
        for number in range(num_calls):
            if len(waiting) == in_flight:
                latencies_s.append(self._finish(*waiting.popleft()))
            handle = self._checked("get a free call", self._set.getAvailable())
            self._require("hand over the inputs", handle.setBuffers(prepared[number % len(prepared)]))
            waiting.append((number, self.clock()))
            self._require("enqueue the program", self._set.submit(handle, number))
        while waiting:
            latencies_s.append(self._finish(*waiting.popleft()))
        return Throughput(
            num_calls=num_calls, total_s=self.clock() - start_s, latency_s=sum(latencies_s) / len(latencies_s)
        )

    def _own_buffers(self, feeds: Mapping[str, Array], *, outputs: Sequence[str]) -> list[Any]:
        """Buffers of a call that shares none with others, since several are under way."""
        self._output_buffers.clear()
        return self._prepared(feeds, outputs=outputs)[1]

    def _finish(self, number: int, since_s: float) -> float:
        """Wait for a call and return how long it took."""
        handle = self._checked("run the program", self._set.getCompletedId(number))
        self._checked("fetch the outputs", handle.execObj().getData())
        latency_s = self.clock() - since_s
        self._require("give a call back", self._set.putCompleted(handle))
        return latency_s

    def _checked(self, step: str, answer: tuple[Any, Any]) -> Any:
        """What the runtime answers beside its status."""
        status, value = answer
        self._require(step, status)
        return value

    def _require(self, step: str, status: Any) -> None:
        if status != self._runtime.qaicrt.QStatus.QS_SUCCESS:
            raise runtime_failures.failure(step, status=status, default=DeviceLost)
