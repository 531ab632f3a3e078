"""What ``generate`` returns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TEXT_WIDTH = 72


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedTexts:
    """Generated texts and how fast they came. Printed, it is a short table.

    Attributes:
        prompts: what was asked.
        generated_texts: by prompt, without the prompt and without special tokens.
        generated_ids: token ids by prompt, with the one that ended the sequence.
        prefill_time: seconds to the first token, mean over the prompts.
        decode_perf: tokens of all sequences after their first, per second of decoding; None without decoding.
        total_perf: all tokens per second; None when no time passed.
        total_time: seconds from the first prompt's start to the last token.
        simulated: the device was simulated, and so are the times.
    """

    prompts: list[str]
    generated_texts: list[str]
    generated_ids: list[list[int]]
    prefill_time: float
    decode_perf: float | None
    total_perf: float | None
    total_time: float
    simulated: bool

    @classmethod
    def of_measurement(cls, measurement: dict[str, Any]) -> GeneratedTexts:
        """From ``measurement.json`` of the run stage."""
        metrics = measurement["metrics"]
        return cls(
            prompts=measurement["prompts"],
            generated_texts=measurement["texts"],
            generated_ids=measurement["tokens"],
            prefill_time=metrics["ttft_s"],
            decode_perf=metrics["decode_tok_s"],
            total_perf=metrics["total_tok_s"],
            total_time=metrics["total_s"],
            simulated=measurement["simulated"],
        )

    def __str__(self) -> str:
        lines = [
            f"{_cut(prompt)!r} -> {_cut(text)!r}"
            for prompt, text in zip(self.prompts, self.generated_texts, strict=True)
        ]
        lines += [
            _row("prefill (TTFT)", self.prefill_time, unit="s"),
            _row("decode", self.decode_perf, unit="tok/s"),
            _row("total", self.total_perf, unit="tok/s"),
            _row("total time", self.total_time, unit="s"),
        ]
        return "\n".join([*lines, "times are simulated"] if self.simulated else lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedded:
    """Embeddings and how fast they came. Printed, it is a short table.

    Attributes:
        prompts: the texts.
        embeddings: float [texts, hidden] of a pooling model, else [texts, length, hidden].
        latency: seconds of a call, mean.
        throughput: texts per second; None when no time passed.
        total_time: seconds of all calls.
        simulated: the device was simulated, and so are the times.
    """

    prompts: list[str]
    embeddings: NDArray[np.floating]
    latency: float
    throughput: float | None
    total_time: float
    simulated: bool

    @classmethod
    def of_measurement(cls, measurement: dict[str, Any], directory: Path) -> Embedded:
        """From ``measurement.json`` of the run stage and the file of embeddings beside it."""
        import numpy as np

        metrics = measurement["metrics"]
        return cls(
            prompts=measurement["prompts"],
            embeddings=np.load(directory / "embeddings.npy"),
            latency=metrics["latency_s"],
            throughput=metrics["embeddings_s"],
            total_time=metrics["total_s"],
            simulated=measurement["simulated"],
        )

    def __str__(self) -> str:
        lines = [
            f"{len(self.prompts)} text(s) -> {' x '.join(map(str, self.embeddings.shape))}",
            _row("latency", self.latency, unit="s"),
            _row("throughput", self.throughput, unit="texts/s"),
            _row("total time", self.total_time, unit="s"),
        ]
        return "\n".join([*lines, "times are simulated"] if self.simulated else lines)


def _row(name: str, value: float | None, *, unit: str) -> str:
    return f"{name:<15} {'-' if value is None else format(value, '.4g'):>10} {unit}"


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_WIDTH else text[: _TEXT_WIDTH - 3] + "..."
