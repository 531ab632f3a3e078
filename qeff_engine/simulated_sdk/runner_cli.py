"""``qaic-runner``: runs a program on a device and says how fast that was, by the simulated clock.

Exit codes, errors and the line of statistics: the open runtime's runner and published transcripts; newer builds print
``Device Performance:`` behind it. Where nothing but the pace is asked for, each activation's calls are alike: one is
computed, the clock runs for at most a few thousand, and their steady pace gives the rest.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from qeff_engine.simulated_sdk import command_options, runner_inputs, runner_options, runtime_log, sdk_root, version_cli
from qeff_engine.simulated_sdk.buffers import QBuffer
from qeff_engine.simulated_sdk.device_objects import Context, QIDList, Util
from qeff_engine.simulated_sdk.inference_set import InferenceSet
from qeff_engine.simulated_sdk.network_description import Network
from qeff_engine.simulated_sdk.paced_programs import ComputedOnce, NeverComputed
from qeff_engine.simulated_sdk.program_objects import Program, QAicProgramProperties, Qpc
from qeff_engine.simulated_sdk.runner_options import RunnerOptions
from qeff_engine.simulated_sdk.status import QDevStatus, QLogLevel, QStatus

_PERFORMANCE_SINCE = (1, 20)  # the first version of published transcripts with this block is not known; assumed
_LEVELS = (QLogLevel.QL_ERROR, QLogLevel.QL_WARN, QLogLevel.QL_INFO, QLogLevel.QL_DEBUG)
_LEAST_PACED, _MOST_LIVE_LINES = 200, 1000
_FAILED = 1


class _Failed(Exception):
    """The runner ends; ``args`` are its last lines on stderr."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast a program ran.

    Attributes:
        inferences: how many were done.
        duration_s: of the simulated clock.
        alone_s: predicted time of a call that nothing else waits for.
        activations: that ran at once.
    """

    inferences: int
    duration_s: float
    alone_s: float
    activations: int


def main(arguments: list[str], *, root: Path) -> int:
    """Run the tool and return its exit code."""
    try:
        options = runner_options.parse(arguments)
    except command_options.BadUsage as error:
        print(error, file=sys.stderr)
        print("Failed to validate arguments", file=sys.stderr)
        print(runner_options.USAGE, end="")
        return _FAILED
    if options is None:
        print(runner_options.USAGE, end="")
        return 0
    sdk_root.bind(root)
    try:
        _run(
            options,
            newer=version_cli.at_least(version_cli.version_of(root, package="platform"), wanted=_PERFORMANCE_SINCE),
        )
    except _Failed as failed:
        for line in failed.args:
            print(line, file=sys.stderr)
        return _FAILED
    return 0


def _run(options: RunnerOptions, *, newer: bool) -> None:
    qids = _devices(options)
    qpc = _qpc(options.program)
    qids = _for_program(qids, options=options, network=qpc.network)
    if options.verbosity:
        print(f"Device: ID {':'.join(map(str, qids))}\nTest path: {options.program}")
    for path in options.input_files:
        print(f"Input file: {path}")
    try:
        samples = runner_inputs.samples(options, network=qpc.network)
    except (runner_inputs.BadInputs, OSError) as error:
        raise _Failed(str(error), "Inference vector creation failed", "Failed to initialize QAIC runner") from error
    batch = options.batch_json or options.batch_list or options.batch_directory
    if not batch and not options.input_files:
        print(f"Using {'bounded' if options.bounded else 'unbounded'} random inputs", flush=True)
    if not samples:
        raise _Failed("The batch has no inputs", "Inference vector creation failed", "Failed to initialize QAIC runner")
    iterations = options.iterations or (len(samples) if batch else runner_options.DEFAULT_ITERATIONS)
    computed = options.write or any(sample.expected for sample in samples)
    runtime_log.set_level(_LEVELS[min(options.verbosity, len(_LEVELS) - 1)])
    work = _Work(options, qpc=qpc, samples=samples, computed=computed, iterations=iterations)
    pace = _measured(work, qids=qids)
    if options.verbosity:
        print("Inference run completed successfully!")
        if any(sample.expected for sample in samples):
            print("Output validation successful!")
    _report(pace, batch_size=qpc.network.batch_size, live_ms=options.live_ms, newer=newer)


@dataclasses.dataclass
class _Work:
    """What shall be run."""

    options: RunnerOptions
    qpc: Qpc
    samples: list[runner_inputs.Sample]
    computed: bool
    iterations: int


def _qpc(path: Path) -> Qpc:
    try:
        return Qpc(str(path))
    except RuntimeError as error:
        raise _Failed("Invalid qpc, failed to create qpc object", "Failed to initialize QAIC runner") from error


def _devices(options: RunnerOptions) -> list[int]:
    """The devices that the options name or leave to choose from, all of them ready."""
    named = list(options.mapping) or ([] if options.qid is None else [options.qid])
    util = Util()
    for qid in named:
        status, info = util.getDeviceInfo(qid)
        if status == QStatus.QS_NODEV:
            raise _Failed(f"Invalid device:{qid}", "Failed to initialize QAIC runner")
        if info.devStatus != QDevStatus.QDS_READY:
            raise _Failed(f"Device:{qid} not in ready state", "Failed to initialize QAIC runner")
    if named:
        return named
    ready = [qid for qid in util.getDeviceIds()[1] if util.getDeviceInfo(qid)[1].devStatus == QDevStatus.QDS_READY]
    if not ready:
        raise _Failed("No device in ready state", "Failed to initialize QAIC runner")
    return ready


def _for_program(qids: list[int], *, options: RunnerOptions, network: Network) -> list[int]:
    """As many of the devices as the program needs: in the given order, else those with the most free cores first."""
    if options.ordered or (options.qid is not None and not options.mapping):
        return qids
    cores = network.num_cores * options.activations

    def room(qid: int) -> tuple[bool, int]:
        free = Util().getResourceInfo(qid)[1].nspFree
        return free < cores, qid

    return sorted(qids, key=room)[: network.num_devices]


def _measured(work: _Work, *, qids: list[int]) -> Pace:
    options, made = work.options, 0

    def program(*arguments: object) -> Program:
        nonlocal made
        made += 1
        kind: Callable[..., Program] = Program if work.computed else ComputedOnce if made == 1 else NeverComputed
        return kind(*arguments)

    properties = QAicProgramProperties()
    if len(qids) > 1:
        properties.devMapping = ":".join(map(str, qids))
    qid = qids[0] if len(qids) == 1 else None
    try:
        context = Context(QIDList(qids))
        inference_set = InferenceSet(
            context, work.qpc, qid, options.set_size, options.activations, properties, program=program
        )
        alone_s = Program(context, qid, work.qpc, properties).predicted_s(specialization=work.samples[0].specialization)
    except RuntimeError as error:
        what = "ExecObj" if str(error).startswith("Failed to create ExecObj") else "Program"
        raise _Failed(f"{what} creation failed", "Failed to initialize QAIC runner") from error
    pump = _Pump(inference_set, work=work)
    done, seconds = pump.pump()
    if options.seconds is not None:
        # Whole inferences until the time is over; the last ones end after it.
        done, seconds = _until(options.seconds, done=done, seconds=seconds)
    elif done < work.iterations:
        done, seconds = work.iterations, seconds * work.iterations / done
    return Pace(inferences=done, duration_s=seconds, alone_s=alone_s, activations=options.activations)


def _until(limit_s: float, *, done: int, seconds: float) -> tuple[int, float]:
    if seconds <= 0:
        return done, limit_s
    each_s = seconds / done
    inferences = max(-(-limit_s // each_s), 1)
    return int(inferences), inferences * each_s


class _Pump:
    """Keeps an inference set full and takes what is done from it."""

    def __init__(self, inference_set: InferenceSet, *, work: _Work) -> None:
        self._set = inference_set
        self._work = work
        self._queued: deque[tuple[int, runner_inputs.Sample]] = deque()
        self._in_flight = work.options.activations * work.options.set_size

    def pump(self) -> tuple[int, float]:
        """Inferences and simulated seconds of those that are really passed through."""
        work = self._work
        most = max(4 * self._in_flight, _LEAST_PACED)
        count = work.iterations if work.options.seconds is None else most
        if not work.computed:
            count = min(count, most)
        start_ns = runtime_log.simulatedTimeNs()
        for number in range(count):
            status, handle = self._set.getAvailable()
            if status == QStatus.QS_AGAIN:
                self._take_oldest()
                status, handle = self._set.getAvailable()
            if handle is None or status != QStatus.QS_SUCCESS:
                raise _Failed("Inference run failed", "Failed to run QAIC runner")
            sample = work.samples[number % len(work.samples)]
            if handle.setBuffers(*sample.buffers(work.qpc.network)) != QStatus.QS_SUCCESS:
                raise _Failed("ExecObj set data failed", "Failed to initialize QAIC runner")
            if self._set.submit(handle, number) != QStatus.QS_SUCCESS:
                raise _Failed("Inference run failed", "Failed to run QAIC runner")
            self._queued.append((number, sample))
        while self._queued:
            self._take_oldest()
        return count, (runtime_log.simulatedTimeNs() - start_ns) / 1e9

    def _take_oldest(self) -> None:
        number, sample = self._queued.popleft()
        status, handle = self._set.getCompletedId(number)
        if handle is None or status != QStatus.QS_SUCCESS:
            raise _Failed("Inference run failed", "Failed to run QAIC runner")
        if self._work.computed:
            self._look_at(handle.execObj().getData()[1], number=number, sample=sample)
        self._set.putCompleted(handle)

    def _look_at(self, outputs: list[QBuffer], *, number: int, sample: runner_inputs.Sample) -> None:
        options, network = self._work.options, self._work.qpc.network
        if options.write and 0 <= number - options.write_start < options.write_samples:
            activation = number % options.activations
            try:
                written = runner_inputs.write(
                    outputs,
                    network=network,
                    directory=options.write_directory,
                    activation=activation,
                    number=number // options.activations,
                )
            except OSError as error:
                raise _Failed(f"Unable to write outputs: {error}", "Failed to run QAIC runner") from error
            for path in written:
                print(f"Writing file:{path}")
        wrong = [index for index, data in sample.expected.items() if bytes(outputs[index]) != data]
        if wrong:
            passed = len(sample.expected) - len(wrong)
            raise _Failed(
                f"Validation Failed for iteration {number}, num failed: {len(wrong)}, num passed: {passed} ",
                f"Output validation failed for iteration {number + 1}",
                "Failed to run QAIC runner",
            )


def _report(pace: Pace, *, batch_size: int, live_ms: int, newer: bool) -> None:
    def line(inferences: int, seconds: float) -> str:
        microseconds = round(seconds * 1e6)
        rate = inferences * batch_size / seconds if seconds > 0 else 0.0
        return f"InferenceCnt {inferences} TotalDuration {microseconds}us BatchSize {batch_size} Inf/Sec {rate:.3f}"

    if live_ms and pace.duration_s > 0:
        periods = min(int(pace.duration_s * 1000 / live_ms), _MOST_LIVE_LINES)
        for number in range(1, periods + 1):
            seconds = number * live_ms / 1000
            print(line(int(pace.inferences * seconds / pace.duration_s), seconds))
    print(" ---- Stats ----")
    print(line(pace.inferences, pace.duration_s))
    if newer:
        executing_us = pace.alone_s * 1e6
        interval_us = pace.duration_s * 1e6 * pace.activations / pace.inferences
        waits = {
            "ExecTimeUs": executing_us,
            "InputWaitTimeUs": max(interval_us - executing_us, 0.0),
            "OutputWaitTimeUs": 0.0,
        }
        print("Device Performance:")
        print("Metric, Avg, Min, Max, Std")
        for name, value in waits.items():
            print(f"{name}, {value:.2f}, {value:.2f}, {value:.2f}, 0.00")
