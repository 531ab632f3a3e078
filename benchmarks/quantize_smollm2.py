"""SmolLM2-135M (real weights) quantized to 4 bits in groups of 64: perplexity and CPU of GPTQ and AWQ beside rounding.

Perplexities are of float32 models with the dequantized weights, on pages of Python's reference that are no part of the
calibration text. The weights that the package ships are 4-bit themselves, so absolute losses are not those of the
original model; the order of the methods is what counts.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.export_smollm2 import resolve

METHODS = ("rtn", "gptq", "awq")
GROUP_SIZE = 64
EVALUATION_TOPICS = ("import", "class", "comparisons", "execmodel", "typesmapping", "with", "strings", "assignment")
NUM_ROWS, ROW_TOKENS = 16, 512


def quantize(method: str, snapshot: str, out: str) -> None:
    """What a method's process does."""
    from qeff_engine import pipeline, spec, stage

    directory = Path(out)
    directory.mkdir()
    context = stage.StageContext(out=directory, work=directory, inputs={stage.SNAPSHOT: Path(snapshot)})
    pipeline.run_stage(spec.QuantizeSpec(method=method, group_size=GROUP_SIZE), context=context)


def perplexity(directory: Path) -> float:
    """Perplexity of a checkpoint, quantized or not."""
    import torch

    torch.set_num_threads(1)
    model = _float_model(directory)
    losses = []
    with torch.no_grad():
        for tokens in evaluation_rows(directory, num_rows=NUM_ROWS, row_tokens=ROW_TOKENS):
            row = torch.tensor([tokens])
            losses.append(float(model(input_ids=row, labels=row).loss))
    return math.exp(sum(losses) / len(losses))


def evaluation_rows(directory: Path, *, num_rows: int, row_tokens: int) -> list[list[int]]:
    """Tokens of pages of Python's reference, in rows that are spread evenly over them."""
    from pydoc_data.topics import topics

    import transformers

    text = "\n\n".join(topics[name] for name in EVALUATION_TOPICS)
    tokens = transformers.AutoTokenizer.from_pretrained(directory)(text, verbose=False)["input_ids"]
    step = (len(tokens) - row_tokens) // (num_rows - 1)
    return [tokens[start : start + row_tokens] for start in range(0, num_rows * step, step)]


def _float_model(directory: Path) -> Any:
    """The float32 model of a checkpoint; quantized weights are dequantized."""
    import torch
    import transformers

    from qeff_engine.quantizers import checkpoint_files, reading

    fields = json.loads((directory / "config.json").read_text())
    scheme = reading.scheme_of(fields)
    if scheme is None:
        return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    checkpoint = reading.QuantizedCheckpoint(directory, scheme=scheme)
    state = {f"{name}.weight": torch.from_numpy(checkpoint.integers(name).dequantize()) for name in checkpoint.modules}
    reader = checkpoint_files.CheckpointReader(directory)
    packed = tuple(name + "." for name in checkpoint.modules)
    state.update({name: reader.tensor(name).float() for name in reader.names if not name.startswith(packed)})
    del fields["quantization_config"]
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model.eval()


def measure_all(runs: int) -> list[measure.Figure]:
    """Rise of log-perplexity over float32 and CPU seconds; one run of each, since results do not vary."""
    with tempfile.TemporaryDirectory(prefix="bench-quantize-") as name:
        root = Path(name)
        snapshot = resolve(root / "snapshot")
        usages = {}
        for method in METHODS:
            command = [sys.executable, "-m", "benchmarks.quantize_smollm2", method, str(snapshot), str(root / method)]
            usages[method] = measure.run(command)
        # Only now, since a child's peak RSS begins at what its parent holds.
        base = math.log(perplexity(snapshot))
        rises = {method: math.log(perplexity(root / method)) - base for method in METHODS}
    figures = [measure.Figure(name="SmolLM2-135M, perplexity in float32", ours=math.exp(base), unit="")]
    for method in METHODS:
        figures += [
            measure.Figure(
                name=f"{method} g{GROUP_SIZE}, rise of log-perplexity beside rtn",
                ours=rises[method],
                peer=rises["rtn"],
                unit="nat",
                goal=None if method == "rtn" else 0.6,
                goal_is_ratio=True,
            ),
            measure.Figure(name=f"{method} g{GROUP_SIZE}, CPU of the process", ours=usages[method].cpu_s, unit="s"),
            measure.Figure(
                name=f"{method} g{GROUP_SIZE}, peak RSS", ours=usages[method].peak_rss_bytes / 1e6, unit="MB"
            ),
        ]
    return figures


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] in METHODS:
        quantize(*sys.argv[1:])
    else:
        measure.main(measure_all, runs=1)
