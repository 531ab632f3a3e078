"""The request of a submission: models and axes. Pure."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from farm.axes import Axis, axes_of, axis, check_flags, number, require_distinct
from farm.errors import Usage
from farm.needs import ANYWHERE, Needs
from qeff_engine import spec

MAX_POINTS = 100_000  # a comma too many in each of seven lists is easily a million
DEFAULT_CTX_LEN = 128
DEFAULT_PREFILL_LEN = 32


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


def with_code(request: Mapping[str, Any]) -> dict[str, str]:
    """The models of a request (:meth:`Sweep.to_json`) whose own code runs: by name, what consent was given to."""
    models = request.get("models", ())
    return {model["name"]: model["trust_remote_code"] for model in models if model.get("trust_remote_code")}


def quantize_label(quantize: spec.QuantizeSpec | None) -> str:
    """The sweep's word for a quantization, or for none."""
    return quantize.label if quantize else "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A request. Every axis is a tuple without duplicates; points are their product.

    Attributes:
        models: what to compile.
        quantize: None for the model as it is.
        precision: formats of weights.
        kv: formats of the KV cache.
        batch: sequences decoded together.
        ctx_len: KV positions of a sequence; for an encoder, the length of its input.
        prefill_len: tokens of one prefill call; None for the default, or the context length when that is shorter.
        cores: NSPs of a device.
        set_size: of an encoder, calls queued on each activation; None where throughput is not measured so.
        activations: of an encoder, copies of the program that run at once.
        flags: further axes: canonical values of flags of the compiler by name, see :mod:`farm.axes`.
        unlisted_flags: flags that the compiler is given unchecked, for all points.
        skip_illegal: leave out combinations that the compiler has no support for, instead of refusing the request.
        generation_len: tokens to generate at most; None fills the context.
        prompts: texts of each run.
        task: what the models are for; empty to go by their configs.
        num_devices: devices of one host that each program spans.
        num_partitions: parts of a pipeline that they form; with 1, all of them share everything.
        device_link: how they exchange data, see :class:`qeff_engine.spec.CompileSpec`.
        needs: what the places of the jobs must be.
    """

    models: tuple[SweepModel, ...]
    quantize: tuple[spec.QuantizeSpec | None, ...] = axis(
        None,
        title="quantize",
        parse=spec.QuantizeSpec.parse,
        about="checkpoint: none, METHOD[:BITS[:GROUP]] such as gptq:4:64 (none)",
        show=quantize_label,
    )
    precision: tuple[str, ...] = axis(
        "fp16",
        title="precision",
        parse=str,
        about=f"weights: {', '.join(spec.PRECISIONS)} (fp16)",
        spec_fields=("precision",),
        words=spec.PRECISIONS,
    )
    kv: tuple[str, ...] = axis(
        "fp16",
        title="KV",
        parse=str,
        about=f"KV cache: {', '.join(spec.KV_PRECISIONS)} (fp16)",
        spec_fields=("kv_precision",),
        words=spec.KV_PRECISIONS,
    )
    batch: tuple[int, ...] = axis(
        1,
        title="batch",
        parse=number,
        about="sequences decoded together (1)",
        spec_fields=("batch_size",),
        positive=True,
    )
    ctx_len: tuple[int, ...] = axis(
        DEFAULT_CTX_LEN,
        title="context",
        parse=number,
        about=f"context length, or an encoder's input length ({DEFAULT_CTX_LEN})",
        spec_fields=("ctx_len", "seq_len"),
        positive=True,
    )
    prefill_len: tuple[int | None, ...] = axis(
        None,
        title="prefill",
        parse=number,
        about=f"tokens of a prefill call ({DEFAULT_PREFILL_LEN}, at most the context)",
        spec_fields=("prefill_len",),
        positive=True,
    )
    cores: tuple[int, ...] = axis(
        16,
        title="cores",
        parse=number,
        about="cores (NSPs) of a device (16)",
        spec_fields=("num_cores",),
        positive=True,
    )
    set_size: tuple[int | None, ...] = axis(
        None,
        title="set size",
        parse=number,
        about=f"of an encoder: calls queued on each activation ({spec.DEFAULT_SET_SIZE} with --activations, else none)",
        run_field="set_size",
        positive=True,
    )
    activations: tuple[int | None, ...] = axis(
        None,
        title="activations",
        parse=number,
        about="of an encoder: copies of the program that run at once (1)",
        run_field="activations",
        positive=True,
    )
    flags: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    unlisted_flags: tuple[str, ...] = ()
    skip_illegal: bool = False
    generation_len: int | None = None
    prompts: tuple[str, ...] = (spec.DEFAULT_PROMPT,)
    task: str = ""
    num_devices: int = 1
    num_partitions: int = 1
    device_link: str = spec.DEVICE_LINKS[0]
    needs: Needs = ANYWHERE

    def __post_init__(self) -> None:
        require_distinct("--model", (model.identity for model in self.models))
        for name, facts in axes().items():
            facts.check(getattr(self, name))
        check_flags(self.flags)
        if self.num_devices < 1:
            raise Usage(f"--devices is {self.num_devices}, expected a whole number of at least 1.")
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
        return math.prod(len(values) for values in self.values().values())

    def values(self) -> dict[str, tuple[Any, ...]]:
        """The values of all axes by name, in the order in which points are made."""
        return {"model": self.models, **{name: getattr(self, name) for name in axes()}, **self.flags}

    def combinations(self) -> Iterator[dict[str, Any]]:
        """A value by axis, for every combination."""
        values = self.values()
        return (dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values()))

    def to_json(self) -> dict[str, Any]:
        """The request as JSON values, as it is kept with the submission."""
        return {
            "models": [{"name": model.name, **model.source.to_json()} for model in self.models],
            **{name: [facts.show(value) for value in getattr(self, name)] for name, facts in axes().items()},
            "flags": {name: list(values) for name, values in self.flags.items()},
            "unlisted_flags": list(self.unlisted_flags),
            "skip_illegal": self.skip_illegal,
            "generation_len": self.generation_len,
            "prompts": list(self.prompts),
            "task": self.task,
            "num_devices": self.num_devices,
            "num_partitions": self.num_partitions,
            "device_link": self.device_link,
            "needs": self.needs.to_json(),
        }


@functools.cache
def axes() -> Mapping[str, Axis]:
    """The axes of a sweep but models and flags, by name."""
    return axes_of(Sweep)
