"""Export of large shapes, whose weights are holes in files, and of one shape in several depths.

No other exporter can take part in the large ones: it would have to load the weights. Beside the depths stands plain
``torch.onnx.export`` with dynamo, up to the depth that ends within minutes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import export_smollm2, measure, sparse_checkpoint

DEPTHS = (2, 8, 30, 80)
DEPTHS_OF_PEER = (2, 8)
_LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
_QWEN3_30B = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
_SMALL_LLAMA = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
# What, its config, and the goals: CPU seconds, MB of peak RSS, MB written.
LARGE = (
    ("Llama 70B shape, 80 layers", "llama", _LLAMA_70B, (30.0, 700.0, 10.0)),
    ("Qwen3 30B shape, 128 experts", "qwen3_moe", _QWEN3_30B, (60.0, None, None)),
)


def _config(model_type: str, fields: dict[str, Any]) -> Any:
    import transformers

    return transformers.AutoConfig.for_model(model_type, **fields)


def _export(snapshot: Path, out: Path) -> measure.Usage:
    command = [sys.executable, "-m", "qeff_engine", "export", "--snapshot", str(snapshot), "--out", str(out)]
    return measure.run(command)


def _large(root: Path, runs: int) -> list[measure.Figure]:
    figures = []
    for name, model_type, fields, goals in LARGE:
        snapshot = sparse_checkpoint.save(root / model_type, _config(model_type, fields))
        found, written = [], 0
        for number in range(runs):
            out = root / f"{model_type}-{number}"
            found.append(_export(snapshot, out))
            written = export_smollm2.own_bytes(out)
        usage = measure.median(found)
        values = (usage.cpu_s, usage.peak_rss_bytes / 1e6, written / 1e6)
        words = (("CPU", "s"), ("peak RSS", "MB"), ("written", "MB"))
        figures += [
            measure.Figure(name=f"export {name}, {word}", ours=value, unit=unit, goal=goal)
            for (word, unit), value, goal in zip(words, values, goals, strict=True)
        ]
    return figures


def _depths(root: Path, runs: int) -> list[measure.Figure]:
    cpu_s: dict[int, float] = {}
    peer_cpu_s: dict[int, float] = {}
    for depth in DEPTHS:
        config = _config("llama", {**_SMALL_LLAMA, "num_hidden_layers": depth})
        snapshot = sparse_checkpoint.save(root / f"depth-{depth}", config)
        cpu_s[depth] = measure.median([_export(snapshot, root / f"{depth}-{run}") for run in range(runs)]).cpu_s
        if depth in DEPTHS_OF_PEER:
            out = root / f"peer-{depth}"
            out.mkdir()
            command = [sys.executable, "-m", "benchmarks.export_smollm2", "dynamo", str(snapshot), str(out)]
            peer_cpu_s[depth] = measure.run(command).cpu_s
    figures = [
        measure.Figure(
            name=f"export of {depth} layers, CPU" + (" beside dynamo" if depth in peer_cpu_s else ""),
            ours=value,
            peer=peer_cpu_s.get(depth),
            unit="s",
        )
        for depth, value in cpu_s.items()
    ]
    first, last = DEPTHS[0], DEPTHS[-1]
    ratio = measure.Figure(
        name=f"export of {last} layers beside {first}, CPU",
        ours=cpu_s[last],
        peer=cpu_s[first],
        unit="s",
        goal=2.0,
        goal_is_ratio=True,
    )
    return [*figures, ratio]


def measure_all(runs: int) -> list[measure.Figure]:
    """CPU seconds of whole processes, with imports; peak RSS and bytes written of the large ones."""
    with tempfile.TemporaryDirectory(prefix="bench-shapes-") as name:
        return [*_large(Path(name), runs), *_depths(Path(name), runs)]


if __name__ == "__main__":
    measure.main(measure_all)
