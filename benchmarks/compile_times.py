"""Fits the law of compile times to the published ones of BERT base, and tells how well it holds."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import convolutional, geometries
from qeff_engine.simulated_sdk import compile_time
from qeff_engine.simulated_sdk.operations import Work

FILE = Path(__file__).parent / "published_compile_times.json"
FITTED = ("per_operator_s", "per_core", "per_core_and_ols", "per_core_and_mos", "per_sample")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileTime:
    """One published time, of the fp16 program of a network with these settings."""

    id: str
    model: str
    cores: int
    batch: int
    ols: int
    mos: int
    published_s: float
    fits: bool
    reason: str

    @property
    def work(self) -> Work:
        """What a call of the program does."""
        if self.model in geometries.ENCODERS:
            return geometries.encoder_work(geometries.ENCODERS[self.model], batch=self.batch, tokens=128)
        return convolutional.convolutional_work(self.model, batch=self.batch)

    @property
    def weight_bytes(self) -> int:
        """Of its constants in fp32."""
        return 4 * sum(item.count * item.weights for item in self.work.operations)


def points() -> list[CompileTime]:
    """All of the file."""
    return [CompileTime(**entry) for entry in json.loads(FILE.read_text())["points"]]


def predicted_s(point: CompileTime, *, parameters: dict[str, float] | None = None) -> float:
    """What the law says."""
    return compile_time.seconds(
        operators=point.work.num_operators,
        weight_bytes=point.weight_bytes,
        cores=point.cores,
        ols=point.ols,
        mos=point.mos,
        batch=point.batch,
        parameters=parameters,
    )


def fit(chosen: Sequence[CompileTime]) -> dict[str, float]:
    """The fitted parameters: linear least squares on relative errors, of one network."""
    found = compile_time.load()
    rows, rest = [], []
    for point in chosen:
        per_core = [point.cores * (point.ols - 1), point.cores * (point.mos - 1)]
        rows.append([1, point.cores - 1, *per_core, point.batch - 1])
        rest.append(point.published_s - found["weights_s_per_gb"] * point.weight_bytes / 1e9)
    scale = np.array([point.published_s for point in chosen])
    solution = np.linalg.lstsq(np.array(rows) / scale[:, None], np.array(rest) / scale, rcond=None)[0]
    base = float(solution[0])
    values = [base / chosen[0].work.num_operators, *(float(value) / base for value in solution[1:])]
    return dict(zip(FITTED, values, strict=True))


def _percent(value: float) -> str:
    return f"{100 * value:+.0f} %"


def table() -> str:
    """Every point, as the page shows it, and the errors when a point is left out."""
    every = points()
    chosen = [point for point in every if point.fits]
    rows, inside, outside = [], [], []
    for point in every:
        value = predicted_s(point)
        cells = [_percent(value / point.published_s - 1), ""]
        if point.fits:
            inside.append(abs(value / point.published_s - 1))
            without = [other for other in chosen if other is not point]
            # A single point with mos cannot be predicted by the others.
            if any(other.mos != 1 for other in without) or point.mos == 1:
                parameters = {**compile_time.load(), **fit(without)}
                error = predicted_s(point, parameters=parameters) / point.published_s - 1
                outside.append(abs(error))
                cells[1] = _percent(error)
        setting = f"{point.model}, {point.cores} cores, batch {point.batch}, ols {point.ols}, mos {point.mos}"
        reason = ("in the fit" if point.fits else "no") + (f": {point.reason}" if point.reason else "")
        rows.append([point.id, setting, f"{point.published_s:g} s", f"{value:.1f} s", *cells, reason])
    head = ["point", "setting", "published", "predicted", "error", "without the point", "in the fit"]
    lines = "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *rows])
    summary = (
        f"Median error {100 * statistics.median(inside):.1f} %, worst {100 * max(inside):.0f} %; "
        f"without the point {100 * statistics.median(outside):.1f} % and {100 * max(outside):.0f} %."
    )
    return f"### Compile times\n\n{summary}\n\n{lines}"
