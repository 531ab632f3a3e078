"""Traces that are made up, each around one difficulty. The same seed gives the same trace, on any machine."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random

from farm.placement.estimates import Sample, keys_of, remember
from farm.records import Capacity, DeviceCapacity, HostCapacity
from farm.replay.traces import Task, Trace

_GIB = 2**30
_MINUTE_S, _HOUR_S = 60.0, 3600.0
_MODELS = ("llama-8b", "qwen-7b", "gemma-9b", "mixtral-47b", "phi-4b", "smol-1b")
_WEIGHT: Mapping[str, float] = dict(zip(_MODELS, (1.0, 0.9, 1.1, 3.0, 0.6, 0.3), strict=True))
_WIDTHS = (2, 4, 8, 14, 16)


def machines(*, num_hosts: int, standard: int, ultra: int, num_slots: int = 8, ram_bytes: int = 256 * _GIB) -> Capacity:
    """Hosts with so many devices of 14 and of 16 cores each; four devices of 16 cores are one card."""
    hosts, devices = [], []
    numbers = itertools.count(1)
    for host_id in range(1, num_hosts + 1):
        name = f"host{host_id}"
        hosts.append(
            HostCapacity(
                node_id=next(numbers),
                host_id=host_id,
                queue=f"host.{name}",
                host=name,
                sdk="1.19",
                num_slots=num_slots,
                free_slots=num_slots,
                ram_bytes=ram_bytes,
                free_ram_bytes=ram_bytes,
            )
        )
        for qid in range(standard + ultra):
            wide = qid >= standard
            node_id = next(numbers)
            devices.append(
                DeviceCapacity(
                    node_id=node_id,
                    device_id=node_id,
                    host_id=host_id,
                    host=name,
                    queue=f"device.{name}.{qid}",
                    name=f"{name}/{qid}",
                    sku="ultra" if wide else "standard",
                    board=f"{name}-u{(qid - standard) // 4}" if wide else f"{name}-s{qid}",
                    sdk="1.19",
                    simulated=True,
                    num_cores=16 if wide else 14,
                    free_cores=16 if wide else 14,
                )
            )
    return Capacity(hosts=tuple(hosts), devices=tuple(devices))


class Work:
    """Tasks that are being made up."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)  # noqa: S311 - made-up work, no secrets
        self.tasks: list[Task] = []

    def add(
        self,
        stage: str,
        *,
        at: float,
        model: str,
        seconds: float,
        owner: str = "alice",
        kind: str = "sweep",
        num_cores: int = 0,
        num_devices: int = 1,
        exclusive: bool = False,
        sku: str = "",
        after: Sequence[int] = (),
        ram_gib: float = 0.0,
        noise: float = 0.1,
    ) -> int:
        """Add a task that takes about so long; returns its id."""
        spread = math.exp(self.random.gauss(0.0, noise))
        task = Task(
            id=len(self.tasks) + 1,
            at=round(at, 3),
            after=tuple(after),
            stage=stage,
            kind=kind,
            owner=owner,
            num_cores=num_cores,
            num_devices=num_devices,
            exclusive=exclusive,
            needs={"sku": sku} if sku else None,
            seconds=round(max(1.0, seconds * spread), 3),
            peak_rss_bytes=int(ram_gib * _GIB * math.exp(self.random.gauss(0.0, 0.03))),
            model=model,
            keys=keys_of(stage, spec={}, model=model, sdk="1.19", num_cores=num_cores, num_devices=num_devices),
        )
        self.tasks.append(task)
        return task.id

    def arrivals(self, *, every_s: float, until_s: float) -> Iterator[float]:
        """Moments that follow one another by chance, so long after each other on average."""
        at = self.random.expovariate(1 / every_s)
        while at < until_s:
            yield at
            at += self.random.expovariate(1 / every_s)

    def trace(self, name: str, capacity: Capacity) -> Trace:
        """The tasks in the order in which they were submitted, with ids in that order."""
        order = sorted(self.tasks, key=lambda task: task.at)  # parents are never later than those behind them
        return Trace(name=name, capacity=capacity, tasks=tuple(order))


def _run_s(model: str, num_cores: int) -> float:
    """A run is faster on more cores, but not by as much as there are more of them."""
    return 600.0 * _WEIGHT[model] * math.pow(16 / num_cores, 0.6)


def _sweep(work: Work, *, at: float, models: Sequence[str], repeats: int, owner: str = "alice") -> None:
    """Export once per model, compile once per width, measure several times."""
    for model in models:
        weight = _WEIGHT[model]
        export = work.add("export", at=at, model=model, seconds=40 * weight, owner=owner, ram_gib=4 * weight)
        for num_cores in _WIDTHS:
            compiled = work.add(
                "compile", at=at, model=model, seconds=150 * weight, owner=owner, after=[export], ram_gib=8 * weight
            )
            for _ in range(repeats):
                work.add(
                    "run",
                    at=at,
                    model=model,
                    seconds=_run_s(model, num_cores),
                    owner=owner,
                    num_cores=num_cores,
                    after=[compiled],
                )


def first_sweep(seed: int) -> Trace:
    """One large sweep over models and widths, submitted at once to a farm that has never seen the like."""
    work = Work(seed)
    _sweep(work, at=0.0, models=_MODELS, repeats=12)
    return work.trace("first-sweep", machines(num_hosts=2, standard=2, ultra=4))


def mixed_sweep(seed: int) -> Trace:
    """The same when the farm has seen such a sweep before; the noise was another then."""
    return known(first_sweep(seed), before=first_sweep(seed + 1000), name="mixed-sweep")


def known(trace: Trace, *, before: Trace, name: str) -> Trace:
    """The trace on a farm that has learnt from another one."""
    history: dict[str, Sequence[Sample]] = {}
    for task in before.tasks:
        for key in task.keys:
            history[key] = remember(history.get(key, ()), seconds=task.seconds, peak_rss_bytes=task.peak_rss_bytes)
    return dataclasses.replace(trace, name=name, history=history)


def ready_burst(seed: int) -> Trace:
    """Programs that were measured before, measured again on a farm of devices with 14 and with 16 cores."""
    return known(_burst(seed), before=_burst(seed + 1000), name="ready-burst")


def _burst(seed: int) -> Trace:
    work = Work(seed)
    for model in _MODELS:
        for num_cores in (1, *_WIDTHS):
            for _ in range(10):
                seconds = _run_s(model, num_cores)
                work.add("run", at=0.0, model=model, seconds=seconds, num_cores=num_cores, noise=0.3)
    return work.trace("ready-burst", machines(num_hosts=2, standard=4, ultra=4))


def nightly(seed: int) -> Trace:
    """A nightly suite at once, and people who want single answers all the time."""
    work = Work(seed)
    for model in _MODELS:
        for num_cores in (4, 8, 14, 16):
            for _ in range(6):
                seconds = _run_s(model, num_cores)
                work.add(
                    "run", at=0.0, model=model, seconds=seconds, num_cores=num_cores, kind="nightly", owner="nightly"
                )
    for at in work.arrivals(every_s=3 * _MINUTE_S, until_s=3 * _HOUR_S):
        model = work.random.choice(_MODELS[3:])
        owner = work.random.choice(("bob", "carol", "dan"))
        num_cores = work.random.choice((2, 4, 8, 16))
        work.add(
            "run", at=at, model=model, seconds=90 * _WEIGHT[model], num_cores=num_cores, kind="interactive", owner=owner
        )
    return work.trace("nightly", machines(num_hosts=1, standard=2, ultra=4))


def narrow_stream(seed: int) -> Trace:
    """A stream of narrow runs that alone keeps the farm busy, and wide ones that need a device to become free."""
    work = Work(seed)
    for at in work.arrivals(every_s=15.0, until_s=3 * _HOUR_S):
        model = work.random.choice(_MODELS)
        num_cores = work.random.choice((1, 2, 4))
        work.add("run", at=at, model=model, seconds=240.0, num_cores=num_cores, owner="stream", noise=0.4)
    for at in work.arrivals(every_s=12 * _MINUTE_S, until_s=3 * _HOUR_S):
        model = work.random.choice(_MODELS)
        exclusive = work.random.random() < 0.3
        num_cores = work.random.choice((14, 16))
        work.add(
            "run", at=at, model=model, seconds=400.0, num_cores=num_cores, exclusive=exclusive, owner="wide", noise=0.4
        )
    return work.trace("narrow-stream", machines(num_hosts=1, standard=2, ultra=2))


def hog(seed: int) -> Trace:
    """One owner submits a week's work, then six others come with a little."""
    work = Work(seed)
    for _ in range(500):
        model, num_cores = work.random.choice(_MODELS), work.random.choice((2, 4, 8))
        work.add("run", at=0.0, model=model, seconds=_run_s(model, num_cores), num_cores=num_cores, owner="hog")
    for number, owner in enumerate(("bob", "carol", "dan", "erin", "frank", "grace"), start=1):
        for _ in range(12):
            model, num_cores = work.random.choice(_MODELS), work.random.choice((2, 4, 8, 14))
            seconds = _run_s(model, num_cores)
            at = number * 20 * _MINUTE_S
            work.add("run", at=at, model=model, seconds=seconds, num_cores=num_cores, owner=owner)
    return work.trace("hog", machines(num_hosts=1, standard=2, ultra=6))


def long_tail(seed: int) -> Trace:
    """Runs of which most are short and a few very long, so that predictions are often wrong."""
    work = Work(seed)
    for at in work.arrivals(every_s=25.0, until_s=2 * _HOUR_S):
        model = work.random.choice(_MODELS)
        num_cores = work.random.choice((1, 2, 4, 8, 14, 16))
        owner = work.random.choice(("alice", "bob", "carol"))
        work.add("run", at=at, model=model, seconds=60.0, num_cores=num_cores, owner=owner, noise=1.3)
    return work.trace("long-tail", machines(num_hosts=1, standard=2, ultra=4))


def spanning(seed: int) -> Trace:
    """Runs over two and four devices of a host between runs on one, some for one kind of device only."""
    work = Work(seed)
    for at in work.arrivals(every_s=25.0, until_s=2 * _HOUR_S):
        model = work.random.choice(_MODELS)
        num_devices = work.random.choice((1, 1, 1, 1, 2, 4))
        num_cores = work.random.choice((8, 14)) if num_devices > 1 else work.random.choice((2, 4, 8, 14))
        sku = work.random.choice(("", "", "", "ultra", "standard")) if num_devices == 1 else ""
        owner = work.random.choice(("alice", "bob"))
        work.add(
            "run",
            at=at,
            model=model,
            seconds=200.0,
            num_cores=num_cores,
            num_devices=num_devices,
            sku=sku,
            owner=owner,
            noise=0.4,
        )
    return work.trace("spanning", machines(num_hosts=2, standard=2, ultra=4))


def host_memory(seed: int) -> Trace:
    """Compiles and runs that are limited by the memory of two hosts, which they share."""
    work = Work(seed)
    for model in _MODELS:
        weight = _WEIGHT[model]
        export = work.add("export", at=0.0, model=model, seconds=60 * weight, ram_gib=6 * weight)
        for number in range(20):
            compiled = work.add(
                "compile", at=0.0, model=model, seconds=300 * weight, after=[export], ram_gib=16 * weight, noise=0.2
            )
            num_cores = _WIDTHS[number % len(_WIDTHS)]
            work.add(
                "run",
                at=0.0,
                model=model,
                seconds=60 * weight,
                num_cores=num_cores,
                after=[compiled],
                ram_gib=4 * weight,
            )
    return work.trace("host-memory", machines(num_hosts=2, standard=1, ultra=2, ram_bytes=128 * _GIB))


GENERATORS: Mapping[str, Callable[[int], Trace]] = {
    "first-sweep": first_sweep,
    "mixed-sweep": mixed_sweep,
    "ready-burst": ready_burst,
    "nightly": nightly,
    "narrow-stream": narrow_stream,
    "hog": hog,
    "long-tail": long_tail,
    "spanning": spanning,
    "host-memory": host_memory,
}
