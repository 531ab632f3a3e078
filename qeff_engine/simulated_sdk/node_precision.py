"""Which nodes stay fp32 in a graph that is converted to fp16: the file of ``-node-precision-info``.

It is YAML with two lists of output names, ``FP32NodeInstanceNames`` and ``FP16NodeInstanceNames``; the second names
what is fp16 anyway. Both ways of writing a list are read: a name on each line, and names between brackets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from qeff_engine.simulated_sdk.refusal import input_refusal

_FP32, _FP16 = "FP32NodeInstanceNames", "FP16NodeInstanceNames"


def read_fp32_names(path: Path) -> frozenset[str]:
    """The names that a file lists for fp32.

    Raises:
        Refusal: it cannot be read, or has another key or line.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise input_refusal(f"Unable to open {path}. Err={getattr(error, 'strerror', error)}") from error
    names: dict[str, list[str]] = {_FP32: [], _FP16: []}
    key = ""
    in_brackets = False
    for number, line in enumerate(lines, start=1):
        text = line.split(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        header = re.fullmatch(r"(\w+):\s*(\[.*)?", text) if not in_brackets else None
        if header is not None and header[1] in names:
            key, text = header[1], header[2] or ""
        elif header is not None or not key or not (in_brackets or text.startswith("-")):
            raise input_refusal(
                f"{path}:{number}: cannot parse node precision info: '{text}', expected {_FP32} or {_FP16} and names."
            )
        in_brackets = (in_brackets or text.startswith("[")) and not text.endswith("]")
        names[key] += _names(text)
    if in_brackets:
        raise input_refusal(f"{path}: the list of {key} does not end, expected ']'.")
    return frozenset(names[_FP32])


def _names(text: str) -> Iterator[str]:
    """The names on a line: ``- name``, or some of a list between brackets."""
    parts = [text[1:]] if text.startswith("-") else text.strip("[]").split(",")
    for part in parts:
        name = part.strip().strip("\"'")
        if name:
            yield name
