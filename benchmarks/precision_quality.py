"""SmolLM2-135M (real weights) as simulated programs of every precision: perplexity, tokens and KL beside float32.

A program is fed a fixed text token by token, as it would decode it; beside each of its next-token distributions stands
that of the float32 model in transformers. The text is pages of Python's reference. Arithmetic is simulated: what every
operator computes is rounded to fp16, products are summed in float32.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import measure, simulated_smollm2
from benchmarks.quantize_smollm2 import evaluation_rows

NUM_ROWS, ROW_TOKENS = 2, 512
# Weights and KV cache.
PRECISIONS = (("fp16", "fp16"), ("fp16", "mxint8"), ("mxfp6", "fp16"), ("mxfp6", "mxint8"))

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """What distributions are worth beside those of the float32 model.

    Attributes:
        perplexity: of the text.
        agreement: share of positions at which the most likely token is the same.
        kl: mean Kullback-Leibler divergence from the float32 distribution, in nat.
    """

    perplexity: float
    agreement: float
    kl: float


def quality(logits_NV: Array, *, reference_NV: Array, targets_N: Array) -> Quality:
    """Compare next-token logits with those of a reference.

    Args:
        logits_NV: at N positions, over the vocabulary.
        reference_NV: the reference's at the same positions.
        targets_N: the tokens that follow.
    """
    ours_NV, theirs_NV = _log_probabilities(logits_NV), _log_probabilities(reference_NV)
    losses_N = -ours_NV[np.arange(len(targets_N)), targets_N]
    return Quality(
        perplexity=math.exp(losses_N.mean()),
        agreement=float((ours_NV.argmax(axis=-1) == theirs_NV.argmax(axis=-1)).mean()),
        kl=float((np.exp(theirs_NV) * (theirs_NV - ours_NV)).sum(axis=-1).mean()),
    )


def _log_probabilities(logits_NV: Array) -> Array:
    shifted_NV = logits_NV - logits_NV.max(axis=-1, keepdims=True)
    return np.asarray(shifted_NV - np.log(np.exp(shifted_NV).sum(axis=-1, keepdims=True)))


def reference_logits(snapshot: Path, *, rows: list[list[int]]) -> Array:
    """Next-token logits [N, V] of the float32 model at all positions of all rows but each row's last."""
    import torch
    import transformers

    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(snapshot, dtype=torch.float32).eval()
    with torch.no_grad():
        return np.concatenate([model(input_ids=torch.tensor([row])).logits[0, :-1].numpy() for row in rows])


def program_logits(bench: simulated_smollm2.Bench, *, program: Path, rows: list[list[int]]) -> Array:
    """The same of a program, decoded token by token; a row overwrites the cache of the one before."""
    with bench.session(program) as session:

        def steps() -> Iterator[Array]:
            for row in rows:
                for position, token in enumerate(row[:-1]):
                    feeds = {"input_ids": np.array([[token]]), "position_ids": np.array([[position]])}
                    yield session.run(feeds, outputs=["logits"])["logits"].reshape(-1)

        return np.stack(list(steps()))


def measure_all(runs: int) -> list[measure.Figure]:
    """Perplexity, token agreement and KL of every precision; one run of each, since results do not vary."""
    del runs
    figures: list[measure.Figure] = []
    with tempfile.TemporaryDirectory(prefix="bench-precision-") as name:
        root = Path(name)
        bench = simulated_smollm2.make(root)
        programs = {}
        for weights, cache in PRECISIONS:
            flags = ["--precision", weights, "--kv-precision", cache, "--ctx-len", str(ROW_TOKENS)]
            programs[weights, cache] = bench.compile(root / f"{weights}-{cache}", *flags)
        rows = evaluation_rows(bench.snapshot, num_rows=NUM_ROWS, row_tokens=ROW_TOKENS)
        targets_N = np.concatenate([row[1:] for row in rows])
        reference_NV = reference_logits(bench.snapshot, rows=rows)
        base = quality(reference_NV, reference_NV=reference_NV, targets_N=targets_N)
        for (weights, cache), program in programs.items():
            logits_NV = program_logits(bench, program=program, rows=rows)
            found = quality(logits_NV, reference_NV=reference_NV, targets_N=targets_N)
            what = f"simulated {weights}, KV {cache}"
            figures += [
                measure.Figure(name=f"{what}: perplexity", ours=found.perplexity, peer=base.perplexity, unit=""),
                measure.Figure(name=f"{what}: same most likely token", ours=100 * found.agreement, unit="%"),
                measure.Figure(name=f"{what}: KL from float32", ours=1000 * found.kl, unit="mnat"),
            ]
    return figures


if __name__ == "__main__":
    measure.main(measure_all, runs=1)
