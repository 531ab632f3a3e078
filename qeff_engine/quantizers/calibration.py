"""Text to the token rows that a model is calibrated on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from qeff_engine.errors import InvalidInput

_DEFAULT_TEXT_PATH = Path(__file__).with_name("calibration_text.txt")
_HEADER_END = "=" * 80


def default_text() -> str:
    """The text that ships with the package, without the header that names its sources and licences."""
    _, _, text = _DEFAULT_TEXT_PATH.read_text(encoding="utf-8").partition(_HEADER_END)
    return text.strip()


def token_rows(tokenizer: Any, *, text: str, num_samples: int, seq_len: int, seed: int) -> torch.Tensor:
    """Token ids, int64 [num_samples, seq_len]: pieces of the text, in its order, without special tokens.

    Pieces do not overlap while the text is long enough; of more than are needed the seed picks some. When there are
    too few, pieces start at places that the seed picks, so they overlap.

    Raises:
        InvalidInput: the text has fewer tokens than one row.
    """
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(tokens) < seq_len:
        raise InvalidInput(
            f"The calibration text has {len(tokens)} tokens, expected at least one sequence of {seq_len}.",
            advice="Lower the sequence length.",
        )
    choice = random.Random(seed)  # noqa: S311
    num_pieces = len(tokens) // seq_len
    if num_pieces >= num_samples:
        starts = [piece * seq_len for piece in sorted(choice.sample(range(num_pieces), num_samples))]
    else:
        starts = sorted(choice.randrange(len(tokens) - seq_len + 1) for _ in range(num_samples))
    return torch.tensor([tokens[start : start + seq_len] for start in starts])
