"""Decoders: one graph, tokens in, logits and retained KV out."""

from __future__ import annotations

from typing import Any

from qeff_engine import checkpoint, events, exported, tasks
from qeff_engine.architectures import classes, proven
from qeff_engine.exporters import description
from qeff_engine.onnx_graph import angles, binding
from qeff_engine.spec import ExportSpec
from qeff_engine.stage import SNAPSHOT, StageContext
from qeff_engine.transforms import decoder, weightless


def export(spec: ExportSpec, context: StageContext) -> tuple[exported.ExportedModel, dict[str, Any]]:
    """Export a causal language model.

    Raises:
        InvalidInput: the weights do not belong to the config.
        Unsupported: the architecture or its quantization cannot be exported.
    """
    snapshot = context.inputs[SNAPSHOT]
    model = weightless.load(snapshot, task=tasks.TEXT_GENERATION)
    name = type(model.module).__name__
    context.emit(events.progress(f"tracing {name}", fraction=0.1))
    graph = decoder.export_decoder(model)
    if graph.why_no_functions:
        context.emit(events.progress(f"layers are traced one by one: {graph.why_no_functions}"))
    _require_proven(model, context=context)
    context.emit(events.progress("writing the graph", fraction=0.9))
    bound = binding.bind(
        graph.model,
        sources=model.sources,
        snapshot=snapshot,
        out=context.out,
        side_file=f"{exported.DECODER}.side.bin",
    )
    graph_bytes = binding.save(graph.model, context.out / f"{name}.onnx")
    component = exported.Component(
        file=f"{name}.onnx",
        inputs=graph.inputs,
        outputs=graph.outputs,
        num_layer_functions=graph.num_layer_functions,
        max_seq_len=graph.max_seq_len,
        fp32_values=angles.angle_values(graph.model.graph),
    )
    has_length = any("ctx_len" in tensor.shape for tensor in graph.inputs.values())
    described = exported.ExportedModel(
        task=tasks.TEXT_GENERATION,
        class_name=name,
        model_type=model.config.model_type,
        vocab_size=int(graph.outputs["logits"].shape[2]),
        eos_token_ids=description.eos_token_ids(model.config, snapshot=snapshot),
        max_positions=description.max_positions(model.config) if has_length else 0,
        num_parameters=model.num_parameters,
        components={exported.DECODER: component},
    )
    figures = {
        **description.figures(bound, graph_bytes=graph_bytes),
        "num_layers": graph.num_layers,
        "num_layer_functions": graph.num_layer_functions,
        "why_no_layer_functions": graph.why_no_functions,
    }
    return described, figures


def _require_proven(model: weightless.WeightlessModel, *, context: StageContext) -> None:
    """Try an architecture small that has not been compared with transformers yet, such as code of the checkpoint's."""
    of_transformers = type(model.module).__module__.partition(".")[0] == "transformers"
    if of_transformers and proven.is_proven(str(checkpoint.config(model.snapshot)["model_type"])):
        return
    from qeff_engine.exporters import self_test  # with ONNX Runtime, which no other export needs

    config = classes.load_config(model.snapshot)
    context.emit(events.progress(f"trying a small {config.model_type}, which is not among the proven architectures"))
    self_test.require_agreement(config)
