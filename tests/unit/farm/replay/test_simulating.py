"""The replay: what it simulates is possible, what it bounds is a bound, and the farm's policy keeps its promise."""

from __future__ import annotations

import collections
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.errors import Usage
from farm.placement import Policy
from farm.replay import bounds
from farm.replay.figures import figures
from farm.replay.generating import GENERATORS, machines
from farm.replay.ladder import LADDER
from farm.replay.simulating import Outcome, simulate
from farm.replay.traces import Task, Trace, from_lines, to_lines

GIB = 2**30


def task(number: int, cores: int, *, seconds: float = 100.0, **changes: object) -> Task:
    stage = "run" if cores else "compile"
    found = Task(id=number, at=0.0, stage=stage, num_cores=cores, seconds=seconds, keys=(stage,))
    return dataclasses.replace(found, **changes)  # type: ignore[arg-type]


def trace(*tasks: Task, standard: int = 0, ultra: int = 1, hosts: int = 1) -> Trace:
    return Trace(name="t", capacity=machines(num_hosts=hosts, standard=standard, ultra=ultra), tasks=tasks)


def check(found: Trace, outcome: Outcome) -> None:
    """No core, slot or byte is given twice, and nothing starts before what it waits for has ended."""
    cores = {device.device_id: device.num_cores for device in found.capacity.devices}
    slots = {host.node_id: host.num_slots for host in found.capacity.hosts}
    ram = {host.host_id: host.ram_bytes for host in found.capacity.hosts}
    host_ids = {one.node_id: one.host_id for one in found.capacity.hosts}
    host_ids |= {one.node_id: one.host_id for one in found.capacity.devices}
    changes: dict[tuple[str, int], list[tuple[float, int]]] = collections.defaultdict(list)
    for run in outcome.runs.values():
        assert run.started_at >= max([run.task.at, *(outcome.runs[parent].ended_at for parent in run.task.after)])
        held = {("cores", device_id): run.task.num_cores for device_id in run.device_ids}
        if run.task.exclusive:
            held = {key: cores[key[1]] for key in held}
        held = held or {("slots", run.node_id): 1}
        held["ram", host_ids[run.node_id]] = run.ram_bytes
        for key, amount in held.items():
            changes[key] += [(run.started_at, amount), (run.ended_at, -amount)]
    limits = {"cores": cores, "slots": slots, "ram": ram}
    for (kind, place), found_changes in changes.items():
        used = 0
        for _, amount in sorted(found_changes):
            used += amount
            assert used <= limits[kind][place]


small = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 4, 8, 14, 16]),
        st.sampled_from([1, 1, 2]),
        st.booleans(),
        st.floats(1, 500),
        st.floats(0, 1000),
        st.booleans(),
        st.sampled_from([0, 0, 40, 100, 300]),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40)
@given(small, st.sampled_from(list(LADDER)))
def test_no_schedule_beats_the_bound_or_takes_what_is_not_there(
    made: list[tuple[int, int, bool, float, float, bool, int]], policy: str
) -> None:
    tasks = []
    known = {}  # what a task reserves without being known counts against the bound, too: so all that take some are
    for number, (cores, devices, exclusive, seconds, at, behind, gib) in enumerate(made, start=1):
        one = task(number, cores, seconds=seconds, at=at, num_devices=devices, exclusive=exclusive)
        key = f"{one.stage}/model={number}"
        one = dataclasses.replace(one, peak_rss_bytes=gib * GIB, keys=(key, one.stage), model=str(number))
        known[key] = [[seconds, gib * GIB]]
        tasks.append(dataclasses.replace(one, after=(number - 1,) if behind and number > 1 else ()))
    found = dataclasses.replace(trace(*tasks, standard=1, ultra=2), history=known)
    outcome = simulate(found, policy=LADDER[policy])
    check(found, outcome)
    assert set(outcome.runs) == {one.id for one in tasks}
    result = figures(found, outcome)
    assert result.makespan_s >= result.bound_s * (1 - 1e-9)
    assert result.promise <= 1


def test_wide_tasks_are_bounded_by_devices_and_not_by_cores() -> None:
    found = trace(*(task(number, 9) for number in range(1, 7)), task(7, 7, seconds=1.0), ultra=2)
    assert bounds.makespan(found) == bounds.Bound(seconds=300.0, argument="wide (9 or more)")
    assert bounds.makespan(trace(*(task(number, 8) for number in range(1, 9)), ultra=2)).seconds == 200.0


def test_the_bound_knows_chains_and_late_arrivals() -> None:
    chain = [task(1, 0, seconds=50.0), task(2, 16, seconds=70.0, after=(1,))]
    assert bounds.makespan(trace(*chain)) == bounds.Bound(seconds=120.0, argument="chain")
    late = [task(number, 16, at=1000.0) for number in (1, 2, 3)]
    assert bounds.makespan(trace(task(9, 1), *late)).seconds == 1300.0


def test_the_bound_knows_that_runs_and_stages_share_the_memory_of_their_host() -> None:
    keys = ("run/model=m", "run")  # the host has 256 GiB
    runs = [task(number, 2, peak_rss_bytes=64 * GIB, keys=keys, model="m") for number in range(1, 7)]
    stages = [task(number, 0, peak_rss_bytes=128 * GIB) for number in (7, 8)]
    assert bounds.makespan(trace(*runs, ultra=2)) == bounds.Bound(seconds=150.0, argument="memory")
    assert bounds.makespan(trace(*runs, *stages)) == bounds.Bound(seconds=250.0, argument="memory")
    pair = [dataclasses.replace(one, num_devices=2) for one in runs[:4]]
    assert bounds.makespan(trace(*pair, ultra=2)).seconds == 100.0, "both devices are of one host"
    huge = [dataclasses.replace(one, peak_rss_bytes=1000 * GIB) for one in runs[:2]]
    assert bounds.makespan(trace(*huge)).seconds == 200.0, "what wants more than there is gets all of it"


def test_tasks_that_no_machine_can_run_are_named_with_the_reason() -> None:
    outcome = simulate(trace(task(1, 20), task(2, 4, after=(1,)), task(3, 4)), policy=Policy())
    assert set(outcome.runs) == {3}
    assert outcome.unplaceable == {
        1: "It needs 20 cores, and the widest device that it may use has 16.",
        2: "",
    }


def test_a_trace_survives_being_written_down() -> None:
    for generate in (GENERATORS["spanning"], GENERATORS["mixed-sweep"]):
        found = generate(3)
        assert from_lines(to_lines(found)) == found


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "version is None, expected 1"),
        (
            [*list(to_lines(trace(task(1, 1)))), '{"id": 1, "at": 0, "stage": "run", "seconds": 1, "keys": []}'],
            "Two tasks",
        ),
        (
            list(to_lines(trace(task(1, 1, after=(2,)), task(2, 1)))),
            "comes after 2, expected a task of an earlier line",
        ),
    ],
)
def test_what_is_no_trace_is_refused(lines: list[str], message: str) -> None:
    with pytest.raises(Usage, match=message):
        from_lines(lines)


def test_the_same_seed_gives_the_same_trace_and_another_seed_another() -> None:
    for generate in GENERATORS.values():
        assert generate(5) == generate(5)
        assert generate(5) != generate(6)


@pytest.mark.parametrize("name", ["mixed-sweep", "ready-burst"])
def test_a_sweep_of_mixed_widths_ends_within_a_tenth_of_its_bound(name: str) -> None:
    found = GENERATORS[name](1)
    outcome = simulate(found, policy=LADDER["full"])
    check(found, outcome)
    result = figures(found, outcome)
    assert result.ratio <= 1.10
    assert result.promise <= 1


@pytest.mark.parametrize("name", ["narrow-stream", "long-tail", "spanning", "host-memory"])
def test_nobody_waits_longer_than_promised_and_no_host_runs_out_of_memory(name: str) -> None:
    found = GENERATORS[name](2)
    outcome = simulate(found, policy=LADDER["full"])
    check(found, outcome)
    result = figures(found, outcome)
    assert len(outcome.runs) == len(found.tasks)
    assert result.promise <= 1
    assert result.memory <= 1


def test_predictions_that_are_always_wrong_starve_nobody() -> None:
    found = GENERATORS["narrow-stream"](1)
    lies = {key: [[1.0, 0]] * 20 for one in found.tasks for key in one.keys}
    liar = dataclasses.replace(
        found, history=lies, tasks=tuple(dataclasses.replace(one, keys=(*one.keys, "lie")) for one in found.tasks)
    )
    result = figures(liar, simulate(liar, policy=LADDER["full"]))
    assert result.promise <= 1


def test_interactive_work_hardly_waits_beside_a_nightly_suite() -> None:
    found = GENERATORS["nightly"](1)
    waits = {
        policy: figures(found, simulate(found, policy=LADDER[policy])).waits["interactive"]
        for policy in ("+ prediction", "full")
    }
    assert waits["full"].p50_s < waits["+ prediction"].p50_s / 10
    assert waits["full"].p95_s < waits["+ prediction"].p95_s / 4


def test_an_owner_with_little_work_does_not_wait_for_one_with_much() -> None:
    found = GENERATORS["hog"](1)

    def last_of(owner: str, policy: str) -> float:
        runs = simulate(found, policy=LADDER[policy]).runs.values()
        return max(run.ended_at - run.task.at for run in runs if run.task.owner == owner)

    assert last_of("bob", "full") < last_of("bob", "+ prediction") / 2
