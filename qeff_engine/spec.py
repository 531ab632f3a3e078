"""The language of the pipeline: what each stage can be asked to do, as frozen values with a JSON form.

The engine owns these words; the farm stores them as JSON and computes action keys from them. Only the standard
library is imported here, so that the farm's command line stays light.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from qeff_engine.compiler_flags import asking
from qeff_engine.compiler_flags.values import Value
from qeff_engine.errors import InvalidInput, near_miss


class Stage(enum.StrEnum):
    """A kind of work. The order is the order of the pipeline."""

    RESOLVE = "resolve"
    QUANTIZE = "quantize"
    EXPORT = "export"
    COMPILE = "compile"
    RUN = "run"


# Raised whenever a stage's output changes for the same input and spec: old artifacts then no longer match.
STAGE_VERSIONS: Mapping[Stage, int] = dict.fromkeys(Stage, 1)

PRECISIONS = ("fp16", "mxfp6")
KV_PRECISIONS = ("fp16", "mxint8")
HW_VERSIONS = ("ai100", "ai200")
_HW_ALIASES = {"2.0": "ai100"}  # as older compilers call the chip
TASKS = ("text-generation", "feature-extraction", "image-text-to-text")
SOURCE_KINDS = ("directory", "gguf", "hub")
QUANTIZE_METHODS = ("rtn", "gptq", "awq")
COMMIT = re.compile(r"[0-9a-f]{40}")
CODE_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
DEFAULT_PROMPT = "The capital of France is"
DEFAULT_SET_SIZE = 10  # calls queued on an activation, as the SDK's own runner has it


# Fields that are left out of the JSON form at these values.
_LEFT_OUT: Mapping[str, Any] = {"compiler_options": {}, "unlisted_flags": [], "num_partitions": 1, "device_link": "p2p"}
DEVICE_LINKS = ("p2p", "host")
MOST_DEVICES = 16  # that a program can be sliced over
_QUEUES = ("set_size", "activations")


def digest(value: object) -> str:
    """SHA-256 (hexadecimal) of a JSON value in its canonical form: sorted keys, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _require_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidInput(f"{name} is '{value}', expected one of {', '.join(known)}.", advice=near_miss(value, known))


def _require_at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidInput(f"{name} is {value!r}, expected a whole number of at least {least}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSpec:
    """Base of the five specs; :meth:`validate` runs at construction, so no illegal spec exists."""

    STAGE: ClassVar[Stage]

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise :class:`InvalidInput` when a field is outside its range."""

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values; tuples become lists."""
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The spec of a JSON object; unknown keys are refused with the nearest known one."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in fields:
            if key not in known:
                raise InvalidInput(f"A {cls.STAGE} spec has no field '{key}'.", advice=near_miss(key, known))
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolveSpec(StageSpec):
    """Where a model comes from.

    Attributes:
        source: hub id, absolute directory or absolute path of a ``.gguf`` file.
        kind: one of :data:`SOURCE_KINDS`.
        revision: commit, branch or tag of a hub id.
        fingerprint: what the files looked like when they were asked for
            (:func:`qeff_engine.checkpoint.fingerprint`); a change of files is a change of spec.
        trust_remote_code: consent to running the code that comes with the model: the commit of a hub id, which is then
            its revision, or the digest of a directory's code. Empty when no code may run.
    """

    STAGE = Stage.RESOLVE
    source: str
    kind: str
    revision: str | None = None
    fingerprint: str = ""
    trust_remote_code: str = ""

    def validate(self) -> None:
        _require_choice("kind", self.kind, SOURCE_KINDS)
        if self.trust_remote_code:
            self._check_consent()

    def _check_consent(self) -> None:
        """Consent is to exact bytes: a commit or a digest, and nothing that can move."""
        if self.kind == "gguf":
            raise InvalidInput(
                f"trust_remote_code is given for {self.source}, which has no code.", advice="Leave it away."
            )
        form, name = (COMMIT, "the 40 digits of a commit") if self.kind == "hub" else (CODE_DIGEST, "sha256:DIGEST")
        if not isinstance(self.trust_remote_code, str) or not form.fullmatch(self.trust_remote_code):
            raise InvalidInput(
                f"trust_remote_code is '{self.trust_remote_code}' for {self.source}, expected {name}: consent is to "
                "exact code, and not to what a name stands for at another time."
            )
        if self.kind == "hub" and self.revision != self.trust_remote_code:
            raise InvalidInput(
                f"The revision of {self.source} is '{self.revision}', and trust_remote_code names the commit "
                f"{self.trust_remote_code}, expected the same.",
                advice="Leave the revision away: the commit is fetched that consent is given to.",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeSpec(StageSpec):
    """How weights are quantized.

    Attributes:
        method: ``rtn`` (round to nearest), ``gptq`` or ``awq``.
        bits: bits of a weight.
        group_size: input columns that share a scale; -1 for the whole row.
        num_samples: calibration sequences.
        seq_len: tokens of a calibration sequence.
        seed: seed of everything random.
    """

    STAGE = Stage.QUANTIZE
    method: str
    bits: int = 4
    group_size: int = 64
    num_samples: int = 16
    seq_len: int = 256
    seed: int = 0

    def validate(self) -> None:
        _require_choice("method", self.method, QUANTIZE_METHODS)
        if self.bits != 4:
            raise InvalidInput(f"bits is {self.bits}, expected 4.")
        if self.group_size != -1 and (self.group_size < 16 or self.group_size & (self.group_size - 1)):
            raise InvalidInput(
                f"group size is {self.group_size}, expected -1 or a power of two of at least 16 (32, 64, 128)."
            )
        _require_at_least("num_samples", self.num_samples, 1)
        _require_at_least("seq_len", self.seq_len, 8)

    @classmethod
    def parse(cls, text: str) -> QuantizeSpec | None:
        """The spec of a sweep's word: ``none``, ``gptq``, ``gptq:4`` or ``gptq:4:64`` (method:bits:group)."""
        if text == "none":
            return None
        match = re.fullmatch(r"([a-z]+)(?::(\d+))?(?::(-?\d+))?", text)
        if match is None:
            raise InvalidInput(f"quantize is '{text}', expected none or METHOD[:BITS[:GROUP]], such as gptq:4:64.")
        method, bits, group_size = match.groups()
        return cls(method=method, bits=int(bits or 4), group_size=int(group_size or 64))

    @property
    def label(self) -> str:
        """The sweep's word for this spec."""
        return f"{self.method}:{self.bits}:{self.group_size}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSpec(StageSpec):
    """What graph is made of a model. Nothing here depends on cores, batch or context length.

    Attributes:
        task: one of :data:`TASKS`; empty to choose by the model's config.
        pooling: for ``feature-extraction``: empty, ``mean``, ``max`` or ``cls``.
    """

    STAGE = Stage.EXPORT
    task: str = ""
    pooling: str = ""

    def validate(self) -> None:
        if self.task:
            _require_choice("task", self.task, TASKS)
        if self.pooling:
            _require_choice("pooling", self.pooling, ("mean", "max", "cls"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileSpec(StageSpec):
    """The static shapes and formats of a program.

    Attributes:
        num_cores: NSPs of one instance.
        num_devices: devices that the program spans.
        batch_size: sequences decoded together.
        prefill_len: tokens of one prefill call; longer prompts take several.
        ctx_len: KV positions kept per sequence.
        seq_len: input length of an encoder; ignored for decoders.
        precision: ``fp16``, or ``mxfp6`` for weights compressed by the compiler.
        kv_precision: ``fp16`` or ``mxint8``.
        hw_version: target of the compiler: ``ai100`` or ``ai200``.
        num_partitions: parts of a pipeline of devices; with 1, all devices compute their shares of everything.
        device_link: ``p2p`` when devices exchange data directly, ``host`` when through the host's memory.
        compiler_options: further flags of the compiler by name, from :mod:`qeff_engine.compiler_flags.table`; kept in
            their canonical form, so that neither order nor spelling makes another request.
        unlisted_flags: flags that the table does not have, as the compiler gets them; nothing checks them.
    """

    STAGE = Stage.COMPILE
    num_cores: int = 16
    num_devices: int = 1
    batch_size: int = 1
    prefill_len: int = 32
    ctx_len: int = 128
    seq_len: int = 32
    precision: str = "fp16"
    kv_precision: str = "fp16"
    hw_version: str = "ai100"
    num_partitions: int = 1
    device_link: str = "p2p"
    compiler_options: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    unlisted_flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "hw_version", _HW_ALIASES.get(self.hw_version, self.hw_version))
        object.__setattr__(self, "compiler_options", asking.canonical(self.compiler_options))
        object.__setattr__(self, "unlisted_flags", asking.unlisted(self.unlisted_flags))
        self.validate()

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values. Fields that came later are left out at their defaults, so that requests without them
        keep their digests."""
        fields = super().to_json()
        return {name: value for name, value in fields.items() if name not in _LEFT_OUT or value != _LEFT_OUT[name]}

    def validate(self) -> None:
        for name in ("num_cores", "num_devices", "batch_size", "prefill_len", "seq_len", "num_partitions"):
            _require_at_least(name, getattr(self, name), 1)
        _require_at_least("ctx_len", self.ctx_len, 2)
        if self.prefill_len > self.ctx_len:
            raise InvalidInput(
                f"prefill length is {self.prefill_len}, expected at most the context length {self.ctx_len}.",
                advice="Raise --ctx-len or lower --prefill-len.",
            )
        _require_choice("precision", self.precision, PRECISIONS)
        _require_choice("KV precision", self.kv_precision, KV_PRECISIONS)
        _require_choice("hardware version", self.hw_version, HW_VERSIONS)
        self._check_devices()
        asking.check(
            self.compiler_options,
            num_cores=self.num_cores,
            num_devices=self.num_devices,
            hw_version=self.hw_version,
        )

    def _check_devices(self) -> None:
        _require_choice("device link", self.device_link, DEVICE_LINKS)
        if self.num_devices > MOST_DEVICES:
            raise InvalidInput(f"The program spans {self.num_devices} devices, expected at most {MOST_DEVICES}.")
        if self.num_devices % self.num_partitions:
            raise InvalidInput(
                f"{self.num_devices} devices do not divide into {self.num_partitions} equal parts of a pipeline.",
                advice="Every part has the same number of devices: choose a divisor.",
            )
        if self.num_devices == 1 and self.device_link != "p2p":
            raise InvalidInput(f"device link is '{self.device_link}' for one device, expected several devices.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec(StageSpec):
    """What a program is asked, and how it is measured.

    Attributes:
        prompts: texts; as many as the batch are run together, the rest follow.
        generation_len: tokens to generate for each prompt at most; None fills the context.
        check_parity: compare the tokens with the original model's greedy tokens.
        set_size: of an encoder, calls that are queued on each activation while its throughput is measured; None for
            :data:`DEFAULT_SET_SIZE` if ``activations`` is given, else nothing is measured with queues.
        activations: copies of an encoder's program that run at once for that; None is one.
    """

    STAGE = Stage.RUN
    prompts: tuple[str, ...] = (DEFAULT_PROMPT,)
    generation_len: int | None = None
    check_parity: bool = True
    set_size: int | None = None
    activations: int | None = None

    def validate(self) -> None:
        if not self.prompts or not all(isinstance(prompt, str) and prompt for prompt in self.prompts):
            raise InvalidInput("prompts is empty or holds an empty text, expected at least one text.")
        for name in ("generation_len", "set_size", "activations"):
            if getattr(self, name) is not None:
                _require_at_least(name, getattr(self, name), 1)

    @property
    def queued(self) -> bool:
        """Whether an encoder's throughput with queued calls is asked for."""
        return self.set_size is not None or self.activations is not None

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values; queues that are not asked for stand nowhere, see :meth:`CompileSpec.to_json`."""
        fields = super().to_json()
        return {name: value for name, value in fields.items() if value is not None or name not in _QUEUES}


SPECS: Mapping[Stage, type[StageSpec]] = {
    spec.STAGE: spec for spec in (ResolveSpec, QuantizeSpec, ExportSpec, CompileSpec, RunSpec)
}


def from_json(stage: Stage | str, fields: Mapping[str, Any]) -> StageSpec:
    """The spec of a stage from its JSON object."""
    return SPECS[Stage(stage)].from_json(fields)
