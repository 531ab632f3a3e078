"""The simulated SDK's own cost: compiling SmolLM2-135M and a 7B shape, a token beside bare ONNX Runtime, ``qaic-util``.

A compile stands beside a process that converts the same checkpoint to fp16 and saves it, which is the least that any
compiler must do. No peer can take part in the 7B shape, whose weights are holes in files: it would have to load them.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure, simulated_smollm2

CTX_LEN = 128
ROUNDS, TOKENS_PER_ROUND = 9, 12
_LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}


def convert(source: str, target: str) -> None:
    """What the peer of a compile does: the checkpoint's tensors as fp16 in a new file."""
    import safetensors.torch

    tensors = safetensors.torch.load_file(source)
    safetensors.torch.save_file({name: tensor.half() for name, tensor in tensors.items()}, target)


def save_sparse(directory: str) -> None:
    """The checkpoint of the 7B shape, in a process of its own: a child's peak RSS begins at what its parent holds."""
    import transformers

    from benchmarks import sparse_checkpoint

    sparse_checkpoint.save(Path(directory), transformers.AutoConfig.for_model("llama", **_LLAMA_7B))


def _compile(bench: simulated_smollm2.Bench, out: Path, *, runs: int) -> measure.Usage:
    """The compiler as a process of its own, on the command line that the compile stage gives it."""
    program = bench.compile(out)
    graph = next(bench.onnx.glob("*.onnx"))
    found = []
    for number in range(runs):
        command = [str(bench.sdk_root / "exec" / "qaic-compile"), "-aic-hw", "-aic-num-cores=16", f"-m={graph}"]
        command += ["-retained-state", "-convert-to-fp16", f"-aic-binary-dir={out}-{number}"]
        command += [f"-network-specialization-config={program.parent / 'specializations.json'}"]
        found.append(measure.run([*command, f"-custom-IO-list-file={program.parent / 'custom_io.yaml'}"]))
    return measure.median(found)


def _compiles(bench: simulated_smollm2.Bench, root: Path, *, runs: int) -> list[measure.Figure]:
    ours = _compile(bench, root / "program", runs=runs)
    source = bench.snapshot / "model.safetensors"
    command = [sys.executable, "-m", "benchmarks.simulated_sdk", str(source), str(root / "fp16.safetensors")]
    peer = measure.median([measure.run(command) for _ in range(runs)])
    weights_mb = (root / "fp16.safetensors").stat().st_size / 1e6
    return [
        measure.Figure(
            name="simulated compile of SmolLM2-135M, CPU beside conversion to fp16",
            ours=ours.cpu_s,
            peer=peer.cpu_s,
            unit="s",
            goal=5.0,
        ),
        measure.Figure(
            name="its peak RSS beside conversion to fp16",
            ours=ours.peak_rss_bytes / 1e6,
            peer=peer.peak_rss_bytes / 1e6,
            unit="MB",
            goal=1.2 * weights_mb,
        ),
    ]


def _compile_7b(bench: simulated_smollm2.Bench, root: Path) -> list[measure.Figure]:
    snapshot, onnx = root / "sparse", root / "sparse-onnx"
    measure.run([sys.executable, "-m", "benchmarks.simulated_sdk", str(snapshot)])
    command = [sys.executable, "-m", "qeff_engine", "export", "--snapshot", str(snapshot), "--out", str(onnx)]
    measure.run(command)
    sparse = simulated_smollm2.Bench(snapshot=snapshot, onnx=onnx, sdk_root=bench.sdk_root)
    usage = _compile(sparse, root / "sparse-program", runs=1)
    program = root / "sparse-program" / "decoder" / "qpc" / "programqpc.bin"
    return [
        measure.Figure(
            name="simulated compile of a 7B shape in sparse shards, CPU", ours=usage.cpu_s, unit="s", goal=30.0
        ),
        measure.Figure(name="its peak RSS", ours=usage.peak_rss_bytes / 1e6, unit="MB", goal=1000.0),
        measure.Figure(name="its program", ours=program.stat().st_size / 1e9, unit="GB"),
    ]


def _per_token(bench: simulated_smollm2.Bench, program: Path) -> list[measure.Figure]:
    """CPU of a decoded token through driver and runtime, and of the program's graph in ONNX Runtime, in turns."""
    with bench.session(program) as session:

        def ours(position: int) -> None:
            feeds = {"input_ids": np.array([[5]]), "position_ids": np.array([[position]])}
            session.run(feeds, outputs=["logits"])

        bare = _bare(program)
        found: dict[str, list[float]] = {"ours": [], "bare": []}
        for _ in range(ROUNDS):
            for name, call in (("ours", ours), ("bare", bare)):
                start = time.process_time()
                for position in range(TOKENS_PER_ROUND):
                    call(position)
                found[name].append((time.process_time() - start) / TOKENS_PER_ROUND * 1e3)
    return [
        measure.Figure(
            name="CPU of a token of SmolLM2-135M beside bare ONNX Runtime",
            ours=statistics.median(found["ours"]),
            peer=statistics.median(found["bare"]),
            unit="ms",
            goal=1.1,
            goal_is_ratio=True,
        )
    ]


def _bare(program: Path) -> Callable[[int], None]:
    """A call of the program's graph in a session of ONNX Runtime, with all inputs and outputs bound once."""
    import onnxruntime

    from qeff_engine.simulated_sdk import execution

    graph, _ = execution.graph_of(program / "programqpc.bin")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = execution.num_threads()
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(program))
    session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    io = session.io_binding()
    sizes = {"batch_size": 1, "seq_len": 1, "ctx_len": CTX_LEN}
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for item in session.get_inputs():
        dtype = np.int64 if item.type == "tensor(int64)" else np.float32
        arrays[item.name] = np.zeros([sizes.get(size, size) for size in item.shape], dtype)
        io.bind_ortvalue_input(item.name, onnxruntime.OrtValue.ortvalue_from_numpy(arrays[item.name]))
    for item in session.get_outputs():
        io.bind_output(item.name)

    def call(position: int) -> None:
        arrays["position_ids"][...] = position
        session.run_with_iobinding(io)

    return call


def _util(bench: simulated_smollm2.Bench, *, runs: int) -> list[measure.Figure]:
    environ = {"PYTHONDONTWRITEBYTECODE": ""}  # as on a host, modules are compiled once
    used: dict[str, list[measure.Usage]] = {"ours": [], "bare": []}
    for _ in range(max(runs, 11)):
        command = [str(bench.sdk_root / "tools" / "qaic-util"), "-q"]
        used["ours"].append(measure.run(command, environ=environ))
        used["bare"].append(measure.run([sys.executable, "-c", "pass"], environ=environ))
    return [
        measure.Figure(
            name="qaic-util -q, CPU beside a bare interpreter",
            ours=measure.median(used["ours"]).cpu_s * 1e3,
            peer=measure.median(used["bare"]).cpu_s * 1e3,
            unit="ms",
            goal=50.0,
        )
    ]


def measure_all(runs: int) -> list[measure.Figure]:
    """CPU and peak RSS of compiles, CPU of a token and of the query tool."""
    os.environ.setdefault("QAIC_SIM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="bench-simulated-") as name:
        root = Path(name)
        bench = simulated_smollm2.make(root)
        figures = _compiles(bench, root, runs=runs) + _compile_7b(bench, root) + _util(bench, runs=runs)
        # Last, for the same reason.
        return figures + _per_token(bench, root / "program" / "decoder" / "qpc")


if __name__ == "__main__":
    paths = [argument for argument in sys.argv[1:] if argument.startswith("/")]
    if len(paths) == 2:
        convert(*paths)
    elif paths:
        save_sparse(*paths)
    else:
        measure.main(measure_all)
