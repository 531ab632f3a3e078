"""``qaic-runner``: runs a program on a device and says how fast that was, by the simulated clock.

Exit codes, errors and the line of statistics: the open runtime's runner and published transcripts; newer builds print
``Device Performance:`` behind it. Where nothing but the pace is asked for, each activation's calls are alike: one is
computed, the clock runs for at most a few thousand, and their steady pace gives the rest.
"""

from __future__ import annotations

import sys
from pathlib import Path

from qeff_engine.simulated_sdk import (
    command_options,
    pacing,
    runner_inputs,
    runner_options,
    runtime_log,
    sdk_root,
    version_cli,
)
from qeff_engine.simulated_sdk.buffers import QBuffer
from qeff_engine.simulated_sdk.device_objects import Util
from qeff_engine.simulated_sdk.devices import BadDevices
from qeff_engine.simulated_sdk.network_description import Network
from qeff_engine.simulated_sdk.pacing import Load, Pace, RunFailed
from qeff_engine.simulated_sdk.program_objects import Qpc
from qeff_engine.simulated_sdk.runner_inputs import Sample
from qeff_engine.simulated_sdk.runner_options import RunnerOptions
from qeff_engine.simulated_sdk.status import QDevStatus, QLogLevel, QStatus

_PERFORMANCE_SINCE = (1, 20)  # the first version of published transcripts with this block is not known; assumed
_LEVELS = (QLogLevel.QL_ERROR, QLogLevel.QL_WARN, QLogLevel.QL_INFO, QLogLevel.QL_DEBUG)
_MOST_LIVE_LINES = 1000
_FAILED = 1


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
    except RunFailed as failed:
        for line in failed.args:
            print(line, file=sys.stderr)
        return _FAILED
    except BadDevices as error:
        print(f"{error}\nFailed to initialize QAIC runner", file=sys.stderr)
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
        raise RunFailed(str(error), "Inference vector creation failed", "Failed to initialize QAIC runner") from error
    batch = options.batch_json or options.batch_list or options.batch_directory
    if not batch and not options.input_files:
        print(f"Using {'bounded' if options.bounded else 'unbounded'} random inputs", flush=True)
    if not samples:
        raise RunFailed(
            "The batch has no inputs", "Inference vector creation failed", "Failed to initialize QAIC runner"
        )
    iterations = options.iterations or (len(samples) if batch else runner_options.DEFAULT_ITERATIONS)
    expecting = any(sample.expected for sample in samples)
    runtime_log.set_level(_LEVELS[min(options.verbosity, len(_LEVELS) - 1)])
    load = Load(
        qids=qids,
        activations=options.activations,
        set_size=options.set_size,
        iterations=iterations,
        seconds=options.seconds,
        samples=samples,
        look=_looker(options, network=qpc.network) if options.write or expecting else None,
    )
    pace = pacing.measure(qpc, load=load)
    if options.verbosity:
        print("Inference run completed successfully!")
        if expecting:
            print("Output validation successful!")
    _report(pace, batch_size=qpc.network.batch_size, live_ms=options.live_ms, newer=newer)


def _qpc(path: Path) -> Qpc:
    try:
        return Qpc(str(path))
    except RuntimeError as error:
        raise RunFailed("Invalid qpc, failed to create qpc object", "Failed to initialize QAIC runner") from error


def _devices(options: RunnerOptions) -> list[int]:
    """The devices that the options name or leave to choose from, all of them ready."""
    named = list(options.mapping) or ([] if options.qid is None else [options.qid])
    util = Util()
    for qid in named:
        status, info = util.getDeviceInfo(qid)
        if status == QStatus.QS_NODEV:
            raise RunFailed(f"Invalid device:{qid}", "Failed to initialize QAIC runner")
        if info.devStatus != QDevStatus.QDS_READY:
            raise RunFailed(f"Device:{qid} not in ready state", "Failed to initialize QAIC runner")
    if named:
        return named
    ready = [qid for qid in util.getDeviceIds()[1] if util.getDeviceInfo(qid)[1].devStatus == QDevStatus.QDS_READY]
    if not ready:
        raise RunFailed("No device in ready state", "Failed to initialize QAIC runner")
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


def _looker(options: RunnerOptions, *, network: Network) -> pacing.Look:
    """What writes the outputs that are asked for and compares with those that are expected."""

    def look(outputs: list[QBuffer], number: int, sample: Sample) -> None:
        if options.write and 0 <= number - options.write_start < options.write_samples:
            try:
                written = runner_inputs.write(
                    outputs,
                    network=network,
                    directory=options.write_directory,
                    activation=number % options.activations,
                    number=number // options.activations,
                )
            except OSError as error:
                raise RunFailed(f"Unable to write outputs: {error}", "Failed to run QAIC runner") from error
            for path in written:
                print(f"Writing file:{path}")
        wrong = [index for index, data in sample.expected.items() if bytes(outputs[index]) != data]
        if wrong:
            passed = len(sample.expected) - len(wrong)
            raise RunFailed(
                f"Validation Failed for iteration {number}, num failed: {len(wrong)}, num passed: {passed} ",
                f"Output validation failed for iteration {number + 1}",
                "Failed to run QAIC runner",
            )

    return look


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
        executing_us = pace.call_s * 1e6
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
