"""The result file: a JSON line per comparison. The last of an architecture counts, while its key is current."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path

from tests.parity import configs

_ROOT = Path(__file__).parents[2]
_CODE = (
    *(f"qeff_engine/{part}" for part in ("architectures", "exporters", "onnx_graph", "quantizers", "transforms")),
    *(f"qeff_engine/{part}.py" for part in ("checkpoint", "exported", "patching", "stages/export", "stages/resolve")),
    "tests/parity/checks.py",
    "tests/exported_decoder.py",
    "tests/tiny.py",
)
_PACKAGES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")

PASS, UNSUPPORTED, WRONG, ERROR, IMPOSSIBLE = "pass", "unsupported", "wrong", "error", "impossible"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one architecture.

    Attributes:
        name: its ``model_type``.
        key: digest of the code, the packages and the tiny configuration that it was tried with.
        status: ``pass``; ``unsupported``, the export said so; ``wrong``, the exported decoder computes something else;
            ``error``, anything else went wrong; ``impossible``, there is nothing to compare with.
        reason: why it is not ``pass``.
        class_name: of the model in transformers.
        max_difference: largest difference of logits relative to the largest logit.
        export_cpu_s: CPU seconds of the export.
        num_layer_functions: functions that the layers are calls of; 0 when they are traced one by one.
    """

    name: str
    key: str
    status: str
    reason: str = ""
    class_name: str = ""
    max_difference: float = 0.0
    export_cpu_s: float = 0.0
    num_layer_functions: int = 0


def keys(names: Iterable[str]) -> dict[str, str]:
    """The current key of each architecture."""
    code = hashlib.sha256()
    for part in _CODE:
        path = _ROOT / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            code.update(str(file.relative_to(_ROOT)).encode() + b"\0" + file.read_bytes())
    for package in _PACKAGES:
        code.update(f"{package} {importlib.metadata.version(package)}\0".encode())
    code.update(repr(dict(configs.COMMON)).encode())
    return {name: hashlib.sha256(code.digest() + repr(configs.TABLE[name]).encode()).hexdigest()[:16] for name in names}


def load(path: Path) -> dict[str, Result]:
    """The last result of each architecture in a file; none when there is no file."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {result.name: result for result in (Result(**json.loads(line)) for line in lines)}


def append(path: Path, result: Result) -> None:
    """Add a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(json.dumps(dataclasses.asdict(result)) + "\n")
