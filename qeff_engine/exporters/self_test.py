"""An architecture that nobody has compared yet, tried small: the exported graph beside the model, in float32.

Shape legend: B batch, S tokens of a call, V vocabulary.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.errors import StrictDataclassError

from qeff_engine import exported, tasks
from qeff_engine.architectures import classes, shrinking
from qeff_engine.errors import EngineError, Unsupported
from qeff_engine.onnx_graph import binding
from qeff_engine.transforms import decoder, weightless

TOLERANCE = 1e-4  # of the largest logit; sums of some dozens of products in float32
_LENGTHS, _CHUNK, _CTX_LEN = (11, 6), 4, 24
_NUM_DECODED = 4
_SMALLEST_SCALE = 0.05
_MOST_PARAMETERS = 1 << 26  # a quarter of a GiB
_FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    StrictDataclassError,
)


def require_agreement(config: Any) -> None:
    """Export a small model of the architecture with random weights and compare logits of prefill and decode.

    Raises:
        Unsupported: the graph computes something else, or there is no small model to try.
    """
    name, unproven = config.model_type, f"The architecture '{config.model_type}' is not among the proven ones"
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        try:
            small = shrinking.shrunk(config)
            _require_small(small)
            model = _random_model(small)
            model.save_pretrained(root)
            small.save_pretrained(root)  # whole, where the model has the decoder's part of it alone
            tokens = _tokens(int(model.config.get_text_config(decoder=True).vocab_size))
            expected = [_logits(model, row) for row in tokens]
        except _FAILURES as error:
            raise Unsupported(f"{unproven}, and no small model of it can be tried: {error}") from error
        failures: tuple[type[BaseException], ...] = (EngineError, *_runtime_errors())
        try:
            found = list(_exported_logits(root, tokens=tokens))
        except failures as error:
            raise Unsupported(f"A small model of the architecture '{name}' cannot be exported: {error}") from error
    _compare(found, expected=expected, name=name)


def _runtime_errors() -> tuple[type[BaseException], ...]:
    """What ONNX Runtime says of a graph that it cannot load or run."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented, state.RuntimeException)


def _require_small(config: Any) -> None:
    """Refuse to try what did not become small, since its config has names for sizes that nobody knows."""
    model = classes.empty_model(config, task=tasks.TEXT_GENERATION)
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > _MOST_PARAMETERS:
        raise ValueError(f"its sizes are in fields of unknown names, and {count:,} parameters would be left")


def _random_model(config: Any) -> Any:
    import torch

    kind = classes.model_class(config, task=tasks.TEXT_GENERATION)
    torch.manual_seed(0)
    model = kind._from_config(classes.own_config(config, kind=kind), dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def _tokens(vocab_size: int) -> list[list[int]]:
    """Prompts and what follows them; the first numbers are left to padding and other tokens of meaning."""
    random = np.random.default_rng(0)
    return [random.integers(vocab_size // 4, vocab_size, length + _NUM_DECODED).tolist() for length in _LENGTHS]


def _logits(model: Any, row: list[int]) -> np.ndarray:
    """Logits [S, V] behind each token, without a cache."""
    import torch

    with torch.no_grad():
        logits: np.ndarray = model(input_ids=torch.tensor([row]), use_cache=False).logits[0].numpy()
    return logits


def _exported_logits(snapshot: Path, *, tokens: list[list[int]]) -> Iterator[tuple[int, int, np.ndarray]]:
    """Row, position and the logits [V] behind it, in chunks with padding and then token by token."""
    import onnxruntime

    model = weightless.load(snapshot, task=tasks.TEXT_GENERATION)
    graph = decoder.export_decoder(model)
    binding.bind(graph.model, sources=model.sources, snapshot=snapshot, out=snapshot, side_file="side.bin")
    binding.save(graph.model, snapshot / "model.onnx")
    session = onnxruntime.InferenceSession(snapshot / "model.onnx")
    states = _noise(graph.inputs)
    for positions in _calls():
        positions_BS = np.array(positions)
        tokens_BS = np.array([[row[place] for place in places] for row, places in zip(tokens, positions, strict=True)])
        names = ["logits", *(name + exported.RETAINED for name in states)]
        logits_B1V, *successors = session.run(names, {"input_ids": tokens_BS, "position_ids": positions_BS, **states})
        states = dict(zip(states, successors, strict=True))
        for row, places in enumerate(positions):
            if max(places) >= 0:
                yield row, max(places), logits_B1V[row, 0]


def _noise(inputs: dict[str, exported.Tensor]) -> dict[str, np.ndarray]:
    """States at the beginning: nothing of them may be read before it is written."""
    random = np.random.default_rng(1)
    sizes = {"batch_size": len(_LENGTHS), "ctx_len": _CTX_LEN}
    return {
        name: random.normal(size=[axis if isinstance(axis, int) else sizes[axis] for axis in tensor.shape]).astype(
            tensor.dtype
        )
        for name, tensor in inputs.items()
        if name not in decoder.TOKEN_INPUTS
    }


def _calls() -> Iterator[list[list[int]]]:
    """The positions [B, S] of each call."""
    for start in range(0, max(_LENGTHS), _CHUNK):
        yield [[place if place < length else -1 for place in range(start, start + _CHUNK)] for length in _LENGTHS]
    for step in range(_NUM_DECODED):
        yield [[length + step] for length in _LENGTHS]


def _compare(found: list[tuple[int, int, np.ndarray]], *, expected: list[np.ndarray], name: str) -> None:
    scale = max(float(np.abs(logits).max()) for logits in expected)
    if not np.isfinite(scale) or scale < _SMALLEST_SCALE:
        raise Unsupported(
            f"The architecture '{name}' is not among the proven ones, and a small model's logits are {scale:g}."
        )
    for row, place, logits_V in found:
        difference = float(np.abs(logits_V - expected[row][place]).max()) / scale
        if not difference <= TOLERANCE:  # not a number is no agreement
            raise Unsupported(
                f"A small model of the architecture '{name}' does not compute the same when it is exported: logits "
                f"behind token {place} differ by {difference:.2g} of their scale, expected at most {TOLERANCE:g}.",
                advice="This architecture needs more than the generic export does.",
            )
