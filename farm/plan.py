"""What a submission will do, before any row is written: points, jobs and the edges between them. Pure.

A :class:`Sweep` is the request, :func:`expand` makes its :class:`Plan`. Jobs are shared by plan key: one resolve and
one export serve every core count, batch and format of a model.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from farm.errors import Usage
from farm.needs import ANYWHERE, Needs, identifying
from qeff_engine import actions, spec

MAX_POINTS = 100_000  # a comma too many in each of seven lists is easily a million
DEFAULT_CTX_LEN = 128
DEFAULT_PREFILL_LEN = 32

# Names of the inputs of a stage, as in qeff_engine.stage.
SNAPSHOT, ORIGINAL, ONNX, PROGRAM = "snapshot", "original", "onnx", "program"


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
class Plan:
    """A whole submission. Jobs are in an order in which parents come before children."""

    jobs: tuple[PlannedJob, ...]
    points: tuple[PlannedPoint, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepModel:
    """A model of a sweep.

    Attributes:
        name: for people and reports, unique within the sweep.
        source: where it comes from.
    """

    name: str
    source: spec.ResolveSpec

    @property
    def identity(self) -> str:
        """What predictions know it by, in whatever sweep it stands."""
        return self.source.source + (f"@{self.source.revision}" if self.source.revision else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A request. Every axis is a tuple without duplicates; points are their product.

    Attributes:
        models: what to compile.
        cores: NSPs of a device.
        batch: sequences decoded together.
        ctx_len: KV positions of a sequence; for an encoder, the length of its input.
        prefill_len: tokens of one prefill call; None for the default, or the context length when that is shorter.
        precision: formats of weights.
        kv: formats of the KV cache.
        quantize: None for the model as it is.
        generation_len: tokens to generate at most; None fills the context.
        prompts: texts of each run.
        task: what the models are for; empty to go by their configs.
        num_devices: devices of one host that each program spans.
        needs: what the places of the jobs must be.
    """

    models: tuple[SweepModel, ...]
    cores: tuple[int, ...] = (16,)
    batch: tuple[int, ...] = (1,)
    ctx_len: tuple[int, ...] = (DEFAULT_CTX_LEN,)
    prefill_len: tuple[int | None, ...] = (None,)
    precision: tuple[str, ...] = ("fp16",)
    kv: tuple[str, ...] = ("fp16",)
    quantize: tuple[spec.QuantizeSpec | None, ...] = (None,)
    generation_len: int | None = None
    prompts: tuple[str, ...] = (spec.DEFAULT_PROMPT,)
    task: str = ""
    num_devices: int = 1
    needs: Needs = ANYWHERE

    def __post_init__(self) -> None:
        for name in ("models", "cores", "batch", "ctx_len", "prefill_len", "precision", "kv", "quantize"):
            _require_distinct(name, getattr(self, name))
        for name in ("cores", "batch", "ctx_len", "prefill_len"):
            _require_positive(name, getattr(self, name))
        if self.num_devices < 1:
            raise Usage(f"--devices is {self.num_devices}, expected a whole number of at least 1.")
        _require_known("precision", self.precision, spec.PRECISIONS)
        _require_known("kv", self.kv, spec.KV_PRECISIONS)
        self._check_lengths()
        spec.RunSpec(prompts=self.prompts, generation_len=self.generation_len)
        spec.ExportSpec(task=self.task)
        if self.num_points > MAX_POINTS:
            raise Usage(f"The sweep has {self.num_points} points, expected at most {MAX_POINTS}. Split it.")

    def _check_lengths(self) -> None:
        # How many tokens the prompts have is known to the tokenizer only; the run stage makes the exact check.
        shortest = min(self.ctx_len)
        if self.generation_len is not None and self.generation_len + 1 > shortest:
            raise Usage(
                f"The context length {shortest} is too small for {self.generation_len} generated tokens and a prompt, "
                f"expected at least {self.generation_len + 1}. Raise --ctx-len or lower --generation-len."
            )
        longest = max((length for length in self.prefill_len if length is not None), default=0)
        if longest > shortest:
            raise Usage(
                f"The prefill length {longest} is longer than the context length {shortest}, expected at most that. "
                "Lower --prefill-len or raise --ctx-len."
            )

    @property
    def num_points(self) -> int:
        """How many combinations there are."""
        return math.prod(len(values) for values in self._axes())

    def _axes(self) -> tuple[tuple[Any, ...], ...]:
        return (
            self.models,
            self.quantize,
            self.precision,
            self.kv,
            self.batch,
            self.ctx_len,
            self.prefill_len,
            self.cores,
        )

    def _combinations(self) -> Iterator[tuple[Any, ...]]:
        return itertools.product(*self._axes())

    def to_json(self) -> dict[str, Any]:
        """The request as JSON values, as it is kept with the submission."""
        return {
            "models": [{"name": model.name, **model.source.to_json()} for model in self.models],
            "cores": list(self.cores),
            "batch": list(self.batch),
            "ctx_len": list(self.ctx_len),
            "prefill_len": list(self.prefill_len),
            "precision": list(self.precision),
            "kv": list(self.kv),
            "quantize": [_quantize_label(quantize) for quantize in self.quantize],
            "generation_len": self.generation_len,
            "prompts": list(self.prompts),
            "task": self.task,
            "num_devices": self.num_devices,
            "needs": self.needs.to_json(),
        }


def expand(sweep: Sweep) -> Plan:
    """The plan of a sweep: its points in the order of the axes, its jobs each once."""
    builder = _Builder(sweep)
    points = tuple(builder.point(combination) for combination in sweep._combinations())
    return Plan(jobs=tuple(builder.jobs.values()), points=points)


class _Builder:
    """Collects the jobs of a plan. The stages before ``compile`` are made once per model and quantization."""

    def __init__(self, sweep: Sweep) -> None:
        self.jobs: dict[str, PlannedJob] = {}
        self._run_spec = spec.RunSpec(prompts=sweep.prompts, generation_len=sweep.generation_len)
        self._export_spec = spec.ExportSpec(task=sweep.task)
        self._num_devices = sweep.num_devices
        self._needs = sweep.needs
        self._heads: dict[tuple[str, str], tuple[PlannedJob, ...]] = {}

    def point(self, combination: tuple[Any, ...]) -> PlannedPoint:
        model, quantize, precision, kv, batch, ctx_len, prefill_len, cores = combination
        if prefill_len is None:
            prefill_len = min(DEFAULT_PREFILL_LEN, ctx_len)
        head = self._head(model, quantize)
        original, snapshot, export = head[0], head[-2], head[-1]
        compile_spec = spec.CompileSpec(
            num_cores=cores,
            num_devices=self._num_devices,
            batch_size=batch,
            prefill_len=prefill_len,
            ctx_len=ctx_len,
            seq_len=ctx_len,
            precision=precision,
            kv_precision=kv,
        )
        shape = _shape_label(compile_spec)
        program = self._add(
            compile_spec, model=model, label=f"compile {model.name} {shape}", inputs={ONNX: export}, chain=1
        )
        run = self._add(
            self._run_spec,
            model=model,
            label=f"run {model.name} {shape}",
            inputs={PROGRAM: program, SNAPSHOT: snapshot, ORIGINAL: original},
            num_cores=cores,
            num_devices=compile_spec.num_devices,
        )
        axes = {
            "model": model.name,
            "quantize": _quantize_label(quantize),
            "precision": precision,
            "kv": kv,
            "batch": batch,
            "ctx_len": ctx_len,
            "prefill_len": prefill_len,
            "cores": cores,
        }
        return PlannedPoint(axes=axes, plan_keys=tuple(job.plan_key for job in (*head, program, run)))

    def _head(self, model: SweepModel, quantize: spec.QuantizeSpec | None) -> tuple[PlannedJob, ...]:
        """The jobs up to ``export``, in order."""
        found = self._heads.get((model.name, _quantize_label(quantize)))
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
            self._heads[(model.name, _quantize_label(quantize))] = found
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


def _quantize_label(quantize: spec.QuantizeSpec | None) -> str:
    return quantize.label if quantize else "none"


def _shape_label(compile_spec: spec.CompileSpec) -> str:
    """The parts of a compilation that people tell points apart by: always cores and formats, the rest when unusual."""
    words = [f"{compile_spec.num_cores} cores"]
    if compile_spec.num_devices > 1:
        words.append(f"of {compile_spec.num_devices} devices")
    words.append(compile_spec.precision)
    if compile_spec.kv_precision != "fp16":
        words.append(f"kv {compile_spec.kv_precision}")
    if compile_spec.batch_size != 1:
        words.append(f"batch {compile_spec.batch_size}")
    if compile_spec.ctx_len != DEFAULT_CTX_LEN:
        words.append(f"ctx {compile_spec.ctx_len}")
    if compile_spec.prefill_len != min(DEFAULT_PREFILL_LEN, compile_spec.ctx_len):
        words.append(f"prefill {compile_spec.prefill_len}")
    return " ".join(words)


def _option(name: str) -> str:
    return "--" + {"models": "model"}.get(name, name).replace("_", "-")


def _require_distinct(name: str, values: tuple[Any, ...]) -> None:
    if not values:
        raise Usage(f"{_option(name)} is empty, expected at least one value.")
    seen: set[str] = set()
    for value in values:
        if isinstance(value, SweepModel):
            word = value.identity
        elif isinstance(value, spec.QuantizeSpec) or (value is None and name == "quantize"):
            word = _quantize_label(value)
        else:
            word = str(value)
        if word in seen:
            raise Usage(f"{_option(name)} has {word} twice, expected each value once. Take one of them out.")
        seen.add(word)


def _require_positive(name: str, values: tuple[int | None, ...]) -> None:
    for value in values:
        if value is not None and value < 1:
            raise Usage(f"{_option(name)} is {value}, expected a whole number of at least 1.")


def _require_known(name: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    for value in values:
        if value not in known:
            close = "".join(f"Did you mean '{word}'?" for word in difflib.get_close_matches(value, known, n=1))
            raise Usage(f"{_option(name)} is '{value}', expected {' or '.join(known)}. {close}".rstrip())
