"""Texts to embeddings with a compiled encoder, a batch at a time.

Shape legend: N texts, B batch, S padded length, H hidden size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from qeff_engine.errors import InvalidInput, Numerics
from qeff_engine.sdk.session import Array


class EncoderProgram(Protocol):
    """What embedding needs of :class:`qeff_engine.sdk.session.Session`."""

    def clock(self) -> float:
        """Seconds since some start."""

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str]) -> dict[str, Array]:
        """Run the program once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Embeddings of texts and how long they took, in seconds of the program's clock.

    Attributes:
        values: [N, S, H], or [N, H] of a program that pools.
        latency_s: mean time of a call.
        embeddings_s: texts per second.
        total_s: all calls.
    """

    values: Array
    latency_s: float
    embeddings_s: float | None
    total_s: float


def padded(texts: Sequence[Sequence[int]], *, seq_len: int) -> tuple[Array, Array]:
    """Token ids and attention mask [N, S] of texts, padded on the right.

    Raises:
        InvalidInput: a text is empty or longer than ``seq_len``.
    """
    input_ids_NS = np.zeros((len(texts), seq_len), dtype=np.int64)
    attention_mask_NS = np.zeros_like(input_ids_NS)
    for number, tokens in enumerate(texts):
        if not 0 < len(tokens) <= seq_len:
            raise InvalidInput(
                f"Text {number} has {len(tokens)} tokens, expected 1 to {seq_len}.",
                advice="Compile for a longer sequence, or cut the text.",
            )
        input_ids_NS[number, : len(tokens)] = tokens
        attention_mask_NS[number, : len(tokens)] = 1
    return input_ids_NS, attention_mask_NS


def embed(
    program: EncoderProgram, *, input_ids_NS: Array, attention_mask_NS: Array, batch_size: int, output: str
) -> Embeddings:
    """Run all texts; rows that a last batch has too much are padding.

    Args:
        program: the encoder, active.
        input_ids_NS: token ids, from :func:`padded`.
        attention_mask_NS: 1 for tokens, 0 for padding.
        batch_size: rows of a call.
        output: name of the program's output.

    Raises:
        Numerics: an embedding is not finite.
    """
    values: list[Array] = []
    start_s = program.clock()
    for feeds in batches(input_ids_NS, attention_mask_NS, batch_size=batch_size):
        values.append(program.run(feeds, outputs=(output,))[output])
    total_s = program.clock() - start_s
    num_texts = len(input_ids_NS)
    found = np.concatenate(values)[:num_texts]
    if not np.isfinite(found).all():
        raise Numerics("Embeddings are not finite.", advice="Activations may exceed the range of float16.")
    return Embeddings(
        values=found,
        latency_s=total_s / len(values),
        embeddings_s=num_texts / total_s if total_s > 0 else None,
        total_s=total_s,
    )


def max_abs_diff(ours: Array, *, reference: Array, attention_mask_NS: Array) -> float:
    """The largest difference of two sets of embeddings; states of padding do not count."""
    difference = np.abs(ours.astype(np.float32) - reference)
    if difference.ndim == 3:
        difference = difference[attention_mask_NS == 1]
    return float(difference.max())


def batches(input_ids_NS: Array, attention_mask_NS: Array, *, batch_size: int) -> Iterator[dict[str, Array]]:
    """The inputs of calls that embed all texts; rows that the last one has too much are padding."""
    missing = -len(input_ids_NS) % batch_size
    ids_NS, mask_NS = (np.pad(array, ((0, missing), (0, 0))) for array in (input_ids_NS, attention_mask_NS))
    for first in range(0, len(ids_NS), batch_size):
        rows = slice(first, first + batch_size)
        yield {"input_ids": ids_NS[rows], "attention_mask": mask_NS[rows]}
