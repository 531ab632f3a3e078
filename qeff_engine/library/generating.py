"""What the public classes of models that generate texts share."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qeff_engine import spec
from qeff_engine.compiler_flags import asking
from qeff_engine.library import model
from qeff_engine.library.results import GeneratedTexts
from qeff_engine.library.streaming import Streamer
from qeff_engine.tokenizer import Tokenizer


class Generating(model.Model):
    """What models that generate texts share."""

    def _decoder_spec(
        self,
        num_cores: int,
        *,
        prefill_seq_len: int,
        ctx_len: int,
        batch_size: int,
        num_devices: int,
        mxfp6_matmul: bool,
        mxint8_kv_cache: bool,
        compiler_options: Mapping[str, object],
    ) -> spec.CompileSpec:
        return spec.CompileSpec(
            num_cores=num_cores,
            num_devices=num_devices,
            batch_size=batch_size,
            prefill_len=prefill_seq_len,
            ctx_len=ctx_len,
            precision="mxfp6" if mxfp6_matmul else "fp16",
            kv_precision="mxint8" if mxint8_kv_cache else "fp16",
            compiler_options=asking.canonical(compiler_options),
        )

    def _generate(
        self,
        tokenizer: Any,
        *,
        prompts: Sequence[str],
        generation_len: int | None,
        stream: bool,
        device_id: Sequence[int] | None,
        images: Path | None = None,
    ) -> GeneratedTexts:
        run_spec = spec.RunSpec(prompts=as_tuple(prompts), generation_len=generation_len, check_parity=False)
        with self._streamer(tokenizer, wanted=stream) as streamer:
            result: GeneratedTexts = self._run(
                run_spec,
                tokenizer=tokenizer,
                device_ids=device_id,
                read=lambda measurement, _: GeneratedTexts.of_measurement(measurement),
                on_token=streamer,
                images=images,
            )
        return result

    @contextlib.contextmanager
    def _streamer(self, tokenizer: Any, *, wanted: bool) -> Iterator[Streamer | None]:
        if not wanted:
            yield None
            return
        streamer = Streamer(Tokenizer(self._snapshot.directory) if tokenizer is None else tokenizer, stream=sys.stdout)
        yield streamer
        streamer.end()


def as_tuple(prompts: Sequence[str]) -> tuple[str, ...]:
    """The prompts; a single text is one prompt and not a sequence of letters."""
    return (prompts,) if isinstance(prompts, str) else tuple(prompts)
