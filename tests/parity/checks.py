"""What an exported decoder is asked, beside the untouched model of transformers.

Shape legend: B batch, S tokens of a call, T generated tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from qeff_engine import patching, tasks
from qeff_engine.architectures import proven
from qeff_engine.stage import StageResult
from tests import exported_decoder, tiny
from tests.exported_decoder import Decoder
from tests.parity import configs

# Relative to the largest logit. Both sides compute in float32.
TOLERANCE = 1e-4
# Changing a token three places back must change the logits by more than any error that would pass.
SENSITIVITY = 20 * TOLERANCE

# Chunks of 8 are longer than the 6 tokens that graphs are traced with, and the context is longer than the traced 20.
# The second prompt ends in the first chunk, so that its row of the second chunk is padding alone. Prompts and the
# tokens behind them cross the windows of 6.
PROMPTS = [list(b"The capital of"), list(b"Once."), list(b"Let us see")]
CHUNK, CTX_LEN, NUM_TOKENS = 8, 32, 12
# What comes into the same slots behind them: longer and shorter in turn.
LATER_PROMPTS = [list(b"No"), list(b"Twenty years after"), list(b"Why")]
LATER_NUM_TOKENS = 2
# One chunk that is far longer than traced, beyond the 64 tokens that linear attentions work in; a far longer context.
LONG_PROMPTS = [[32 + (7 * place) % 90 for place in range(length)] for length in (71, 33)]
LONG_CHUNK, LONG_CTX_LEN, LONG_NUM_TOKENS = 71, 120, 4


class Different(AssertionError):
    """The exported decoder does not compute what the model computes; the message says where."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """What the comparison of one architecture measured.

    Attributes:
        max_difference: largest difference of logits, relative to the largest logit.
        logit_scale: the largest logit.
        export_cpu_s: CPU seconds of making the tiny model and exporting it.
        num_layer_functions: functions that the layers are calls of; 0 when they are traced one by one.
    """

    max_difference: float
    logit_scale: float
    export_cpu_s: float
    num_layer_functions: int


def compare(name: str, root: Path) -> Agreement:
    """Export the tiny model of an architecture into ``root`` and compare it.

    Raises:
        Different: it computes something else.
        EngineError: it is not exported.
    """
    started_s = _cpu_s()
    snapshot, onnx, result = exported_tiny(name, root)
    export_cpu_s = _cpu_s() - started_s
    untouched = original(snapshot)
    checks = (chunked_with_padding, one_long_chunk, token_by_token)
    differences, scales = zip(*(check(untouched, onnx) for check in checks), strict=True)
    padding_writes_nothing(onnx)
    axes_are_dynamic(onnx)
    return Agreement(
        max_difference=max(differences),
        logit_scale=max(scales),
        export_cpu_s=round(export_cpu_s, 2),
        num_layer_functions=result.figures["num_layer_functions"],
    )


def exported_tiny(name: str, root: Path) -> tuple[Path, Path, StageResult]:
    """Snapshot, exported model and the export's result of the tiny model of an architecture."""
    source = root / "source"
    configs.model(name).save_pretrained(source)
    configs.config(name).save_pretrained(source)  # with more around it than the decoder, where the table has that
    tiny.tokenizer().save_pretrained(source)
    # What is compared here need not be tried by the export before.
    with patching.attributes([(proven, "is_proven", lambda model_type: True)]):
        return exported_decoder.make(source, root, task=tasks.TEXT_GENERATION)


def original(snapshot: Path) -> Any:
    """The model of a snapshot as transformers has it, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        snapshot, attn_implementation="eager", dtype=torch.float32, local_files_only=True
    ).eval()


def equal_to_original(snapshot: Path, onnx: Path) -> None:
    """The first of the checks, for a checkpoint of one's own."""
    chunked_with_padding(original(snapshot), onnx)


def chunked_with_padding(untouched: Any, onnx: Path) -> tuple[float, float]:
    """Three rows of different lengths, in chunks that continue the state, and decoding past the window; then others."""
    _require_sensitive(untouched, PROMPTS[0])
    decoder = Decoder(onnx, batch_size=len(PROMPTS), ctx_len=CTX_LEN)
    first = _compared(untouched, decoder, PROMPTS, num_tokens=NUM_TOKENS, chunk=CHUNK)
    later = _compared(untouched, decoder, LATER_PROMPTS, num_tokens=LATER_NUM_TOKENS, chunk=CHUNK)
    return max(first[0], later[0]), first[1]


def one_long_chunk(untouched: Any, onnx: Path) -> tuple[float, float]:
    """Everything in one chunk of a length and with a context that nothing was traced with."""
    decoder = Decoder(onnx, batch_size=len(LONG_PROMPTS), ctx_len=LONG_CTX_LEN)
    return _compared(untouched, decoder, LONG_PROMPTS, num_tokens=LONG_NUM_TOKENS, chunk=LONG_CHUNK)


def token_by_token(untouched: Any, onnx: Path) -> tuple[float, float]:
    """One row, one token a call, in a context that is full at the end."""
    prompt = PROMPTS[2]
    decoder = Decoder(onnx, batch_size=1, ctx_len=len(prompt) + 2)
    return _compared(untouched, decoder, [prompt], num_tokens=3, chunk=1)


def padding_writes_nothing(onnx: Path) -> None:
    """A row of padding keeps its states to the bit; a row with a token does not."""
    decoder = Decoder(onnx, batch_size=2, ctx_len=CTX_LEN)
    decoder.prefill([PROMPTS[0], PROMPTS[2]], chunk=CHUNK)
    before = dict(decoder.states)
    tokens_BS = np.array([[5, 6, 7], [5, 6, 7]])
    start = len(PROMPTS[0])
    decoder.call(tokens_BS, np.array([[start, start + 1, -1], [-1, -1, -1]]))
    for name, state in decoder.states.items():
        if (state[1] != before[name][1]).any():
            raise Different(f"padding changes the state {name}")
        if (state[0] == before[name][0]).all():
            raise Different(f"tokens do not change the state {name}")


def axes_are_dynamic(onnx: Path) -> None:
    """Batch, sequence and context are symbols of inputs and outputs."""
    decoder = Decoder(onnx, batch_size=1, ctx_len=8)
    shapes = {item.name: item.shape for item in (*decoder.session.get_inputs(), *decoder.session.get_outputs())}
    for name in ("input_ids", "position_ids"):
        if shapes[name] != ["batch_size", "seq_len"]:
            raise Different(f"{name} has the shape {shapes[name]}, expected dynamic axes")
    for name, shape in shapes.items():
        if shape[0] != "batch_size":
            raise Different(f"{name} has the shape {shape}, expected a dynamic batch")
        if name.startswith(("past_key.", "past_value.")) and "ctx_len" not in shape:
            raise Different(f"{name} has the shape {shape}, expected a dynamic context")
    if shapes["logits"][1] != 1:
        raise Different(f"logits have the shape {shapes['logits']}, expected one row per sequence")


def _compared(
    untouched: Any, decoder: Decoder, prompts: Sequence[Sequence[int]], *, num_tokens: int, chunk: int
) -> tuple[float, float]:
    """Largest difference relative to the largest logit, and that logit."""
    expected, expected_BTV = exported_decoder.reference(untouched, prompts, num_tokens=num_tokens)
    tokens, logits_BTV = exported_decoder.greedy(decoder, prompts, num_tokens=num_tokens, chunk=chunk)
    scale = float(np.abs(expected_BTV).max())
    if not np.isfinite(expected_BTV).all() or scale < 0.1:
        raise Different(f"the model's own logits are of size {scale:.3g}, with which anything would agree")
    difference = np.abs(logits_BTV - expected_BTV).max(axis=2) / scale
    # From the first token that differs on, the two continue different texts.
    wrong = [
        (row, step) for step in range(num_tokens) for row in range(len(prompts)) if difference[row, step] > TOLERANCE
    ]
    if wrong or not np.isfinite(logits_BTV).all():
        row, step = wrong[0] if wrong else (0, 0)
        raise Different(
            f"logits differ by {difference[row, step]:.2g} of their scale behind token {step} of row {row} "
            f"(chunks of {chunk}, prompts of {', '.join(str(len(prompt)) for prompt in prompts)})"
        )
    if tokens != expected:
        raise Different(f"greedy tokens differ: {tokens}, expected {expected}")
    return float(difference.max()), scale


def _require_sensitive(untouched: Any, prompt: Sequence[int]) -> None:
    """The logits depend on what stands three places back: a model that does not look back proves nothing."""
    changed = [*prompt[:-3], prompt[-3] + 1, *prompt[-2:]]
    with torch.no_grad():
        rows = [untouched(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1] for ids in (prompt, changed)]
    change = float((rows[0] - rows[1]).abs().max() / rows[0].abs().max())
    if change < SENSITIVITY:
        raise Different(f"the model's own logits change by {change:.2g} only with a token three places back")


def _cpu_s() -> float:
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime
