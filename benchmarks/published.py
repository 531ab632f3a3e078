"""Published rates of real cards as data, and what each network of them does in a call."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

from benchmarks import convolutional, geometries
from qeff_engine.simulated_sdk.operations import Work

POINTS_FILE = Path(__file__).parent / "published_points.json"
PER_SECOND, LATENCY_MS = "per_second", "latency_ms"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One published figure.

    Attributes:
        id: its name.
        group: ``decode``, ``encoder``, ``cnn``, ``sweep``, ``held-out`` or ``ttft``.
        model: a network of the geometries; None when its geometry is not known here.
        sku: kind of device.
        unit: :data:`PER_SECOND` (tokens, texts or images, all instances together) or :data:`LATENCY_MS`.
        published: the figure.
        source: who published it.
        fits: the parameters are fitted to it.
        reason: why not.
        devices, cores, instances, batch, set_size: how the program was compiled and run.
        ols, mos, multicast, depth_first: flags of the compiler.
        precision, kv: of weights and of the KV cache.
        ctx_len, tokens: compiled context of a decoder; tokens of a call, of each text.
        texts_per_slot: texts that one row of an encoder's batch holds.
        assumed: which of these the source does not say.
    """

    id: str
    group: str
    model: str | None
    sku: str
    unit: str
    published: float
    source: str
    fits: bool
    reason: str = ""
    devices: int = 1
    cores: int = 0
    instances: int = 1
    batch: int = 1
    set_size: int = 1
    ols: int = 1
    mos: int = 1
    multicast: bool = False
    depth_first: bool = False
    precision: str = "fp16"
    kv: str = "fp16"
    ctx_len: int = 0
    tokens: int = 1
    texts_per_slot: int = 1
    assumed: tuple[str, ...] = ()

    @property
    def work(self) -> Work:
        """What one call does."""
        if self.model is None:
            raise ValueError(f"The geometry of point {self.id} is not known.")
        return _work(self)


def points() -> list[Point]:
    """All of the file, in its order."""
    entries = json.loads(POINTS_FILE.read_text())["points"]
    return [Point(**{**entry, "assumed": tuple(entry.get("assumed", ()))}) for entry in entries]


@functools.cache
def _work(point: Point) -> Work:
    if point.model in geometries.DECODERS:
        return geometries.decoder_work(
            geometries.DECODERS[point.model],
            batch=point.batch,
            tokens=point.tokens,
            ctx_len=point.ctx_len,
            precision=point.precision,
            kv=point.kv,
        )
    if point.model in geometries.ENCODERS:
        shape = geometries.ENCODERS[point.model]
        return geometries.encoder_work(shape, batch=point.batch, tokens=point.tokens, precision=point.precision)
    if point.model in geometries.VISION:
        return geometries.vision_work(geometries.VISION[point.model], batch=point.batch)
    return convolutional.convolutional_work(str(point.model), batch=point.batch, precision=point.precision)
