"""How long a job will take and how much memory, from what work like it took before. Pure; the history is SQL's.

Each finished attempt leaves a sample under several keys, from its very spec to its stage alone. A prediction is made
with the finest key that has samples. Ordering uses the median of the last few, which follows a change at once and
ignores one outlier; reservations use a high quantile, since a promise that is broken costs more than one that is loose
(Tsafrir, Etsion and Feitelson, "Backfilling using system-generated predictions", 2007; Nissimov and Feitelson 2007).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

NUM_KEPT = 20  # samples of a key
_NUM_RECENT = 5  # samples that the median is taken of
_QUANTILE = 0.9
_RAM_MARGIN = 1.15  # peaks of the same work differ by a few per cent; being killed costs a whole attempt

Sample = Sequence[float]  # seconds, peak resident bytes (0: not measured)

# Median and 90th percentile of a stage that nobody has run yet, in seconds.
_DEFAULTS: Mapping[str, tuple[float, float]] = {
    "resolve": (15.0, 120.0),
    "quantize": (600.0, 3600.0),
    "export": (30.0, 180.0),
    "compile": (180.0, 1800.0),
    "run": (60.0, 600.0),
}
_DEFAULT = (60.0, 600.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a job is predicted to take.

    Attributes:
        expected_s: median running time.
        reserved_s: running time that nine of ten stay below; never less than ``expected_s``.
        ram_bytes: peak of the host's memory with a margin; 0 when nobody knows.
        from_key: the key whose samples were used; None when there were none and the stage's default was taken.
        num_samples: how many samples that key has.
    """

    expected_s: float
    reserved_s: float
    ram_bytes: int
    from_key: str | None
    num_samples: int


def keys_of(
    stage: str,
    *,
    spec: Mapping[str, Any],
    model: str,
    sdk: str,
    num_cores: int = 0,
    num_devices: int = 1,
    program: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """The keys that a job's duration is remembered under, finest first; the last is the stage alone.

    Args:
        stage: the job's.
        spec: the job's, in its JSON form.
        model: what it is done to: a source and revision, or a digest. Empty leaves the keys with a model out.
        sdk: version of the SDK; matters to the stages that use it.
        num_cores: held on each device, for a run; a compile's are in its spec.
        num_devices: held, for a run.
        program: spec of the compile that made a run's program.
    """
    shape = program if program is not None else spec
    uses_sdk = stage in ("compile", "run")
    cores = num_cores or shape.get("num_cores", 0)
    devices = max(num_devices, shape.get("num_devices", 1))
    width = f"/cores={cores}x{devices}" if uses_sdk and cores else ""
    precision = f"/{shape['precision']}" if shape.get("precision") else ""
    version = f"/sdk={sdk}" if uses_sdk and sdk else ""
    what = f"/model={model}" if model else ""
    exact = _digest([spec, program])
    keys = [stage + what + width + precision + version + f"/spec={exact}"] if model else []
    keys += [
        stage + what + width + precision + version,
        stage + what + width + precision,
        stage + what + width,
        stage + what,
        stage + width,
        stage,
    ]
    return tuple(dict.fromkeys(keys))


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def remember(samples: Sequence[Sample], *, seconds: float, peak_rss_bytes: int) -> list[list[float]]:
    """The samples of a key with a new one behind them; the oldest go when there are enough."""
    return [*(list(sample) for sample in samples), [round(seconds, 3), peak_rss_bytes]][-NUM_KEPT:]


def estimate(samples_by_key: Mapping[str, Sequence[Sample]], keys: Sequence[str]) -> Estimate:
    """What is predicted for a job with these keys, of :func:`keys_of`.

    Memory is only taken from keys that name the model: a small model says nothing about a large one.
    """
    ram_bytes = 0
    for key in keys:
        peaks = [sample[1] for sample in samples_by_key.get(key, ()) if "/model=" in key and sample[1] > 0]
        if peaks:
            ram_bytes = math.ceil(max(peaks) * _RAM_MARGIN)
            break
    found = next((key for key in keys if samples_by_key.get(key)), None)
    samples = samples_by_key[found] if found is not None else ()
    expected_s, reserved_s = (
        _durations([sample[0] for sample in samples]) if samples else _DEFAULTS.get(keys[-1], _DEFAULT)
    )
    return Estimate(
        expected_s=expected_s,
        reserved_s=reserved_s,
        ram_bytes=ram_bytes,
        from_key=found,
        num_samples=len(samples),
    )


def _durations(seconds: Sequence[float]) -> tuple[float, float]:
    """Median of the last few, and the 90th percentile of all with a margin that shrinks as samples come in."""
    expected_s = statistics.median(seconds[-_NUM_RECENT:])
    ordered = sorted(seconds)
    high = ordered[math.ceil(_QUANTILE * len(ordered)) - 1]
    return expected_s, max(expected_s, high) * (1 + 1 / (2 * len(ordered)))


def ends_at(*, started_at: float, reserved_s: float, now: float) -> float:
    """When a running job is predicted to end: its prediction is doubled as often as it was exceeded.

    A job that has outlived its prediction will not end at once: how long such jobs still take grows with how long
    they have taken already.
    """
    predicted_s = max(reserved_s, 1.0)
    while started_at + predicted_s <= now:
        predicted_s *= 2
    return started_at + predicted_s
