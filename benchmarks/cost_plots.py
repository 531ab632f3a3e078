"""Plots of the cost model as SVG, drawn without a library: predicted against published, and sweeps over cores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks import cost_fit
from benchmarks.cost_page import CORES, GROUPS
from benchmarks.published import LATENCY_MS, Point

_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8e6c00", "#6b4fa0", "#444444", "#c06000")
_SIDE, _MARGIN = 560, 60


def scatter(points: Sequence[Point]) -> str:
    """Predicted rates against published ones, both logarithmic; dashed lines at 35 % more and less."""
    shown = [point for point in points if point.fits]
    pairs = [(_rate(point, point.published), _rate(point, cost_fit.predicted(point))) for point in shown]
    low = math.floor(math.log10(min(min(pair) for pair in pairs)))
    high = math.ceil(math.log10(max(max(pair) for pair in pairs)))

    def place(value: float) -> float:
        return (math.log10(value) - low) / (high - low) * _SIDE

    parts = _axes("published, per second", "predicted, per second")
    for exponent in range(low, high + 1):
        at = place(10.0**exponent)
        parts.append(_text(_MARGIN + at, _MARGIN + _SIDE + 18, f"1e{exponent}", anchor="middle"))
        parts.append(_text(_MARGIN - 6, _MARGIN + _SIDE - at + 4, f"1e{exponent}", anchor="end"))
    for factor, dash in ((1.0, ""), (1.35, "4 4"), (0.65, "4 4")):
        offset = place(10.0**low * factor)
        parts.append(_line([(0, offset), (_SIDE, _SIDE + offset)], colour="#999", dash=dash))
    for point, (published, predicted) in zip(shown, pairs, strict=True):
        colour = _COLOURS[list(GROUPS).index(point.group)]
        where = f'cx="{_MARGIN + place(published):.1f}" cy="{_MARGIN + _SIDE - place(predicted):.1f}"'
        parts.append(f'<circle {where} r="3" fill="{colour}" fill-opacity="0.7"><title>{point.id}</title></circle>')
    parts += _legend(list(GROUPS.values()))
    return _svg(parts)


def sweeps(curves: Mapping[str, Sequence[float | None]]) -> str:
    """Rates over the cores of an instance, each curve beside its own best."""
    parts = _axes("cores of an instance", "share of the best rate")
    for cores in CORES:
        parts.append(_text(_MARGIN + cores / 16 * _SIDE, _MARGIN + _SIDE + 18, str(cores), anchor="middle"))
    for tenth in range(0, 11, 2):
        parts.append(_text(_MARGIN - 6, _MARGIN + _SIDE * (1 - tenth / 10) + 4, f"{tenth / 10:.1f}", anchor="end"))
    for colour, values in zip(_COLOURS, curves.values(), strict=True):
        best = max(value for value in values if value is not None)
        places = [
            (cores / 16 * _SIDE, value / best * _SIDE)
            for cores, value in zip(CORES, values, strict=True)
            if value is not None
        ]
        parts.append(_line(places, colour=colour))
    return _svg([*parts, *_legend(list(curves))])


def _rate(point: Point, value: float) -> float:
    return 1e3 / value if point.unit == LATENCY_MS else value


def _axes(below: str, beside: str) -> list[str]:
    middle = _MARGIN + _SIDE / 2
    frame = f'<rect x="{_MARGIN}" y="{_MARGIN}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#333"/>'
    return [
        f'<clipPath id="frame">{frame}</clipPath>',
        frame,
        _text(middle, _MARGIN + _SIDE + 40, below, anchor="middle"),
        f'<g transform="rotate(-90 16 {middle})">{_text(16, middle, beside, anchor="middle")}</g>',
    ]


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _line(places: Sequence[tuple[float, float]], *, colour: str, dash: str = "") -> str:
    """A line through places measured from the lower left corner of the frame."""
    ends = " ".join(f"{_MARGIN + x:.1f},{_MARGIN + _SIDE - y:.1f}" for x, y in places)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<polyline points="{ends}" fill="none" stroke="{colour}" stroke-width="1.5"{dashed} clip-path="url(#frame)"/>'
    )


def _legend(words: Sequence[str]) -> list[str]:
    parts = []
    for number, (word, colour) in enumerate(zip(words, _COLOURS, strict=False)):
        y = _MARGIN + _SIDE + 62 + 18 * number
        parts.append(f'<rect x="{_MARGIN}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(_MARGIN + 16, y, word))
    return parts


def _svg(parts: Sequence[str]) -> str:
    width, height = _SIDE + 2 * _MARGIN, _SIDE + 2 * _MARGIN + 150
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
    back = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([f'{head} font-size="12">', back, *parts, "</svg>\n"])
