"""The contract between a stage and whoever runs it: the farm's worker, the library or the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qeff_engine import events, spec

# Names of the inputs a stage may get. Each is the directory of a published artifact, read-only.
SNAPSHOT = "snapshot"  # a Hugging Face checkpoint: config, tokenizer, safetensors
ORIGINAL = "original"  # the snapshot before quantization, for parity
ONNX = "onnx"  # a graph with its external data, see stages/export.py
PROGRAM = "program"  # a compiled QPC, see stages/compile.py
IMAGES = "images"  # files of pictures; in the order of their names they belong to the prompts


# Consent to the code that a snapshot has, for inputs that are artifacts of our own stages: resolve takes code along
# only with its user's consent. In a directory from elsewhere, whoever filled it could claim that.
AS_RESOLVED = "as resolved"


# Inputs of a stage that it cannot do without, and those that it may get.
REQUIRED_INPUTS: Mapping[spec.Stage, tuple[str, ...]] = {
    spec.Stage.RESOLVE: (),
    spec.Stage.QUANTIZE: (SNAPSHOT,),
    spec.Stage.EXPORT: (SNAPSHOT,),
    spec.Stage.COMPILE: (ONNX,),
    spec.Stage.RUN: (PROGRAM, SNAPSHOT),
}
OPTIONAL_INPUTS: Mapping[spec.Stage, tuple[str, ...]] = {
    **dict.fromkeys(spec.Stage, ()),
    spec.Stage.RUN: (ORIGINAL, IMAGES),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceGrant:
    """Cores of one device that the stage may use.

    Attributes:
        qid: number of the device as the SDK counts it on this host.
        num_cores: cores held there.
    """

    qid: int
    num_cores: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageContext:
    """Where a stage reads and writes, and whom it tells.

    Attributes:
        out: empty directory of its own; what the stage leaves there becomes the artifact. Files that exist
            elsewhere unchanged are hard-linked (:func:`qeff_engine.files.link_or_copy`), never rewritten.
        work: scratch directory, deleted afterwards.
        inputs: artifact directories by input name.
        emit: receiver of events.
        sdk_root: directory of the Cloud AI SDK, real or simulated; None where no stage needs one.
        devices: cores held for this stage; only ``run`` has any.
        compiler_limit_s: seconds after which a run of the compiler is killed; None for no limit. Nothing of what it
            makes depends on this, so it is no part of a spec.
        on_token: told each generated token at once, by number of the prompt and token id; for streaming.
        trust_remote_code: which code of a snapshot may run: that of a digest (:mod:`qeff_engine.code_files`),
            :data:`AS_RESOLVED`, or none.
    """

    out: Path
    work: Path
    inputs: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    emit: events.Emit = events.discard
    sdk_root: Path | None = None
    devices: tuple[DeviceGrant, ...] = ()
    compiler_limit_s: float | None = None
    on_token: Callable[[int, int], None] | None = None
    trust_remote_code: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage measured. The artifact itself is what it left in ``StageContext.out``.

    Attributes:
        figures: JSON values by name; names end in their unit (``_s``, ``_bytes``, ``_tok_s``).
    """

    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
