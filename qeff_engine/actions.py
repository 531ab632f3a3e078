"""What work *is*: keys made of content, never of paths, attempts or times. Pure.

Two keys. The plan key is known when a submission is written: it names the request, inputs by their own plan keys. The
action key is known once the inputs are done: it names the work by the digests of what it reads, so the same checkpoint
by two paths is one action, and changed weights, another compiler or another torch are another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qeff_engine import spec

# Which versions can change a stage's output. A host reports more; what a stage does not use must not void its cache.
TOOLCHAIN_OF_STAGE: Mapping[spec.Stage, tuple[str, ...]] = {
    spec.Stage.RESOLVE: ("engine", "architectures", "transformers", "gguf"),
    spec.Stage.QUANTIZE: ("engine", "architectures", "torch", "transformers"),
    spec.Stage.EXPORT: ("engine", "architectures", "torch", "transformers", "onnx", "onnxscript"),
    spec.Stage.COMPILE: ("engine", "sdk_apps"),
    spec.Stage.RUN: ("engine", "architectures", "sdk_apps", "sdk_platform", "torch", "transformers"),
}

ABSENT = "absent"  # version of something that the host does not have


def plan_key(stage: spec.Stage, *, fields: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The digest of a request: stage, JSON form of its spec, and the plan key of each input by name."""
    return spec.digest({"stage": str(stage), "spec": dict(fields), "inputs": dict(inputs)})


def action_key(
    stage: spec.Stage | str,
    *,
    fields: Mapping[str, Any],
    input_digests: Mapping[str, str],
    toolchain: Mapping[str, str],
) -> tuple[str, dict[str, Any]]:
    """The digest of the work and the parts that it was made of, which explain later why two keys differ.

    Args:
        stage: kind of work.
        fields: JSON form of its spec.
        input_digests: artifact digest by input name.
        toolchain: versions by name, of the host that would do it; only those of
            :data:`TOOLCHAIN_OF_STAGE` count.
    """
    stage = spec.Stage(stage)
    parts = {
        "stage": str(stage),
        "stage_version": spec.STAGE_VERSIONS[stage],
        "spec": _content_of(stage, fields),
        "inputs": dict(input_digests),
        "toolchain": {name: toolchain.get(name, ABSENT) for name in TOOLCHAIN_OF_STAGE[stage]},
    }
    return spec.digest(parts), parts


def _content_of(stage: spec.Stage, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a spec that decides about the output.

    Files are known by their fingerprint wherever they lie; a hub id is known by itself, its revision and, when the
    revision may move, the fingerprint that says when it was asked.
    """
    if stage is spec.Stage.RESOLVE and fields["kind"] != "hub":
        return {name: value for name, value in fields.items() if name != "source"}
    return dict(fields)
