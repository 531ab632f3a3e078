"""``docs/architectures.md``: a row per architecture. Those without a result keep the row that the page has.

The export takes those that pass as proven, and tries others small before it exports them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from qeff_engine.architectures import proven
from tests.parity import checks, configs
from tests.parity.results import IMPOSSIBLE, PASS, UNSUPPORTED, Result

FAULTLESS = frozenset({PASS, UNSUPPORTED, IMPOSSIBLE})
PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"

_TEXT = """# Architectures

Every entry of transformers' mapping of causal language models as a tiny model with random weights: exported, run in
ONNX Runtime, and compared with the untouched model. Written by `make parity` from its results; do not edit.

{counts}

`pass` means: three sequences of different lengths with padding, prefill in chunks that continue the state, one chunk
of {long} tokens, one token a call, decoding past the window, and contexts that nothing was traced with give the same
greedy tokens and logits within {tolerance:g} of the largest logit; padding changes no state; batch, sequence and
context are dynamic. `unsupported` means that the export refuses it with the reason. `wrong` and `error` are faults.
`impossible` means that there is nothing to compare with. The difference is relative to the largest logit; functions are
the distinct layers that a graph has as ONNX functions, `-` when its layers are traced one by one.

An architecture that does not pass here, or is not here, is tried at export: a small model with its kinds of layers and
random weights is exported and compared with the model, and what does not agree is refused as unsupported.

| architecture | class | result | largest difference | export, CPU s | functions | reason |
|---|---|---|---|---|---|---|
{rows}
"""


def write(results: Mapping[str, Result], *, page: Path = PAGE, names: Path = proven.FILE) -> Counter[str]:
    """Write the page and the list of proven architectures, and return how many rows have each result."""
    rows = _rows_of(page)
    rows.update({name: _row(result) for name, result in results.items()})
    kept = {name: rows[name] for name in sorted(configs.listed()) if name in rows}
    statuses = {name: _cells(row)[2] for name, row in kept.items()}
    counts = Counter(statuses.values())
    names.write_text(json.dumps([name for name, status in statuses.items() if status == PASS], indent=0) + "\n")
    page.write_text(
        _TEXT.format(
            counts=_counts(counts),
            long=checks.LONG_CHUNK,
            tolerance=checks.TOLERANCE,
            rows="\n".join(kept.values()),
        )
    )
    return counts


def _counts(counts: Counter[str]) -> str:
    comparable = counts.total() - counts[IMPOSSIBLE]
    share = 100 * counts[PASS] / comparable if comparable else 0
    parts = ", ".join(f"{number} {name}" for name, number in counts.most_common())
    return f"{counts.total()} architectures: {parts}. Of the {comparable} that can be compared, {share:.1f} % pass."


def _row(result: Result) -> str:
    passed = result.status == PASS
    cells = (
        result.name,
        result.class_name,
        result.status,
        f"{result.max_difference:.1e}" if passed else "",
        f"{result.export_cpu_s:.1f}" if passed else "",
        (str(result.num_layer_functions or "-")) if passed else "",
        result.reason.replace("|", "/"),
    )
    return f"| {' | '.join(cells)} |"


def _rows_of(page: Path) -> dict[str, str]:
    lines = page.read_text().splitlines() if page.is_file() else []
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| architecture |")]
    return {_cells(row)[0]: row for row in rows}


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]
