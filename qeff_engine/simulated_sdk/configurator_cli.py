"""``model_configurator.py``: compiles and runs a model in many configurations and says which is best.

Compiles with the SDK's own compiler, a few at a time, and runs through inference sets on the simulated clock. Log
lines, the table of an optimized search and the last line: transcripts in the vendor's tutorials; columns of
``results.csv`` and the table of a brute force are not published and ours. Not swept: deallocation delay, split size,
VTCM limit, depth-first memory, clusters. ``-time`` and figures are simulated, the total execution time is real.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from qeff_engine.simulated_sdk import configurator_options, configurator_search, pacing, runner_inputs, sdk_root
from qeff_engine.simulated_sdk.configurator_options import BadConfiguration, Optimization, Settings
from qeff_engine.simulated_sdk.configurator_search import Found, Point, Space
from qeff_engine.simulated_sdk.device_objects import Util
from qeff_engine.simulated_sdk.devices import BadDevices
from qeff_engine.simulated_sdk.pacing import Load, RunFailed
from qeff_engine.simulated_sdk.program_objects import Qpc
from qeff_engine.simulated_sdk.runner_options import RunnerOptions
from qeff_engine.simulated_sdk.status import QDevStatus

SCRIPT = Path("scripts", "qaic-model-configurator", "model_configurator.py")
OUTPUT = Path("model_configurator_output")
_LOG, _RESULTS, _COMPILED = "model_configurator.log", "results.csv", "compiled_models"
_LATENCY = "minimize_latency"
_HEADER = ("cores", "mos", "ols", "batchSize", "instances", "setSize", "infPerSec", "latencyUs", "status")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Result:
    """What came of a point: a rate in samples per second and the mean time of a call, or why there is none."""

    point: Point
    inf_per_s: float | None = None
    latency_us: float | None = None
    status: str = configurator_search.SUCCESS


def main(arguments: list[str], *, root: Path) -> int:
    """Run the tool and return its exit code; results are written to the working directory."""
    if any(argument in ("-h", "-help", "--help") for argument in arguments):
        print(configurator_options.USAGE, end="")
        return 0
    start_s = time.monotonic()
    sdk_root.bind(root)
    try:
        settings = configurator_options.parse(arguments)
        qid, num_cores = _device(settings.device_id)
        OUTPUT.mkdir(exist_ok=True)
        with (OUTPUT / _LOG).open("w") as file:
            log = _Log(file)
            log.info(f"Starting {' '.join([str(root / SCRIPT), *arguments])}")
            log.info(f"Model Name: {settings.model.name}")
            log.info(f"Hostname: {socket.gethostname()}, Logical Cores: {os.cpu_count()}")
            code = _Work(settings, root=root, qid=qid, num_cores=num_cores, log=log).run()
            log.info(f"Total execution time {_clock(time.monotonic() - start_s)}")
    except BadConfiguration as error:
        print(f"model_configurator.py: error: {error}\n{configurator_options.USAGE}", file=sys.stderr, end="")
        return 1
    except (BadDevices, OSError) as error:
        print(f"model_configurator.py: error: {error}", file=sys.stderr)
        return 1
    return code


def _device(wanted: int | None) -> tuple[int, int]:
    """Number and cores of the device that is named, else of the first ready one."""
    util = Util()
    for qid in util.getDeviceIds()[1]:
        info = util.getDeviceInfo(qid)[1]
        if info.devStatus == QDevStatus.QDS_READY and wanted in (None, qid):
            return qid, info.devData.resourceInfo.nspTotal
    raise BadConfiguration("no device is ready" if wanted is None else f"Device:{wanted} not in ready state")


class _Log:
    """Prints lines and keeps them; the two forms are those of the tool's script and of its worker."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def info(self, text: str) -> None:
        self.plain(f"{_now()} - [INFO]: {text}")

    def work(self, text: str) -> None:
        self.plain(f"[{_now()}] [info] {text}")

    def plain(self, text: str) -> None:
        print(text, flush=True)
        self._file.write(f"{text}\n")


def _now() -> str:
    now_s = time.time()
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now_s))}.{int(now_s * 1000) % 1000:03d}"


def _clock(seconds: float) -> str:
    """``hh:mm:ss.mmm``."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"


class _Work:
    """One run of the tool."""

    def __init__(self, settings: Settings, *, root: Path, qid: int, num_cores: int, log: _Log) -> None:
        self._settings = settings
        self._root = root
        self._qid = qid
        self._num_cores = num_cores
        self._log = log
        self._programs: dict[str, Path | None] = {}
        self._results: dict[Point, _Result] = {}

    def run(self) -> int:
        """Search, write the results and return the exit code: 1 when no configuration could be used."""
        optimization = self._settings.optimization
        try:
            if optimization is not None:
                self._search(optimization)
            else:
                self._try_every()
        finally:
            self._write()
            if not (self._settings.retain or self._settings.compile_only):
                shutil.rmtree(OUTPUT / _COMPILED, ignore_errors=True)
        if self._settings.compile_only:
            return 0 if any(self._programs.values()) else 1
        return 0 if any(result.inf_per_s is not None for result in self._results.values()) else 1

    def _search(self, optimization: Optimization) -> None:
        self._log.info("Running optimized search")
        space = Space(ranges=optimization.ranges, device_cores=self._num_cores)
        latency = optimization.objective == _LATENCY

        def evaluate(points: Sequence[Point]) -> list[float | None]:
            self._compile(points)
            values: list[float | None] = []
            for point in points:
                result = self._measure(point)
                value = result.latency_us if latency else result.inf_per_s
                values.append(-value if latency and value is not None else value)
            return values

        found = [
            configurator_search.search(
                start, space=space, evaluate=evaluate, max_evaluations=optimization.max_evaluations
            )
            for start in optimization.initial
        ]
        self._log.info("Optimized search results:")
        self._log.plain(_table(*_search_rows(found, latency=latency)))

    def _try_every(self) -> None:
        settings = self._settings
        cores = {"cores": [count for count in (1, 2, 4, 8, self._num_cores) if count <= self._num_cores]}
        values = {**cores, **settings.values}
        points = settings.loaded or configurator_search.every(values, device_cores=self._num_cores)
        if not points:
            raise BadConfiguration(f"no point of the search space fits a device of {self._num_cores} cores")
        if settings.save_to is not None:
            configurator_options.save(settings.save_to, points=points)
        if settings.list_points:
            for number, point in enumerate(points):
                self._log.plain(f"{number} {point}")
        self._log.info(f"Running {len(points)} configurations")
        self._compile(points)
        if settings.compile_only:
            return
        best_first = sorted((self._measure(point) for point in points), key=lambda result: -(result.inf_per_s or 0.0))
        self._log.info("Results:")
        rows = [(str(number), *_row(result, set_size=settings.set_size)) for number, result in enumerate(best_first)]
        self._log.plain(_table(("", *_HEADER), rows))

    def _compile(self, points: Sequence[Point]) -> None:
        """Compile what these points need and is not compiled yet."""
        new = list({point.folder: point for point in points if point.folder not in self._programs}.values())
        if not new:
            return
        self._log.work(
            f"Compiling model with compiler parameters: [{', '.join(f'({point.compiled})' for point in new)}]"
        )
        with ThreadPoolExecutor(self._settings.parallel) as pool:
            for point, failure in zip(new, pool.map(self._compile_one, new), strict=True):
                self._programs[point.folder] = None if failure else OUTPUT / _COMPILED / point.folder
                if failure:
                    self._log.work(f"Compilation failed: ({point.compiled}): {failure}")

    def _compile_one(self, point: Point) -> str:
        """Compile and return what went wrong."""
        settings = self._settings
        directory = OUTPUT / _COMPILED / point.folder
        shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        batch = f"batchsize={point.bs}"
        if settings.batch_symbol:
            batch = f"onnx-define-symbol={settings.batch_symbol},{point.bs}"
        command = [
            *(str(self._root / "exec" / "qaic-exec"), "-aic-hw", "-aic-hw-version=2.0", "-compile-only"),
            *(f"-m={settings.model}", f"-{batch}", f"-stats-batchsize={point.bs}"),
            *(f"-mos={point.mos}", f"-ols={point.ols}", f"-aic-num-cores={point.cores}"),
            *settings.compiler_flags,
            f"-aic-binary-dir={directory}",
        ]
        if settings.threads is not None:
            command.append(f"-compile-threads={max(settings.threads // settings.parallel, 1)}")
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        return " ".join(done.stderr.split()) or f"exit code {done.returncode}" if done.returncode else ""

    def _measure(self, point: Point) -> _Result:
        if point not in self._results:
            self._results[point] = self._run_one(point)
        return self._results[point]

    def _run_one(self, point: Point) -> _Result:
        settings = self._settings
        path = self._programs[point.folder]
        if path is None:
            return _Result(point=point, status="COMPILE_FAILURE")
        where = f"model at path {path} with runnerParams (instances={point.instances})"
        self._log.work(f"Running {where}")
        self._log.work(f"M{where[1:]} running on device ID {self._qid}")
        try:
            qpc = Qpc(str(path))
            load = Load(
                qids=[self._qid],
                activations=point.instances,
                set_size=settings.set_size,
                iterations=settings.iterations,
                seconds=settings.seconds,
                samples=runner_inputs.samples(RunnerOptions(program=path), network=qpc.network),
                never=True,
            )
            pace = pacing.measure(qpc, load=load)
        except (RunFailed, RuntimeError) as error:
            self._log.work(f"Run failed: {point}: {error.args[0]}")
            return _Result(point=point, status="RUN_FAILURE")
        each_s = pace.duration_s / pace.inferences
        return _Result(
            point=point,
            inf_per_s=point.bs / each_s,
            # As many calls are under way at any time as can be queued.
            latency_us=each_s * 1e6 * min(point.instances * settings.set_size, pace.inferences),
        )

    def _write(self) -> None:
        with (OUTPUT / _RESULTS).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_HEADER)
            writer.writerows(_row(result, set_size=self._settings.set_size) for result in self._results.values())


def _row(result: _Result, *, set_size: int) -> tuple[str, ...]:
    """A line of the results."""
    point = result.point
    rate = "" if result.inf_per_s is None else f"{result.inf_per_s:.3f}"
    latency = "" if result.latency_us is None else f"{result.latency_us:.2f}"
    numbers = (point.cores, point.mos, point.ols, point.bs, point.instances, set_size)
    return (*map(str, numbers), rate, latency, result.status)


def _search_rows(found: Sequence[Found], *, latency: bool) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and lines of the table of an optimized search."""
    unit = "micro-sec" if latency else "inf/sec"
    header = ("OptimizerStatus", "InitialValue", "cores", "mos", "ols", "batchSize", "instances", f"Objective ({unit})")
    rows: list[tuple[str, ...]] = []
    for number, item in enumerate(found):
        best, value = item.best, "" if item.value is None else f"{abs(item.value):.2f}"
        numbers = (str(best.cores), f"[{best.mos}]", str(best.ols), str(best.bs), str(best.instances))
        rows.append((str(number), item.status, str(item.start), *numbers, value))
    return ("", *header), rows


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in (header, *rows)
    )
