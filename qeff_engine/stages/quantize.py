"""The ``quantize`` stage: a checkpoint with 4-bit weights in a standard layout, made layer by layer.

What it leaves behind is a Hugging Face checkpoint that other libraries read too: the packed tensors and all others in
safetensors, ``config.json`` with a ``quantization_config``, and the tokenizer's files as they were. Peak memory is
about one decoder layer in float32, the Gram matrices of its inputs and the calibration rows.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from qeff_engine import checkpoint, events, files, quantizers
from qeff_engine.errors import InvalidInput
from qeff_engine.quantizers import block, calibration, output, selection
from qeff_engine.quantizers.base import Grid, Quantizer
from qeff_engine.quantizers.checkpoint_files import DTYPES, CheckpointReader, CheckpointWriter
from qeff_engine.quantizers.layerwise import LayerCall, LayeredModel
from qeff_engine.spec import QuantizeSpec
from qeff_engine.stage import SNAPSHOT, StageContext, StageResult

# What a directory may hold of the same weights in other formats; the artifact must not offer the float weights.
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".index.json")


def run(spec: QuantizeSpec, context: StageContext) -> StageResult:
    """Quantize the snapshot of ``context.inputs`` into ``context.out``.

    Raises:
        InvalidInput: the snapshot is not whole or quantized already, or the group size does not fit its layers.
        Unsupported: the model is none whose layers can be quantized one by one.
        Numerics: weights or activations are not finite.
    """
    snapshot = context.inputs[SNAPSHOT]
    config = read_config(snapshot)
    reader = CheckpointReader(snapshot)
    model = LayeredModel(snapshot, reader=reader)
    chosen = selection.select(model, group_size=spec.group_size)
    quantizer = quantizers.load(spec.method)
    for message in output.left_in_float(chosen):
        context.emit(events.progress(message, fraction=0.0))
    job = _Job(spec=spec, context=context, model=model, reader=reader, chosen=chosen, quantizer=quantizer)
    with torch.no_grad():
        figures = job.run()
    settings = output.quantization_config(spec, quantizer=quantizer, chosen=chosen)
    (context.out / "config.json").write_text(json.dumps({**config, "quantization_config": settings}, indent=2) + "\n")
    link_others(snapshot, context.out)
    return StageResult(figures=figures)


def read_config(snapshot: Path) -> dict[str, Any]:
    """The snapshot's ``config.json``, if its weights are not quantized yet."""
    config = checkpoint.config(snapshot)
    settings = config.get("quantization_config")
    if settings:
        method = settings.get("quant_method", "an unnamed method")
        raise InvalidInput(
            f"The model is already quantized with {method}, expected float weights.",
            advice="Start from the original checkpoint, or drop --quantize.",
        )
    return config


def link_others(snapshot: Path, out: Path) -> None:
    """Put every file of the snapshot that holds no weights into ``out``: tokenizer, generation config, licence."""
    for path in sorted(snapshot.rglob("*")):
        relative = path.relative_to(snapshot)
        if path.is_file() and not path.name.endswith(_WEIGHT_SUFFIXES) and relative != Path("config.json"):
            files.link_or_copy(path, out / relative)


class _Job:
    """One quantization: what is known of it, and the loop over the layers."""

    def __init__(
        self,
        *,
        spec: QuantizeSpec,
        context: StageContext,
        model: LayeredModel,
        reader: CheckpointReader,
        chosen: selection.Selection,
        quantizer: Quantizer,
    ) -> None:
        self._spec, self._context = spec, context
        self._model, self._reader, self._chosen, self._quantizer = model, reader, chosen, quantizer
        self._keys_by_layer, self._outside = output.keys_by_layer(model, reader)

    def run(self) -> dict[str, Any]:
        """Write the tensors; the figures."""
        hidden: list[torch.Tensor] = []
        calls: list[list[LayerCall]] = []
        if self._quantizer.needs_calibration:
            hidden, calls = self._model.record(self._rows())
        grid = Grid(group_size=self._spec.group_size, bits=self._spec.bits, least_zero=self._quantizer.least_zero)
        quantizing = block.BlockQuantizer(self._quantizer, grid=grid)
        plan = output.plan(
            self._reader, chosen=self._chosen, model=self._model, layout=self._quantizer.layout, grid=grid
        )
        results: list[block.LayerResult] = []
        start_s = time.monotonic()
        with CheckpointWriter(self._context.out, plan) as writer:
            output.copy(self._reader, writer, self._outside)
            for number in range(len(self._model.layer_names)):
                samples = block.Samples(hidden=hidden, calls=[row[number] for row in calls]) if hidden else None
                result, hidden = self._quantize_layer(number, quantizing, samples, writer)
                results.append(dataclasses.replace(result, weights={}))
                self._tell(number + 1, time.monotonic() - start_s)
            num_bytes = writer.num_bytes
        return self._figures(results, wall_s=time.monotonic() - start_s, num_bytes=num_bytes)

    def _rows(self) -> torch.Tensor:
        seq_len = self._spec.seq_len
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and limit < seq_len:
            message = f"calibrating on sequences of {limit} tokens, the model's limit, instead of {seq_len}"
            self._context.emit(events.progress(message, fraction=0.0))
            seq_len = limit
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            self._context.inputs[SNAPSHOT], local_files_only=True, trust_remote_code=False
        )
        return calibration.token_rows(
            tokenizer,
            text=calibration.default_text(),
            num_samples=self._spec.num_samples,
            seq_len=seq_len,
            seed=self._spec.seed,
        )

    def _quantize_layer(
        self, number: int, quantizing: block.BlockQuantizer, samples: block.Samples | None, writer: CheckpointWriter
    ) -> tuple[block.LayerResult, list[torch.Tensor]]:
        """Quantize and write a layer; also the calibration rows as the quantized layer leaves them."""
        name = self._model.layer_names[number]
        with self._model.loaded_layer(number) as layer:
            result = quantizing.quantize(
                layer,
                name=name,
                linears=self._chosen.of_layer(name),
                samples=samples,
                stored_dtypes=self._stored_dtypes(name),
            )
            output.write_layer(
                layer,
                result,
                keys=self._keys_by_layer[name],
                reader=self._reader,
                writer=writer,
                layout=self._quantizer.layout,
            )
            return result, list(samples.run(layer)) if samples else []

    def _stored_dtypes(self, layer_name: str) -> Mapping[str, torch.dtype]:
        prefix = layer_name + "."
        return {
            parameter.removeprefix(prefix): DTYPES[self._reader.info(key).dtype]
            for parameter, key in self._model.key_of_parameter.items()
            if parameter.startswith(prefix)
        }

    def _tell(self, done: int, elapsed_s: float) -> None:
        total = len(self._model.layer_names)
        left_s = elapsed_s / done * (total - done)
        message = f"quantized layer {done} of {total} ({self._spec.label}), about {left_s:.0f} s left"
        self._context.emit(events.progress(message, fraction=done / total))

    def _figures(self, results: list[block.LayerResult], *, wall_s: float, num_bytes: int) -> dict[str, Any]:
        reports = [report for result in results for report in result.reports.values()]
        ratios = [report.output_error_vs_rtn for report in reports if report.output_error_vs_rtn is not None]
        return {
            "num_layers_quantized": len(results),
            "num_linears_quantized": len(reports),
            "num_linears_in_float": len(self._chosen.kept),
            "num_stacked_expert_weights_in_float": len(self._chosen.stacked),
            "num_scaled_inputs": sum(result.num_folds for result in results),
            "num_inputs": sum(result.num_inputs for result in results),
            "weight_error_mean": _mean(report.weight_error for report in reports),
            "output_error_vs_rtn_mean": _mean(ratios),
            "layer_wall_s": round(wall_s / len(results), 3),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "weights_bytes": num_bytes,
        }


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return round(statistics.fmean(listed), 6) if listed else None
