"""Placement's policy ladder over generated traces, and the CPU of a round; ``--write`` puts the table into the docs."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from random import Random

from benchmarks import measure
from farm.placement import Policy, place
from farm.records import Capacity, DeviceCapacity, Holding, ReadyJob
from farm.replay import tables
from farm.replay.figures import Figures, figures
from farm.replay.generating import GENERATORS
from farm.replay.ladder import LADDER
from farm.replay.simulating import simulate

PAGE = Path(__file__).parents[1] / "docs" / "placement.md"
BEGIN, END = "<!-- begin: python -m benchmarks.placement_replay --write -->\n", "<!-- end -->\n"
SEED = 1
NUM_JOBS, NUM_DEVICES = 1000, 64
GOAL_RATIO, GOAL_MS = 1.10, 50.0


def rows() -> list[tuple[str, str, Figures]]:
    """The figures of every trace under every policy."""
    found = []
    for name, generate in GENERATORS.items():
        trace = generate(SEED)
        for policy in LADDER:
            found.append((name, policy, figures(trace, simulate(trace, policy=LADDER[policy]))))
    return found


def page(text: str, found: list[tuple[str, str, Figures]]) -> str:
    """The page with the table of these figures."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{tables.markdown(found)}\n{END}{tail}"


def busy_farm() -> tuple[list[ReadyJob], Capacity]:
    """A farm that is nearly full and a long line in which no two jobs are alike."""
    random = Random(SEED)
    devices = []
    for number in range(NUM_DEVICES):
        total, held = (16 if number % 2 else 14), []
        while (free := total - sum(one.amount for one in held)) > 0 and random.random() > 0.15:
            amount = min(free, random.choice((1, 2, 4, 8)))
            held.append(Holding(job_id=20 * number + len(held), amount=amount, ends_at=random.uniform(0, 1000)))
        devices.append(
            DeviceCapacity(
                node_id=number,
                device_id=number,
                host_id=number // 8,
                queue=f"device.{number:03}",
                name=f"device/{number}",
                board=f"card{number // 4}",
                num_cores=total,
                free_cores=free,
                holdings=tuple(held),
            )
        )
    jobs = [
        ReadyJob(
            id=10_000 + number,
            stage="run",
            kind=random.choice(("sweep", "sweep", "nightly", "interactive")),
            owner=f"owner{random.randrange(20)}",
            priority=0,
            ready_at=-random.uniform(0, 3600),
            chain=0,
            num_cores=random.choice((1, 2, 4, 8, 14, 16)),
            num_devices=random.choice((1,) * 20 + (2, 4)),
            exclusive=random.random() < 0.05,
            expected_s=random.uniform(10, 1000),
            reserved_s=random.uniform(10, 2000),
        )
        for number in range(NUM_JOBS)
    ]
    return jobs, Capacity(hosts=(), devices=tuple(devices))


def round_ms(runs: int) -> float:
    """Median CPU milliseconds of one round."""
    jobs, capacity = busy_farm()
    taken = []
    for _ in range(max(runs, 9)):
        before = time.process_time()
        place(jobs, capacity=capacity, shares={"owner1": 1e5}, now=0.0, policy=Policy())
        taken.append((time.process_time() - before) * 1e3)
    return sorted(taken)[len(taken) // 2]


def measure_all(runs: int) -> list[measure.Figure]:
    """Makespans of mixed-width sweeps beside their lower bounds, and a round's CPU."""
    found = []
    for name in ("mixed-sweep", "ready-burst"):
        trace = GENERATORS[name](SEED)
        result = figures(trace, simulate(trace, policy=LADDER["full"]))
        found.append(
            measure.Figure(
                name=f"makespan of {name} beside its lower bound",
                ours=result.makespan_s,
                peer=result.bound_s,
                unit="s",
                goal=GOAL_RATIO,
                goal_is_ratio=True,
            )
        )
    name = f"CPU of a round, {NUM_JOBS} jobs and {NUM_DEVICES} devices"
    found.append(measure.Figure(name=name, ours=round_ms(runs), unit="ms", goal=GOAL_MS))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, add_help=False)
    parser.add_argument("--write", action="store_true")
    if parser.parse_known_args()[0].write:
        PAGE.write_text(page(PAGE.read_text(), rows()))
        sys.exit(0)
    measure.main(measure_all)
