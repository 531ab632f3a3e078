"""The part of ``docs/cost-model.md`` that is made from the parameters, the published points and their predictions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks import compile_times, cost_fit, geometries
from benchmarks.convolutional import convolutional_work
from benchmarks.published import LATENCY_MS, Point
from qeff_engine.simulated_sdk import cost_model, cost_parameters
from qeff_engine.simulated_sdk.cost_model import Settings
from qeff_engine.simulated_sdk.devices import KINDS
from qeff_engine.simulated_sdk.operations import Work

BEGIN, END = "<!-- begin: python -m benchmarks.cost_model --write -->\n", "<!-- end -->\n"
GROUPS = {
    "decode": "decode of language models",
    "encoder": "encoders",
    "cnn": "convolutional networks",
    "sweep": "configurator sweeps",
}
HELD_OUT = "held-out"  # never fitted, and read after the form of the model was chosen
APART = {HELD_OUT: "held out", "ttft": "time to first token, apart"}
GOAL_MEDIAN, GOAL_WORST = 0.15, 0.35
CORES = range(1, 17)

LeftOut = Mapping[str, Mapping[str, float]]


def page(text: str, *, points: Sequence[Point], left_out: LeftOut) -> str:
    """The page with its generated part made anew.

    Args:
        text: of the page.
        points: all published ones.
        left_out: predictions by fits without the point (``one``) and without its network (``network``), by point.
    """
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    made = "\n".join(
        [_summary(points, left_out), _parameters(), _points(points, left_out), _sweeps(), compile_times.table()]
    )
    return f"{head}{BEGIN}\n{made}\n{END}{tail}"


def _percent(value: float) -> str:
    return f"{100 * value:+.0f} %"


def _rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _summary(points: Sequence[Point], left_out: LeftOut) -> str:
    """Median and worst errors by group, in the fit and left out of it."""
    rows = []
    for group, words in [*GROUPS.items(), ("", "all")]:
        chosen = [point for point in points if point.fits and point.group in (group or GROUPS)]
        cells = [words, str(len(chosen))]
        for found in (None, left_out["one"], left_out["network"]):
            errors = [
                abs(cost_fit.error(point, cost_fit.predicted(point) if found is None else found[point.id]))
                for point in chosen
            ]
            beyond = sum(error > GOAL_WORST for error in errors)
            cells.append(f"{100 * statistics.median(errors):.1f} %, {100 * max(errors):.0f} %, {beyond}")
        rows.append(cells)
    held_out = sorted(
        abs(cost_fit.error(point, cost_fit.predicted(point))) for point in points if point.group == HELD_OUT
    )
    beyond = sum(error > GOAL_WORST for error in held_out)
    cell = f"{100 * statistics.median(held_out):.1f} %, {100 * held_out[-1]:.0f} %, {beyond}"
    rows.append(["held-out encoders, not in the fit", str(len(held_out)), "", cell, ""])
    header = ["median, worst, how many over 35 %", "points", "in the fit", "without the point", "without its network"]
    return f"### What is reached\n\n{_rows(header, rows)}\n{_multicast(points)}"


def _multicast(points: Sequence[Point]) -> str:
    """What the errors say of a flag that the model does not have."""
    medians, counts = [], []
    for flag in (True, False):
        errors = [
            cost_fit.error(point, cost_fit.predicted(point))
            for point in points
            if point.fits and point.cores > 1 and point.group in ("encoder", "cnn") and point.multicast == flag
        ]
        medians.append(100 * statistics.median(errors))
        counts.append(len(errors))
    return (
        f"Errors of the {counts[0]} programs of several cores with `-multicast-weights` have the median "
        f"{medians[0]:+.1f} %, those of the {counts[1]} without it {medians[1]:+.1f} %: "
        "the flag is not part of the model.\n"
    )


def _parameters() -> str:
    rows = [
        [f"`{name}`", f"{entry['value']:g}", entry["unit"], entry["kind"], entry["source"]]
        for section in ("parameters", "compile_time")
        for name, entry in cost_parameters.table()[section].items()
    ]
    return f"### Parameters\n\n{_rows(['parameter', 'value', 'unit', 'kind', 'source'], rows)}"


def _setting(point: Point) -> str:
    """How a point was run, in few words."""
    if point.model is None:
        return ""
    sku = point.sku if point.devices == 1 else f"{point.devices} x {point.sku}"
    words = [f"{sku}, {point.cores} x {point.instances}, batch {point.batch}", point.precision]
    for name, value in (("KV", point.kv if point.kv != "fp16" else ""), ("ctx", point.ctx_len)):
        words += [f"{name} {value}"] if value else []
    for name in ("ols", "mos"):
        words += [f"{name} {getattr(point, name)}"] if getattr(point, name) > 1 else []
    words += [f"set-size {point.set_size}"] if point.set_size > 1 else []
    words += ["depth-first"] if point.depth_first else []
    return ", ".join(words)


def _points(points: Sequence[Point], left_out: LeftOut) -> str:
    parts = []
    for group, words in [*GROUPS.items(), *APART.items()]:
        rows = []
        for point in points:
            if point.group != group:
                continue
            unit = "ms" if point.unit == LATENCY_MS else "/s"
            row = [point.id, _setting(point), f"{point.published:g} {unit}"]
            if point.model is None:
                row += ["", "", ""]
            else:
                value = cost_fit.predicted(point)
                row += [f"{value:.4g}", _percent(cost_fit.error(point, value))]
                row += [_percent(cost_fit.error(point, left_out["network"][point.id])) if point.fits else ""]
            fitted = "in the fit" if point.fits else f"no: {point.reason}"
            assumed = f"; assumed: {', '.join(point.assumed)}" if point.assumed else ""
            rows.append([*row, fitted + assumed])
        header = ["point", "setting", "published", "predicted", "error", "without its network", "in the fit"]
        parts.append(f"### Every point: {words}\n\n{_rows(header, rows)}")
    return "\n".join(parts)


def curves() -> dict[str, list[float | None]]:
    """Predicted rates for 1 to 16 cores an instance; None beyond what the device has."""
    llama = geometries.DECODERS["llama-2-7b"]
    small = geometries.DECODERS["smollm2-135m"]
    bert = geometries.ENCODERS["bert-base"]
    found: dict[str, list[float | None]] = {}
    for precision in ("fp16", "mxfp6"):
        work = geometries.decoder_work(llama, batch=1, tokens=1, ctx_len=2048, precision=precision)
        name = f"Llama-2 7B, {precision}, Ultra SoC, tokens/s"
        found[name] = [1 / cost_model.period_s(work, kind=KINDS["ultra"], settings=Settings(cores=c)) for c in CORES]
    work = geometries.decoder_work(small, batch=1, tokens=1, ctx_len=256)
    found["SmolLM2 135M, fp16, Ultra SoC, tokens/s"] = [
        1 / cost_model.period_s(work, kind=KINDS["ultra"], settings=Settings(cores=c)) for c in CORES
    ]
    found["BERT base, Standard, texts/s, as many instances as fit, best batch"] = [
        _best(lambda batch: geometries.encoder_work(bert, batch=batch, tokens=128), sku="standard", cores=c)
        for c in CORES
    ]
    for sku in ("standard", "ultra"):
        found[f"ResNet-50, {sku}, images/s, as many instances as fit, best batch"] = [
            _best(lambda batch: convolutional_work("resnet-50", batch=batch), sku=sku, cores=c) for c in CORES
        ]
    single = convolutional_work("resnet-50", batch=1)
    found["ResNet-50, Standard, one image at a time, 1/s"] = [
        1 / cost_model.period_s(single, kind=KINDS["standard"], settings=Settings(cores=c)) if c <= 14 else None
        for c in CORES
    ]
    return found


def _best(work_of: Callable[[int], Work], *, sku: str, cores: int) -> float | None:
    instances = KINDS[sku].cores // cores
    if not instances:
        return None
    return max(
        instances
        * batch
        / cost_model.period_s(
            work_of(batch),
            kind=KINDS[sku],
            settings=Settings(cores=cores, ols=ols),
            instances=instances,
            set_size=10,
        )
        for batch in (1, 2, 4, 8, 16)
        for ols in (1, 2, 4)
    )


def _sweeps() -> str:
    rows = [[name, *("" if value is None else f"{value:.4g}" for value in values)] for name, values in curves().items()]
    header = ["cores", *(str(count) for count in CORES)]
    return f"### Sweeps over the cores of an instance\n\n{_rows(header, rows)}"
