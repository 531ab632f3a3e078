"""Throughput of a program as the SDK's own ``qaic-runner`` measures it, with random inputs and calls queued.

Its line of statistics: published transcripts (quic/cloud-ai-sdk, tutorials), such as ``InferenceCnt 5787 TotalDuration
20018960us BatchSize 8 Inf/Sec 2312.608``. ``Inf/Sec`` counts samples by the batch that the compiler was told for
statistics, so only calls and time are taken from it.
"""

from __future__ import annotations

import re
from pathlib import Path

from qeff_engine.errors import DeviceLost, Infrastructure
from qeff_engine.sdk import asking, runtime_failures
from qeff_engine.sdk.queued import Throughput

_STATS = re.compile(r"InferenceCnt (\d{1,18}) TotalDuration (\d{1,18})us BatchSize \d+ Inf/Sec [\d.]+", re.ASCII)
_STARTING_LIMIT_S = 600.0  # for loading and activating a large program


def measure(
    tool: Path, *, program: Path, qid: int, set_size: int, activations: int, seconds: float = 2.0
) -> Throughput:
    """Run a program for some time on a device.

    Args:
        tool: the runner.
        program: directory with ``programqpc.bin``.
        qid: device.
        set_size: calls that may be queued on each activation.
        activations: copies that run at once.
        seconds: for how long calls are submitted.

    Raises:
        DeviceLost, DeviceOutOfMemory, InvalidInput: see :mod:`qeff_engine.sdk.runtime_failures`.
        Infrastructure: the runner cannot be started, takes too long or says nothing that can be read.
    """
    words = {"-t": program, "-d": qid, "-a": activations, "-S": set_size, "--time": f"{seconds:g}"}
    command = [str(tool), *(str(word) for pair in words.items() for word in pair)]
    try:
        answer = asking.ask(command, limit_s=_STARTING_LIMIT_S + seconds)
    except asking.NoAnswer as error:
        raise DeviceLost(str(error), advice="The device may hang; see `qaic-util -q`.") from error
    if answer.exit_code != 0:
        raise runtime_failures.failure(f"run {program} with {tool.name}", status=answer.exit_code, text=answer.text)
    return parse(answer.text, in_flight=set_size * activations)


def parse(text: str, *, in_flight: int) -> Throughput:
    """What the runner says; of several lines, as live reports are, the last counts.

    Args:
        text: its output.
        in_flight: calls that were under way at any time.

    Raises:
        Infrastructure: there is no line of statistics, or one without calls.
    """
    found = [(int(calls), int(duration_us)) for calls, duration_us in _STATS.findall(text)]
    if not found or not found[-1][0]:
        lines = [line for line in text.splitlines() if line.strip()]
        raise Infrastructure(
            f"qaic-runner ended well and printed no statistics: {(lines or ['nothing'])[-1][:200]}",
            advice="Expected a line such as 'InferenceCnt 40 TotalDuration 100000us BatchSize 1 Inf/Sec 400.000'.",
        )
    num_calls, duration_us = found[-1]
    total_s = duration_us / 1e6
    # Each of the calls under way waits for the others.
    return Throughput(num_calls=num_calls, total_s=total_s, latency_s=total_s * min(in_flight, num_calls) / num_calls)
