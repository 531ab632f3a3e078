"""Greedy generation with a compiled decoder: chunked prefill, then decode, a batch of prompts at a time.

The program has fixed shapes. A prompt is cut into chunks of ``prefill_len`` tokens; what a chunk or a batch has too
much is padding, which is a token at position -1: it writes no KV and nobody attends to it.

Shape legend: B batch, S tokens of a call, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from qeff_engine.errors import InvalidInput, Numerics
from qeff_engine.sdk.session import Array

PADDING_POSITION = -1
_PADDING_TOKEN = 0  # any token will do: its position is what makes it padding

OnToken = Callable[[int, int], None]  # number of the prompt, token id


class DecoderProgram(Protocol):
    """What generation needs of :class:`qeff_engine.sdk.session.Session`."""

    def clock(self) -> float:
        """Seconds since some start."""

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str]) -> dict[str, Array]:
        """Run the program once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """The static shape that a decoder was compiled for.

    Attributes:
        batch_size: sequences decoded together.
        prefill_len: tokens of one prefill call.
        ctx_len: KV positions of a sequence.
    """

    batch_size: int
    prefill_len: int
    ctx_len: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timings:
    """How long generation took, in seconds of the program's clock.

    Attributes:
        token_times_s: per prompt, when each token was known, counted from the start of the prompt's batch.
        decode_tok_s: tokens of all sequences after their first, per second of decoding; None without decoding.
        total_tok_s: all tokens per second.
        total_s: from the first batch's start to the last token.
    """

    token_times_s: list[list[float]]
    decode_tok_s: float | None
    total_tok_s: float | None
    total_s: float

    @property
    def ttft_s(self) -> list[float]:
        """Per prompt, the time to its first token."""
        return [times[0] for times in self.token_times_s]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """Generated token ids by prompt, with the one that ended a sequence, and timings."""

    tokens: list[list[int]]
    timings: Timings


def generate(
    program: DecoderProgram,
    *,
    prompts: Sequence[Sequence[int]],
    shape: DecoderShape,
    eos_token_ids: Collection[int] = (),
    generation_len: int | None = None,
    on_token: OnToken | None = None,
) -> Generation:
    """Generate greedily for all prompts.

    A sequence ends with a token of ``eos_token_ids``, after ``generation_len`` tokens, or at the end of the context.
    Prompts beyond the batch size follow in further batches; missing ones are padding.

    Args:
        program: the decoder, active.
        prompts: token ids.
        shape: what it was compiled for.
        eos_token_ids: tokens that end a sequence.
        generation_len: tokens per prompt at most; None fills the context.
        on_token: told every token as soon as it is known.

    Raises:
        InvalidInput: a prompt is empty, or does not fit the context together with ``generation_len``.
        Numerics: logits are not finite.
    """
    rows = [
        _Row(number=number, prompt=list(prompt), limit=_limit(number, prompt, shape, generation_len))
        for number, prompt in enumerate(prompts)
    ]
    start_s = program.clock()
    decode_s = 0.0
    for first in range(0, len(rows), shape.batch_size):
        batch = _Batch(
            program, rows=rows[first : first + shape.batch_size], shape=shape, eos=eos_token_ids, on_token=on_token
        )
        batch.prefill()
        decode_start_s = program.clock()
        batch.decode()
        decode_s += program.clock() - decode_start_s
    total_s = program.clock() - start_s
    num_tokens = sum(len(row.tokens) for row in rows)
    timings = Timings(
        token_times_s=[row.times_s for row in rows],
        decode_tok_s=_rate(num_tokens - len(rows), decode_s),
        total_tok_s=_rate(num_tokens, total_s),
        total_s=total_s,
    )
    return Generation(tokens=[row.tokens for row in rows], timings=timings)


@dataclasses.dataclass(kw_only=True)
class _Row:
    """One prompt and what has been generated for it; at most ``limit`` tokens will be."""

    number: int
    prompt: list[int]
    limit: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    times_s: list[float] = dataclasses.field(default_factory=list)
    ended: bool = False


class _Batch:
    """Prompts that are prefilled and decoded together; rows beyond the prompts are padding."""

    def __init__(
        self,
        program: DecoderProgram,
        *,
        rows: list[_Row],
        shape: DecoderShape,
        eos: Collection[int],
        on_token: OnToken | None,
    ) -> None:
        self._program = program
        self._rows = rows
        self._shape = shape
        self._eos = frozenset(eos)
        self._on_token = on_token
        self._start_s = program.clock()

    def prefill(self) -> None:
        """Run all chunks; each row's first token comes from the chunk that holds its last prompt token."""
        width = self._shape.prefill_len
        for first in range(0, max(len(row.prompt) for row in self._rows), width):
            logits_BV = self._call([(row.prompt[first : first + width], first) for row in self._rows], width=width)
            for row, logits_V in zip(self._rows, logits_BV, strict=False):
                if first < len(row.prompt) <= first + width:
                    self._take(row, logits_V)

    def decode(self) -> None:
        """Feed every unfinished row its last token until all have ended."""
        while not all(row.ended for row in self._rows):
            chunks = [
                ([] if row.ended else row.tokens[-1:], len(row.prompt) + len(row.tokens) - 1) for row in self._rows
            ]
            logits_BV = self._call(chunks, width=1)
            for row, logits_V in zip(self._rows, logits_BV, strict=False):
                if not row.ended:
                    self._take(row, logits_V)

    def _call(self, chunks: list[tuple[list[int], int]], *, width: int) -> Array:
        """Logits [B, V] of a call; a chunk is a row's tokens and the position of the first."""
        input_ids_BS = np.full((self._shape.batch_size, width), _PADDING_TOKEN, dtype=np.int64)
        position_ids_BS = np.full_like(input_ids_BS, PADDING_POSITION)
        for index, (tokens, first) in enumerate(chunks):
            input_ids_BS[index, : len(tokens)] = tokens
            position_ids_BS[index, : len(tokens)] = np.arange(first, first + len(tokens))
        feeds = {"input_ids": input_ids_BS, "position_ids": position_ids_BS}
        logits = self._program.run(feeds, outputs=("logits",))["logits"]
        return logits.reshape(self._shape.batch_size, -1)

    def _take(self, row: _Row, logits_V: Array) -> None:
        """Add the most likely token to a row."""
        token = int(np.argmax(logits_V))
        # argmax finds a NaN first, so looking at its choice is enough.
        if not np.isfinite(logits_V[token]):
            raise Numerics(
                f"The logits of token {len(row.tokens)} of prompt {row.number} are not finite.",
                advice="Activations may exceed the range of float16.",
            )
        row.tokens.append(token)
        row.times_s.append(self._program.clock() - self._start_s)
        row.ended = token in self._eos or len(row.tokens) == row.limit
        if self._on_token is not None:
            self._on_token(row.number, token)


def _limit(number: int, prompt: Sequence[int], shape: DecoderShape, generation_len: int | None) -> int:
    """Tokens that may be generated for a prompt."""
    if not prompt:
        raise InvalidInput(f"Prompt {number} has no tokens, expected at least one.")
    wanted = 1 if generation_len is None else generation_len
    if len(prompt) + wanted > shape.ctx_len:
        raise InvalidInput(
            f"Prompt {number} has {len(prompt)} tokens and {wanted} are to be generated: together "
            f"{len(prompt) + wanted}, expected at most the context length {shape.ctx_len}.",
            advice="Compile with a longer context (--ctx-len), or ask for fewer tokens (--generation-len).",
        )
    return shape.ctx_len - len(prompt) if generation_len is None else generation_len


def _rate(count: int, duration_s: float) -> float | None:
    return count / duration_s if count and duration_s > 0 else None
