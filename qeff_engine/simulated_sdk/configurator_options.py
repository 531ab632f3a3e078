"""The command line and the files of the model configurator. Standard library only.

Source: the vendor's pages on the model configurator (https://quic.github.io/cloud-ai-sdk-pages, Model-Configurator) and
the invocations in its tutorials. Options that are not the configurator's go to the compiler as they are. Columns of
``-save-config`` and ``-load-configs`` are not published; here they are those of the results.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qeff_engine.simulated_sdk.configurator_search import PARAMETERS, Point

USAGE = """Usage: model_configurator.py MODEL onnx [options]
  -optimized-config-search FILE     search from the initial values in a JSON file
  -cores, -batchsize, -mos, -ols, -instances VALUES
                                    brute force over values and ranges such as 1-4,8,12; default: 1,2,4,8 and all
                                    cores of the device, one batch, one split, as many instances as fit
  -load-configs FILE, -save-config FILE, -list-configs
                                    read the points of a brute force from a CSV file, write them, print them
  -onnx-define-symbol-batch-size NAME
                                    symbol of the batch size; without it -batchsize is used
  -set-size N [10]  -time S | -iter N [40]  -device-id N [auto-picked]
  -max-compilation-threads N, -max-parallel-compilations N
                                    threads of all compilations together, compilations at once [2]
  -compile-only, -retain-binaries
  Other options, such as -onnx-define-symbol=seq,128 or -convert-to-fp16, are passed to the compiler.
"""
_VALUED = {
    *("optimized-config-search", "cores", "batchsize", "mos", "ols", "instances", "load-configs", "save-config"),
    *("onnx-define-symbol-batch-size", "set-size", "time", "iter", "device-id"),
    *("max-compilation-threads", "max-parallel-compilations"),
}
_BARE = {"list-configs", "compile-only", "retain-binaries"}
_RENAMED = {"enable-depth-first": "aic-enable-depth-first"}  # the configurator's word for a flag of the compiler
_LISTS = {"cores": "cores", "mos": "mos", "ols": "ols", "batchsize": "bs", "instances": "instances"}
_COLUMNS = {"cores": "cores", "mos": "mos", "ols": "ols", "batchSize": "bs", "instances": "instances"}
OBJECTIVES = ("maximize_inf_rate", "minimize_latency")


class BadConfiguration(ValueError):
    """A command line or a file that the configurator cannot use."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimization:
    """A search file.

    Attributes:
        max_evaluations: points measured from each initial value.
        objective: one of :data:`OBJECTIVES`.
        ranges: smallest and largest value by parameter.
        initial: where to begin, one search from each.
    """

    max_evaluations: int
    objective: str
    ranges: Mapping[str, tuple[int, int]]
    initial: tuple[Point, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A checked command line; see :data:`USAGE` for what each option means."""

    model: Path
    compiler_flags: tuple[str, ...]
    batch_symbol: str
    optimization: Optimization | None
    values: Mapping[str, tuple[int, ...]]
    loaded: tuple[Point, ...] | None
    save_to: Path | None
    list_points: bool
    set_size: int
    seconds: float | None
    iterations: int
    device_id: int | None
    threads: int | None
    parallel: int
    compile_only: bool
    retain: bool


def parse(arguments: Sequence[str]) -> Settings:
    """Read a command line and the files that it names.

    Raises:
        BadConfiguration: something cannot be used.
    """
    words, given, flags = _split(arguments)
    if len(words) != 2 or words[1] != "onnx":
        raise BadConfiguration(f"expected a model and its type onnx, got {' '.join(words) or 'nothing'}")
    optimized = given.get("optimized-config-search")
    loaded = given.get("load-configs")
    if optimized and (loaded or _LISTS.keys() & given.keys()):
        raise BadConfiguration("-optimized-config-search goes with neither -load-configs nor lists of values")
    return Settings(
        model=Path(words[0]),
        compiler_flags=tuple(flags),
        batch_symbol=given.get("onnx-define-symbol-batch-size", ""),
        optimization=_optimization(Path(optimized)) if optimized else None,
        values={name: _values(option, text=given[option]) for option, name in _LISTS.items() if option in given},
        loaded=_load(Path(loaded)) if loaded else None,
        save_to=Path(given["save-config"]) if "save-config" in given else None,
        list_points="list-configs" in given,
        set_size=_count(given, "set-size", 10),
        seconds=_seconds(given["time"]) if "time" in given else None,
        iterations=_count(given, "iter", 40),
        device_id=_count(given, "device-id", 0, least=0) if "device-id" in given else None,
        threads=_count(given, "max-compilation-threads", 1) if "max-compilation-threads" in given else None,
        parallel=_count(given, "max-parallel-compilations", 2),
        compile_only="compile-only" in given,
        retain="retain-binaries" in given,
    )


def _split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str], list[str]]:
    """Words, the configurator's options and the compiler's flags."""
    words: list[str] = []
    given: dict[str, str] = {}
    flags: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-"):
            words.append(argument)
        elif name in _BARE and not equals:
            given[name] = ""
        elif name in _VALUED:
            given[name] = value if equals else next(rest, "")
            if not given[name]:
                raise BadConfiguration(f"-{name} needs a value")
        else:
            flags.append(f"-{_RENAMED.get(name, name)}{equals}{value}")
    return words, given, flags


def _values(option: str, *, text: str) -> tuple[int, ...]:
    """Whole numbers of values and ranges such as ``1-4,8,12``."""
    found: dict[int, None] = {}
    for part in text.split(","):
        low, dash, high = part.partition("-")
        if not low.isdigit() or (dash and not high.isdigit()) or int(low) < 1 or int(high or low) < int(low):
            raise BadConfiguration(f"-{option} is '{text}', expected values and ranges such as 1-4,8,12")
        found.update(dict.fromkeys(range(int(low), int(high or low) + 1)))
    return tuple(found)


def _count(given: Mapping[str, str], option: str, default: int, *, least: int = 1) -> int:
    text = given.get(option, str(default))
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise BadConfiguration(f"-{option} is '{text}', expected a whole number of at least {least}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < 1e6:
        raise BadConfiguration(f"-time is '{text}', expected seconds")
    return seconds


def _optimization(path: Path) -> Optimization:
    try:
        file: dict[str, Any] = json.loads(path.read_text())
        static = {name: int(value) for name, value in file.get("static_params", {}).items()}
        ranges = {name: (int(ends["min"]), int(ends["max"])) for name, ends in file["params"].items()}
        initial = tuple(
            Point(**{**static, **{name: int(value) for name, value in entry.items()}})
            for entry in file["initial_values"]
        )
        found = Optimization(
            max_evaluations=int(file["max_func_eval"]), objective=str(file["objective"]), ranges=ranges, initial=initial
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadConfiguration(f"{path} is no search file ({reason})") from error
    bad = [name for name, (low, high) in ranges.items() if name not in PARAMETERS or not 1 <= low <= high]
    powers = all(size & (size - 1) == 0 for size in (*ranges.get("bs", (1, 1)), *(point.bs for point in initial)))
    if bad or not powers or not initial or found.max_evaluations < 1 or found.objective not in OBJECTIVES:
        raise BadConfiguration(
            f"{path}: expected params of {', '.join(PARAMETERS)} with 1 <= min <= max, batch sizes that are powers of "
            f"two, at least one initial value, a positive max_func_eval and an objective of {', '.join(OBJECTIVES)}"
        )
    return found


def _load(path: Path) -> tuple[Point, ...]:
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return tuple(Point(**{name: int(row[column]) for column, name in _COLUMNS.items()}) for row in rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadConfiguration(f"{path} has no rows of {', '.join(_COLUMNS)} ({error})") from error


def save(path: Path, *, points: Sequence[Point]) -> None:
    """Write the points of a brute force as CSV.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows([getattr(point, name) for name in _COLUMNS.values()] for point in points)
