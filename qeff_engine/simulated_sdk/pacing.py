"""How fast a program runs through an inference set, by the simulated clock."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence

from qeff_engine.simulated_sdk import runtime_log
from qeff_engine.simulated_sdk.buffers import QBuffer
from qeff_engine.simulated_sdk.device_objects import Context, QIDList
from qeff_engine.simulated_sdk.inference_set import InferenceSet
from qeff_engine.simulated_sdk.paced_programs import ComputedOnce, NeverComputed
from qeff_engine.simulated_sdk.program_objects import Program, QAicProgramProperties, Qpc
from qeff_engine.simulated_sdk.runner_inputs import Sample
from qeff_engine.simulated_sdk.status import QStatus

# Calls that are really passed through before their steady pace is believed: some rounds of a full queue.
_ROUNDS, _LEAST = 4, 200

# Takes the outputs of a call, its number and its sample.
Look = Callable[[list[QBuffer], int, Sample], None]


class RunFailed(Exception):
    """A program could not be run; ``args`` are what the runner says at the end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast a program ran.

    Attributes:
        inferences: how many were done.
        duration_s: of the simulated clock.
        call_s: predicted time of a call on the device while all activations are busy.
        activations: that ran at once.
    """

    inferences: int
    duration_s: float
    call_s: float
    activations: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """What shall be run.

    Attributes:
        qids: devices, in the order in which the program is sliced over them.
        activations, set_size: of the inference set.
        iterations: inferences, if ``seconds`` is None.
        seconds: simulated time for which inferences are submitted.
        samples: inputs, used in turn.
        look: gets every call's outputs, which are then all computed; None where only the pace is asked for.
        never: nothing is computed at all, so that a program is not even loaded.
    """

    qids: Sequence[int]
    activations: int
    set_size: int
    iterations: int
    samples: Sequence[Sample]
    seconds: float | None = None
    look: Look | None = None
    never: bool = False


def measure(qpc: Qpc, *, load: Load) -> Pace:
    """Run a program and say how fast it was.

    Raises:
        RunFailed: it cannot be activated or run.
    """
    made = 0

    def program(*arguments: object) -> Program:
        nonlocal made
        made += 1
        kind: Callable[..., Program] = Program if load.look is not None else ComputedOnce
        if load.never or (load.look is None and made > 1):
            kind = NeverComputed
        return kind(*arguments)

    properties = QAicProgramProperties()
    if len(load.qids) > 1:
        properties.devMapping = ":".join(map(str, load.qids))
    qid = load.qids[0] if len(load.qids) == 1 else None
    try:
        context = Context(QIDList(load.qids))
        inference_set = InferenceSet(context, qpc, qid, load.set_size, load.activations, properties, program=program)
        plain = Program(context, qid, qpc, properties)
    except RuntimeError as error:
        what = "ExecObj" if str(error).startswith("Failed to create ExecObj") else "Program"
        raise RunFailed(f"{what} creation failed", "Failed to initialize QAIC runner") from error
    done, seconds = _Pump(inference_set, qpc=qpc, load=load).pump()
    if load.seconds is not None:
        done, seconds = _until(load.seconds, done=done, seconds=seconds)
    elif done < load.iterations:
        done, seconds = load.iterations, seconds * load.iterations / done
    number = load.samples[0].specialization
    call_s = plain.predicted_s(specialization=number, active=load.activations)
    return Pace(inferences=done, duration_s=seconds, call_s=call_s, activations=load.activations)


def _until(limit_s: float, *, done: int, seconds: float) -> tuple[int, float]:
    """Whole inferences until the time is over; the last ones end after it."""
    if seconds <= 0:
        return done, limit_s
    each_s = seconds / done
    inferences = max(-(-limit_s // each_s), 1)
    return int(inferences), inferences * each_s


class _Pump:
    """Keeps an inference set full and takes what is done from it."""

    def __init__(self, inference_set: InferenceSet, *, qpc: Qpc, load: Load) -> None:
        self._set = inference_set
        self._network = qpc.network
        self._load = load
        self._queued: deque[tuple[int, Sample]] = deque()

    def pump(self) -> tuple[int, float]:
        """Inferences and simulated seconds of those that are really passed through."""
        load = self._load
        most = max(_ROUNDS * load.activations * load.set_size, _LEAST)
        count = load.iterations if load.seconds is None else most
        if load.look is None:
            count = min(count, most)
        start_ns = runtime_log.simulatedTimeNs()
        for number in range(count):
            status, handle = self._set.getAvailable()
            if status == QStatus.QS_AGAIN:
                self._take_oldest()
                status, handle = self._set.getAvailable()
            if handle is None or status != QStatus.QS_SUCCESS:
                raise RunFailed("Inference run failed", "Failed to run QAIC runner")
            sample = load.samples[number % len(load.samples)]
            if handle.setBuffers(*sample.buffers(self._network)) != QStatus.QS_SUCCESS:
                raise RunFailed("ExecObj set data failed", "Failed to initialize QAIC runner")
            if self._set.submit(handle, number) != QStatus.QS_SUCCESS:
                raise RunFailed("Inference run failed", "Failed to run QAIC runner")
            self._queued.append((number, sample))
        while self._queued:
            self._take_oldest()
        return count, (runtime_log.simulatedTimeNs() - start_ns) / 1e9

    def _take_oldest(self) -> None:
        number, sample = self._queued.popleft()
        status, handle = self._set.getCompletedId(number)
        if handle is None or status != QStatus.QS_SUCCESS:
            raise RunFailed("Inference run failed", "Failed to run QAIC runner")
        if self._load.look is not None:
            self._load.look(handle.execObj().getData()[1], number, sample)
        self._set.putCompleted(handle)
