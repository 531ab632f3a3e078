"""Whether a program says what the original model says, without a decode loop.

The original runs once over prompt and generated tokens (teacher forcing). If each generated token is the most likely
one at its place, then by induction greedy decoding of the original gives the same tokens: the first must be equal, and
every later one follows the same tokens before it.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from qeff_engine.architectures import buffers, classes
from qeff_engine.embedding import max_abs_diff
from qeff_engine.errors import InvalidInput, Numerics, Unsupported
from qeff_engine.sdk.session import Array

_WEIGHT_PATTERNS = ("*.safetensors", "*.bin")
_MEMORY_FACTOR = 2  # 16-bit weights become float32
EXACT_GAP = 0.5  # rounding to float16 decides between tokens that are about equally likely
EXACT_ABS_DIFF = 0.2
_WRONG = (
    "Either the device computes wrong, and its own test or another device tells so, or a part of the model exceeds the "
    "range of float16."
)
_LOADING_ERRORS = (OSError, ValueError, ImportError, RuntimeError, InvalidInput, Unsupported)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """The outcome of a comparison.

    Attributes:
        tokens_equal: all generated tokens are the original's; None when not compared.
        num_tokens_equal: tokens before the first difference, over all prompts; None when not compared.
        max_abs_diff: of embeddings; None for tokens.
        note: why not compared, or where the first difference is.
        worst_gap: how far below the best the original rates a token that the program chose: the largest difference of
            their logits, in standard deviations of all logits at that place. None when not compared.
    """

    tokens_equal: bool | None = None
    num_tokens_equal: int | None = None
    max_abs_diff: float | None = None
    note: str = ""
    worst_gap: float | None = None

    def require_exact(self) -> None:
        """Refuse answers that no rounding to float16 explains, of a program that leaves out nothing else.

        Raises:
            Numerics: a token is far from what the original says, or an embedding is.
        """
        if self.worst_gap is not None and self.worst_gap > EXACT_GAP:
            raise Numerics(
                f"The program's tokens are wrong: the original rates one {self.worst_gap:.2g} standard deviations "
                f"below the best, expected at most {EXACT_GAP:g} without lossy formats. {self.note}",
                advice=_WRONG,
            )
        if self.max_abs_diff is not None and not self.max_abs_diff <= EXACT_ABS_DIFF:
            raise Numerics(
                f"The program's embeddings are wrong: they differ by {self.max_abs_diff:.2g} from the original's, "
                f"expected at most {EXACT_ABS_DIFF:g} without lossy formats.",
                advice=_WRONG,
            )


def obstacle(original: Path) -> str:
    """Why the original cannot be run here, or nothing when it can."""
    try:
        config = json.loads((original / "config.json").read_text())
    except (OSError, ValueError) as error:
        return f"The original has no readable config.json: {error}"
    if "quantization_config" in config:
        return "The original is itself quantized, so it has no exact greedy tokens to compare with."
    weight_bytes = sum(path.stat().st_size for pattern in _WEIGHT_PATTERNS for path in original.glob(pattern))
    available_bytes = psutil.virtual_memory().available
    if weight_bytes * _MEMORY_FACTOR > available_bytes:
        return (
            f"The original's weights need about {weight_bytes * _MEMORY_FACTOR / 2**30:.1f} GiB as float32, and "
            f"{available_bytes / 2**30:.1f} GiB are available."
        )
    return ""


def compare_tokens(
    original: Path,
    *,
    prompts: Sequence[Sequence[int]],
    generated: Sequence[Sequence[int]],
    pixel_values_NCHW: Array | None = None,
) -> Parity:
    """Compare generated token ids with the greedy tokens of the original in float32.

    Args:
        original: snapshot with the unquantized weights.
        prompts: token ids that were asked.
        generated: token ids that the program answered, by prompt.
        pixel_values_NCHW: the picture of each prompt, for a model that takes pictures.
    """
    note = obstacle(original)
    if note:
        return Parity(note=note)
    try:
        model = _load(
            original, auto_class="AutoModelForCausalLM" if pixel_values_NCHW is None else "AutoModelForImageTextToText"
        )
    except _LOADING_ERRORS as error:
        return Parity(note=f"The original could not be loaded: {error}")
    num_equal, differences, worst_gap = 0, [], 0.0
    for number, (prompt, tokens) in enumerate(zip(prompts, generated, strict=True)):
        equal, difference, gap = _agreeing(
            model,
            prompt=list(prompt),
            tokens=list(tokens),
            pixel_values_NCHW=None if pixel_values_NCHW is None else pixel_values_NCHW[number : number + 1],
        )
        num_equal, worst_gap = num_equal + equal, max(worst_gap, gap)
        if difference:
            differences.append(f"prompt {number}, {difference}")
    return Parity(
        tokens_equal=not differences,
        num_tokens_equal=num_equal,
        note=f"First difference: {differences[0]}." if differences else "",
        worst_gap=worst_gap,
    )


def compare_embeddings(
    original: Path, *, embeddings: Array, input_ids_NS: Array, attention_mask_NS: Array, pooling: str
) -> Parity:
    """Compare embeddings with those of the original encoder in float32.

    Args:
        original: snapshot.
        embeddings: [N, S, H], or [N, H] when pooled.
        input_ids_NS: token ids, padded on the right.
        attention_mask_NS: 1 for tokens, 0 for padding.
        pooling: empty, ``mean``, ``max`` or ``cls``.
    """
    import torch

    note = obstacle(original)
    if note:
        return Parity(note=note)
    try:
        model = _load(original, auto_class="AutoModel")
    except _LOADING_ERRORS as error:
        return Parity(note=f"The original could not be loaded: {error}")
    with torch.inference_mode():
        ids, mask = torch.from_numpy(input_ids_NS), torch.from_numpy(attention_mask_NS)
        hidden_NSH = model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    reference = _pooled(hidden_NSH, attention_mask_NS=attention_mask_NS, pooling=pooling)
    difference = max_abs_diff(embeddings, reference=reference, attention_mask_NS=attention_mask_NS)
    return Parity(max_abs_diff=difference)


def _pooled(hidden_NSH: Array, *, attention_mask_NS: Array, pooling: str) -> Array:
    """One vector per text from its tokens' states, or the states themselves."""
    mask_NS1 = attention_mask_NS[:, :, None]
    if pooling == "mean":
        mean_NH: Array = (hidden_NSH * mask_NS1).sum(axis=1) / mask_NS1.sum(axis=1)
        return mean_NH
    if pooling == "max":
        highest_NH: Array = np.where(mask_NS1 == 1, hidden_NSH, -np.inf).max(axis=1)
        return highest_NH
    return hidden_NSH[:, 0] if pooling == "cls" else hidden_NSH


def _agreeing(
    model: Any, *, prompt: list[int], tokens: list[int], pixel_values_NCHW: Array | None
) -> tuple[int, str, float]:
    """How many tokens agree before the first difference, what the difference is, and :attr:`Parity.worst_gap`."""
    import torch

    sequence = torch.tensor([prompt + tokens[:-1]])
    # Logits of the whole prompt may be larger than the model; newer models can leave them out.
    keep = {"logits_to_keep": len(tokens)} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    pixels = {} if pixel_values_NCHW is None else {"pixel_values": torch.from_numpy(pixel_values_NCHW)}
    with torch.inference_mode():
        logits_SV = model(input_ids=sequence, use_cache=False, **keep, **pixels).logits[0, -len(tokens) :]
    for place, (token, expected) in enumerate(zip(tokens, logits_SV.argmax(-1).tolist(), strict=True)):
        if token != expected:
            gap = float(logits_SV[place, expected] - logits_SV[place, token])
            difference = f"token {place}: {token} instead of {expected}, whose logit is {gap:.3g} higher"
            return place, difference, _worst_gap(logits_SV, tokens)
    return len(tokens), "", 0.0


def _worst_gap(logits_SV: Any, tokens: list[int]) -> float:
    chosen_S = logits_SV[range(len(tokens)), tokens]
    gaps_S = (logits_SV.max(-1).values - chosen_S) / logits_SV.std(-1)
    return float(gaps_S.max())


def _load(original: Path, *, auto_class: str) -> Any:
    """The original in float32 with the plainest attention, ready to run."""
    import torch
    import transformers

    classes.load_config(original)
    with _quiet_loading():
        model = getattr(transformers, auto_class).from_pretrained(
            original,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    for name, tensor in buffers.constructed(model).items():
        model.get_buffer(name).copy_(tensor)
    return model.eval()


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without progress bars, which would fill logs with carriage returns."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
