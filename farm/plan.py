"""What a submission will do, before any row is written: points, jobs and the edges between them. Pure.

A :class:`farm.sweep.Sweep` is the request, :func:`expand` makes its :class:`Plan`. Jobs are shared by plan key: one
resolve and one export serve every core count, batch and format of a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from farm.axes import asked, shown
from farm.errors import Usage
from farm.needs import identifying
from farm.sweep import DEFAULT_CTX_LEN, DEFAULT_PREFILL_LEN, Sweep, SweepModel, axes, quantize_label
from qeff_engine import actions, spec
from qeff_engine.compiler_flags import asking
from qeff_engine.errors import InvalidInput

# Names of the inputs of a stage, as in qeff_engine.stage.
SNAPSHOT, ORIGINAL, ONNX, PROGRAM = "snapshot", "original", "onnx", "program"
_WIDEST_CORES = 16  # no Cloud AI 100 has more


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """A job of a plan.

    Attributes:
        plan_key: digest of stage, spec and the plan keys of its inputs; unique within a plan.
        stage: kind of work.
        spec: JSON form of the stage's spec.
        label: for people, such as ``compile 14 cores fp16``.
        inputs: plan key of the parent by input name.
        num_cores: cores on each device; 0 when it needs a host slot instead.
        num_devices: devices that it spans; 0 when it needs none.
        chain: longest chain of jobs behind it.
        model: what it is done to, as source and revision, for predictions.
        needs: what its place must be; None when any will do.
        exclusive: nobody else may be on its devices.
    """

    plan_key: str
    stage: spec.Stage
    spec: dict[str, Any]
    label: str
    inputs: dict[str, str]
    num_cores: int = 0
    num_devices: int = 0
    chain: int = 0
    model: str = ""
    needs: dict[str, Any] | None = None
    exclusive: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        """What the job is known by: its spec, and of a run what its place must be."""
        return identifying(self.stage, self.spec, needs=self.needs, exclusive=self.exclusive)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedPoint:
    """One combination of the sweep's axes, and the jobs that serve it, by plan key, in stage order."""

    axes: dict[str, Any]
    plan_keys: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A combination that the compiler has no support for, and why."""

    axes: dict[str, Any]
    why: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole submission. Jobs are in an order in which parents come before children."""

    jobs: tuple[PlannedJob, ...]
    points: tuple[PlannedPoint, ...]
    left_out: tuple[LeftOut, ...] = ()


def expand(sweep: Sweep) -> Plan:
    """The plan of a sweep: its points in the order of the axes, its jobs each once.

    Raises:
        Usage: the compiler has no support for a combination, and the sweep does not say to leave such out, or for any.
    """
    builder = _Builder(sweep)
    points: list[PlannedPoint] = []
    left_out: list[LeftOut] = []
    for combination in sweep.combinations():
        try:
            points.append(builder.point(combination))
        except InvalidInput as error:
            left_out.append(LeftOut(axes=_shown(combination), why=str(error)))
    if left_out and not (sweep.skip_illegal and points):
        what = " ".join(f"{name} {value}" for name, value in _varied(left_out[0].axes, sweep=sweep).items())
        raise Usage(
            f"{len(left_out)} of {sweep.num_points} points cannot be compiled, such as {what or 'the only one'}: "
            f"{left_out[0].why} Correct the lists{', or leave such points out with --skip-illegal' if points else ''}."
        )
    return Plan(jobs=tuple(builder.jobs.values()), points=tuple(points), left_out=tuple(left_out))


def _shown(combination: Mapping[str, Any]) -> dict[str, Any]:
    """A combination as it stands in points."""
    found: dict[str, Any] = {"model": combination["model"].name}
    for name, value in combination.items():
        if name in axes() and axes()[name].run_field and value is None:
            continue
        if name in axes():
            found[name] = axes()[name].show(value)
        elif name != "model":
            found[name] = shown(name, value)
    return found


def _varied(shown_axes: Mapping[str, Any], *, sweep: Sweep) -> dict[str, Any]:
    """The values of the axes that have several."""
    return {name: value for name, value in shown_axes.items() if len(sweep.values()[name]) > 1}


class _Builder:
    """Collects the jobs of a plan. The stages before ``compile`` are made once per model and quantization."""

    def __init__(self, sweep: Sweep) -> None:
        self.jobs: dict[str, PlannedJob] = {}
        self._sweep = sweep
        self._export_spec = spec.ExportSpec(task=sweep.task)
        self._needs = sweep.needs
        self._heads: dict[tuple[str, str], tuple[PlannedJob, ...]] = {}

    def point(self, combination: dict[str, Any]) -> PlannedPoint:
        """A point and its jobs.

        Raises:
            InvalidInput: the compiler has no support for the combination, or no device the cores; nothing is added.
        """
        if combination["prefill_len"] is None:
            combination = {**combination, "prefill_len": min(DEFAULT_PREFILL_LEN, combination["ctx_len"])}
        compile_spec = self._compile_spec(combination)
        run_spec = self._run_spec(combination, num_cores=compile_spec.num_cores)
        model = combination["model"]
        head = self._head(model, combination["quantize"])
        original, snapshot, export = head[0], head[-2], head[-1]
        shape = _shape_label(compile_spec)
        program = self._add(
            compile_spec, model=model, label=f"compile {model.name} {shape}", inputs={ONNX: export}, chain=1
        )
        run = self._add(
            run_spec,
            model=model,
            label=" ".join(filter(None, (f"run {model.name} {shape}", _queue_label(run_spec)))),
            inputs={PROGRAM: program, SNAPSHOT: snapshot, ORIGINAL: original},
            num_cores=compile_spec.num_cores * (run_spec.activations or 1),
            num_devices=compile_spec.num_devices,
        )
        return PlannedPoint(axes=_shown(combination), plan_keys=tuple(job.plan_key for job in (*head, program, run)))

    def _run_spec(self, combination: Mapping[str, Any], *, num_cores: int) -> spec.RunSpec:
        """What a program is asked.

        Raises:
            InvalidInput: so many activations need more cores than a device has.
        """
        fields = {facts.run_field: combination[name] for name, facts in axes().items() if facts.run_field}
        found = spec.RunSpec(prompts=self._sweep.prompts, generation_len=self._sweep.generation_len, **fields)
        if found.activations is not None and num_cores * found.activations > _WIDEST_CORES:
            raise InvalidInput(
                f"{found.activations} activations of {num_cores} cores are more than the {_WIDEST_CORES} cores "
                "of a device."
            )
        return found

    def _compile_spec(self, combination: Mapping[str, Any]) -> spec.CompileSpec:
        fields = {field: combination[name] for name, facts in axes().items() for field in facts.spec_fields}
        flags = {name: combination[name] for name in self._sweep.flags}
        return spec.CompileSpec(
            num_devices=self._sweep.num_devices,
            num_partitions=self._sweep.num_partitions,
            device_link=self._sweep.device_link,
            compiler_options=asked(flags),
            unlisted_flags=self._sweep.unlisted_flags,
            **fields,
        )

    def _head(self, model: SweepModel, quantize: spec.QuantizeSpec | None) -> tuple[PlannedJob, ...]:
        """The jobs up to ``export``, in order."""
        found = self._heads.get((model.name, quantize_label(quantize)))
        if found is None:
            original = self._add(model.source, model=model, label=f"resolve {model.name}", inputs={}, chain=3)
            head = [original]
            if quantize is not None:
                label = f"quantize {model.name} {quantize.label}"
                head.append(self._add(quantize, model=model, label=label, inputs={SNAPSHOT: original}, chain=3))
            suffix = f" {quantize.label}" if quantize else ""
            label = f"export {model.name}{suffix}"
            inputs = {SNAPSHOT: head[-1]}
            head.append(self._add(self._export_spec, model=model, label=label, inputs=inputs, chain=2))
            found = tuple(head)
            self._heads[(model.name, quantize_label(quantize))] = found
        return found

    def _add(
        self,
        stage_spec: spec.StageSpec,
        *,
        model: SweepModel,
        label: str,
        inputs: Mapping[str, PlannedJob],
        chain: int = 0,
        num_cores: int = 0,
        num_devices: int = 0,
    ) -> PlannedJob:
        fields = stage_spec.to_json()
        keys = {name: job.plan_key for name, job in inputs.items()}
        needs = self._needs.of_stage(stage_spec.STAGE)
        exclusive = self._needs.exclusive and num_devices > 0
        known_by = identifying(stage_spec.STAGE, fields, needs=needs, exclusive=exclusive)
        key = actions.plan_key(stage_spec.STAGE, fields=known_by, inputs=keys)
        if key not in self.jobs:
            self.jobs[key] = PlannedJob(
                plan_key=key,
                stage=stage_spec.STAGE,
                spec=fields,
                label=label,
                inputs=keys,
                num_cores=num_cores,
                num_devices=num_devices,
                chain=chain,
                model=model.identity,
                needs=needs,
                exclusive=exclusive,
            )
        for parent in inputs.values():
            if parent.chain <= chain:  # a resolve that a quantize comes to stand behind
                self.jobs[parent.plan_key] = dataclasses.replace(parent, chain=chain + 1)
        return self.jobs[key]


def _shape_label(compile_spec: spec.CompileSpec) -> str:
    """The parts of a compilation that people tell points apart by: always cores and formats, the rest when unusual."""
    words = [f"{compile_spec.num_cores} cores"]
    if compile_spec.num_devices > 1:
        words.append(f"of {compile_spec.num_devices} devices")
    if compile_spec.num_partitions > 1:
        words.append(f"in {compile_spec.num_partitions} parts")
    if compile_spec.device_link != spec.DEVICE_LINKS[0]:
        words.append(f"through the {compile_spec.device_link}")
    words.append(compile_spec.precision)
    if compile_spec.kv_precision != "fp16":
        words.append(f"kv {compile_spec.kv_precision}")
    if compile_spec.batch_size != 1:
        words.append(f"batch {compile_spec.batch_size}")
    if compile_spec.ctx_len != DEFAULT_CTX_LEN:
        words.append(f"ctx {compile_spec.ctx_len}")
    if compile_spec.prefill_len != min(DEFAULT_PREFILL_LEN, compile_spec.ctx_len):
        words.append(f"prefill {compile_spec.prefill_len}")
    words.append(asking.in_words(compile_spec.compiler_options))
    words += compile_spec.unlisted_flags
    return " ".join(filter(None, words))


def _queue_label(run_spec: spec.RunSpec) -> str:
    """What people tell runs of one program apart by."""
    words = []
    if run_spec.set_size is not None:
        words.append(f"set {run_spec.set_size}")
    if run_spec.activations is not None:
        words.append(f"x{run_spec.activations}")
    return " ".join(words)
