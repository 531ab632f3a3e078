"""An exported decoder run in ONNX Runtime as the device runs it: prefill in chunks with padding, then decode.

Shape legend: B batch, S tokens of a call, C context, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from qeff_engine import checkpoint, exported, spec
from qeff_engine.stage import SNAPSHOT, StageContext, StageResult
from qeff_engine.stages import export, resolve


def make(source: Path, root: Path, *, task: str = "") -> tuple[Path, Path, StageResult]:
    """Snapshot, exported model and the export's result, by the real stages; the task is the checkpoint's own."""
    snapshot, onnx = root / "snapshot", root / "onnx"
    snapshot.mkdir(parents=True)
    onnx.mkdir()
    resolve.run(checkpoint.resolve_spec(str(source)), StageContext(out=snapshot, work=root))
    result = export.run(spec.ExportSpec(task=task), StageContext(out=onnx, work=root, inputs={SNAPSHOT: snapshot}))
    return snapshot, onnx, result


class Decoder:
    """A session on an exported decoder, and the state that the device would keep.

    Attributes:
        session: of ONNX Runtime.
        states: retained states by name; at first noise, since nothing may be read that was not written.
    """

    def __init__(self, onnx: Path, *, batch_size: int, ctx_len: int) -> None:
        described = exported.load(onnx)
        component = described.components[exported.DECODER]
        self.session = onnxruntime.InferenceSession(onnx / component.file)
        sizes = {"batch_size": batch_size, "ctx_len": ctx_len}
        noise = np.random.default_rng(0)
        self.states = {
            name: noise.normal(size=[sizes.get(axis, axis) for axis in component.inputs[name].shape]).astype("float32")
            for name in component.retained
        }

    def call(self, tokens_BS: np.ndarray, positions_BS: np.ndarray) -> np.ndarray:
        """Logits [B, V]; the states become their successors."""
        feeds = {"input_ids": tokens_BS, "position_ids": positions_BS, **self.states}
        names = ["logits", *(name + exported.RETAINED for name in self.states)]
        logits_B1V, *states = self.session.run(names, feeds)
        self.states = dict(zip(self.states, states, strict=True))
        return logits_B1V[:, 0]

    def prefill(self, prompts: Sequence[Sequence[int]], *, chunk: int) -> list[np.ndarray]:
        """Logits [V] behind each prompt."""
        logits: list[Any] = [None] * len(prompts)
        for start in range(0, max(map(len, prompts)), chunk):
            tokens_BS = np.zeros((len(prompts), chunk), dtype=np.int64)
            positions_BS = np.full((len(prompts), chunk), -1, dtype=np.int64)
            for row, prompt in enumerate(prompts):
                piece = prompt[start : start + chunk]
                tokens_BS[row, : len(piece)] = piece
                positions_BS[row, : len(piece)] = range(start, start + len(piece))
            for row, values_V in enumerate(self.call(tokens_BS, positions_BS)):
                if start < len(prompts[row]) <= start + chunk:
                    logits[row] = values_V
        return logits


def reference(model: Any, prompts: Sequence[Sequence[int]], *, num_tokens: int) -> tuple[list[list[int]], np.ndarray]:
    """Greedy tokens of each prompt, and the logits [B, num_tokens, V] behind them, without any cache."""
    tokens: list[list[int]] = [[] for _ in prompts]
    logits = []
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            rows = []
            for _ in range(num_tokens):
                ids = torch.tensor([[*prompt, *tokens[row]]])
                rows.append(model(input_ids=ids, use_cache=False).logits[0, -1].float().numpy())
                tokens[row].append(int(rows[-1].argmax()))
            logits.append(rows)
    return tokens, np.array(logits)


def greedy(
    decoder: Decoder, prompts: Sequence[Sequence[int]], *, num_tokens: int, chunk: int
) -> tuple[list[list[int]], np.ndarray]:
    """The same from an exported decoder."""
    rows = decoder.prefill(prompts, chunk=chunk)
    tokens = [[int(values.argmax())] for values in rows]
    logits = [[values] for values in rows]
    for step in range(num_tokens - 1):
        last_B1 = np.array([[row[-1]] for row in tokens])
        positions_B1 = np.array([[len(prompt) + step] for prompt in prompts])
        for row, values_V in enumerate(decoder.call(last_B1, positions_B1)):
            tokens[row].append(int(values_V.argmax()))
            logits[row].append(values_V)
    return tokens, np.array(logits)
