"""A farm without a farm: work comes, is placed, runs for as long as the trace says, and teaches the predictions.

Everything that decides is the farm's own: :func:`farm.placement.place`, :mod:`farm.placement.estimates`. Rounds happen
whenever something comes or ends and take no time.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import itertools
from collections.abc import Mapping, Sequence

from farm.placement import Placement, Policy, estimates, place
from farm.placement.estimates import Estimate, Sample
from farm.records import Assignment, Capacity, DeviceCapacity, Holding, HostCapacity, ReadyJob
from farm.replay.traces import Task, Trace

CANDIDATES = 500  # of each kind of place, the most urgent first: as many as the scheduler looks at
HALF_LIFE_S = 24 * 3600.0  # of what owners have used
_NUM_WARM = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """When a task could start, did start, and ended; which devices it had, and the memory reserved of its host."""

    task: Task
    ready_at: float
    started_at: float
    ended_at: float
    node_id: int
    device_ids: tuple[int, ...]
    ram_bytes: int

    @property
    def wait_s(self) -> float:
        """How long it waited for a place."""
        return self.started_at - self.ready_at


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a trace.

    Attributes:
        runs: by task.
        unplaceable: tasks that no machine of the trace can run, with the reason, and those behind them with none.
        rounds: how often placement was asked.
    """

    runs: dict[int, Run]
    unplaceable: dict[int, str]
    rounds: int


def simulate(trace: Trace, *, policy: Policy) -> Outcome:
    """Run a trace under a policy."""
    return _Farm(trace, policy=policy).run()


@dataclasses.dataclass(kw_only=True)
class _Running:
    task: Task
    node_id: int
    device_ids: tuple[int, ...]
    started_at: float
    reserved_s: float
    charged: float
    ram_bytes: int


class _Farm:
    def __init__(self, trace: Trace, *, policy: Policy) -> None:
        self._policy = policy
        self._tasks = {task.id: task for task in trace.tasks}
        self._behind: dict[int, list[Task]] = collections.defaultdict(list)
        for task in trace.tasks:
            for parent in task.after:
                self._behind[parent].append(task)
        self._missing = {task.id: len(task.after) for task in trace.tasks}
        self._arrivals = collections.deque(sorted(trace.tasks, key=lambda task: (task.at, task.id)))
        self._arrived: set[int] = set()
        self._ready: dict[int, ReadyJob] = {}
        self._of_kind: dict[tuple[str, str], set[int]] = collections.defaultdict(set)  # ready tasks
        self._running: dict[int, _Running] = {}
        self._ends: list[tuple[float, int]] = []
        self._machines = _Machines(trace.capacity)
        self._history: dict[str, Sequence[Sample]] = dict(trace.history)
        self._used: dict[str, float] = collections.defaultdict(float)
        self._used_at = 0.0
        self._now = 0.0
        self._runs: dict[int, Run] = {}
        self._ready_at: dict[int, float] = {}
        self._chains: dict[int, int] = {}

    def run(self) -> Outcome:
        rounds = 0
        waiting: Mapping[int, str] = {}
        while self._arrivals or self._ends:
            self._advance()
            if self._ready:
                rounds += 1
                decided = self._place()
                waiting = {job_id: found.reason for job_id, found in decided.waiting.items()}
        stuck = {task_id: waiting.get(task_id, "") for task_id in self._tasks if task_id not in self._runs}
        return Outcome(runs=self._runs, unplaceable=stuck, rounds=rounds)

    def _advance(self) -> None:
        """Go to the next moment at which something comes or ends."""
        times = [self._arrivals[0].at] if self._arrivals else []
        times += [self._ends[0][0]] if self._ends else []
        self._now = now = min(times)
        while self._ends and self._ends[0][0] <= now:
            self._end(heapq.heappop(self._ends)[1])
        while self._arrivals and self._arrivals[0].at <= now:
            task = self._arrivals.popleft()
            self._arrived.add(task.id)
            self._admit(task)

    def _admit(self, task: Task) -> None:
        if task.id not in self._arrived or self._missing[task.id]:
            return
        self._ready_at[task.id] = self._now
        self._of_kind[task.stage, task.model].add(task.id)
        self._ready[task.id] = self._job(task)

    def _job(self, task: Task) -> ReadyJob:
        found = self._estimate(task)
        return ReadyJob(
            id=task.id,
            stage=task.stage,
            kind=task.kind,
            owner=task.owner,
            priority=task.priority,
            ready_at=self._ready_at[task.id],
            chain=self._chain(task),
            rest_s=self._rest_s(task),
            num_cores=task.num_cores,
            num_devices=task.num_devices,
            exclusive=task.exclusive,
            needs=task.needs,
            ram_bytes=found.ram_bytes,
            expected_s=found.expected_s,
            reserved_s=found.reserved_s,
            model=task.model,
        )

    def _place(self) -> Placement:
        by_kind = [
            [job for job in self._ready.values() if bool(job.num_cores) == of_device] for of_device in (True, False)
        ]
        urgency = lambda job: (-job.priority, job.ready_at, job.id)  # noqa: E731
        jobs = [job for jobs in by_kind for job in heapq.nsmallest(CANDIDATES, jobs, key=urgency)]
        self._decay()
        decided = place(
            jobs,
            capacity=self._machines.capacity(self._running, now=self._now),
            shares=self._used,
            now=self._now,
            policy=self._policy,
        )
        for chosen in decided.assignments:
            self._start(chosen)
        return decided

    def _start(self, chosen: Assignment) -> None:
        job = self._ready.pop(chosen.job_id)
        task = self._tasks[job.id]
        self._of_kind[task.stage, task.model].remove(task.id)
        assert job.expected_s is not None
        assert job.reserved_s is not None
        charged = max(1, job.num_cores) * job.num_devices * job.expected_s
        self._used[task.owner] += charged
        running = _Running(
            task=task,
            node_id=chosen.node_id,
            device_ids=chosen.device_ids,
            started_at=self._now,
            reserved_s=job.reserved_s,
            charged=charged,
            ram_bytes=chosen.ram_bytes or self._machines.ram_for(chosen, job),
        )
        self._running[task.id] = running
        self._machines.take(running)
        heapq.heappush(self._ends, (self._now + task.seconds, task.id))
        self._runs[task.id] = Run(
            task=task,
            ready_at=self._ready_at[task.id],
            started_at=self._now,
            ended_at=self._now + task.seconds,
            node_id=chosen.node_id,
            device_ids=chosen.device_ids,
            ram_bytes=running.ram_bytes,
        )

    def _end(self, task_id: int) -> None:
        running = self._running.pop(task_id)
        task = running.task
        self._machines.give_back(running)
        used = max(1, task.num_cores) * task.num_devices * task.seconds
        self._used[task.owner] = max(0.0, self._used[task.owner] + used - running.charged)
        for key in task.keys:
            self._history[key] = estimates.remember(
                self._history.get(key, []), seconds=task.seconds, peak_rss_bytes=task.peak_rss_bytes
            )
        for other in self._of_kind[task.stage, task.model]:
            self._ready[other] = self._job(self._tasks[other])
        for child in self._behind[task_id]:
            self._missing[child.id] -= 1
            self._admit(child)

    def _decay(self) -> None:
        factor = 0.5 ** ((self._now - self._used_at) / HALF_LIFE_S)
        self._used_at = self._now
        for owner in self._used:
            self._used[owner] *= factor

    def _estimate(self, task: Task) -> Estimate:
        return estimates.estimate(self._history, task.keys)

    def _rest_s(self, task: Task) -> float:
        behind = max((self._rest_s(child) for child in self._behind[task.id]), default=0.0)
        return self._estimate(task).expected_s + behind

    def _chain(self, task: Task) -> int:
        if task.id not in self._chains:
            behind = self._behind[task.id]
            self._chains[task.id] = 1 + max(self._chain(child) for child in behind) if behind else 0
        return self._chains[task.id]


class _Machines:
    """Free cores, slots and memory, and who holds the rest."""

    def __init__(self, capacity: Capacity) -> None:
        self._hosts = {host.node_id: host for host in capacity.hosts}
        self._devices = {device.device_id: device for device in capacity.devices}
        self._nodes = {host.host_id: host.node_id for host in capacity.hosts}
        self._on_host: dict[int, set[int]] = {node_id: set() for node_id in self._hosts}
        self._in_memory: dict[int, set[int]] = {node_id: set() for node_id in self._hosts}  # runs on its devices
        self._on_device: dict[int, set[int]] = {device_id: set() for device_id in self._devices}
        self._warm: dict[int, collections.deque[str]] = {
            device_id: collections.deque(maxlen=_NUM_WARM) for device_id in self._devices
        }

    def ram_for(self, chosen: Assignment, job: ReadyJob) -> int:
        """Memory that is reserved for a job as predicted: at most all that its host has."""
        node_id = self._host_of(chosen)
        return 0 if node_id is None else min(job.ram_bytes, self._hosts[node_id].ram_bytes)

    def _host_of(self, placed: Assignment | _Running) -> int | None:
        """The node of the host that something is placed on; None of devices whose host is not in the trace."""
        if not placed.device_ids:
            return placed.node_id
        return self._nodes.get(self._devices[placed.device_ids[0]].host_id)

    def take(self, running: _Running) -> None:
        """A task starts."""
        for device_id in running.device_ids:
            self._on_device[device_id].add(running.task.id)
            if running.task.model not in self._warm[device_id]:
                self._warm[device_id].append(running.task.model)
        node_id = self._host_of(running)
        if node_id is not None:
            (self._in_memory if running.device_ids else self._on_host)[node_id].add(running.task.id)

    def give_back(self, running: _Running) -> None:
        """A task ends."""
        for device_id in running.device_ids:
            self._on_device[device_id].remove(running.task.id)
        node_id = self._host_of(running)
        if node_id is not None:
            (self._in_memory if running.device_ids else self._on_host)[node_id].remove(running.task.id)

    def capacity(self, running: Mapping[int, _Running], *, now: float) -> Capacity:
        """What is free now."""
        return Capacity(
            hosts=tuple(self._host(host, running, now=now) for host in self._hosts.values()),
            devices=tuple(self._device(device, running, now=now) for device in self._devices.values()),
        )

    def _host(self, host: HostCapacity, running: Mapping[int, _Running], *, now: float) -> HostCapacity:
        held = [running[task_id] for task_id in sorted(self._on_host[host.node_id])]
        runs = [running[task_id] for task_id in sorted(self._in_memory[host.node_id])]
        return dataclasses.replace(
            host,
            free_slots=host.num_slots - len(held),
            free_ram_bytes=host.ram_bytes - sum(one.ram_bytes for one in (*held, *runs)),
            holdings=(
                *(_holding(one, amount=1, now=now) for one in held),
                *(_holding(one, amount=0, now=now) for one in runs),
            ),
        )

    def _device(self, device: DeviceCapacity, running: Mapping[int, _Running], *, now: float) -> DeviceCapacity:
        held = [running[task_id] for task_id in sorted(self._on_device[device.device_id])]
        amounts = [device.num_cores if one.task.exclusive else one.task.num_cores for one in held]
        return dataclasses.replace(
            device,
            free_cores=device.num_cores - sum(amounts),
            holdings=tuple(_holding(one, amount=amount, now=now) for one, amount in zip(held, amounts, strict=True)),
            warm=frozenset(itertools.chain(self._warm[device.device_id])) - {""},
        )


def _holding(running: _Running, *, amount: int, now: float) -> Holding:
    return Holding(
        job_id=running.task.id,
        amount=amount,
        ram_bytes=running.ram_bytes,
        ends_at=estimates.ends_at(started_at=running.started_at, reserved_s=running.reserved_s, now=now),
        exclusive=running.task.exclusive,
    )
