"""Encoders: one graph, tokens in, embeddings out."""

from __future__ import annotations

from typing import Any

from qeff_engine import events, exported, tasks
from qeff_engine.errors import Unsupported
from qeff_engine.exporters import description, plain
from qeff_engine.spec import ExportSpec
from qeff_engine.stage import SNAPSHOT, StageContext
from qeff_engine.transforms import weightless
from qeff_engine.transforms.encoder import INPUT_NAMES, OUTPUT_NAME, PooledEncoder


def export(spec: ExportSpec, context: StageContext) -> tuple[exported.ExportedModel, dict[str, Any]]:
    """Export an encoder with its pooling.

    Raises:
        InvalidInput: the weights do not belong to the config.
        Unsupported: the architecture cannot be exported.
    """
    model = weightless.load(context.inputs[SNAPSHOT], task=tasks.FEATURE_EXTRACTION)
    name = type(model.module).__name__
    if model.config.is_encoder_decoder:
        raise Unsupported(f"{name} is an encoder and a decoder in one, expected an encoder.")
    hidden = int(model.config.get_text_config().hidden_size)
    tokens = exported.Tensor(dtype="int64", shape=("batch_size", "seq_len"))
    shape: tuple[int | str, ...] = ("batch_size", hidden) if spec.pooling else ("batch_size", "seq_len", hidden)
    component = exported.Component(
        file=f"{name}.onnx",
        inputs=dict.fromkeys(INPUT_NAMES, tokens),
        outputs={OUTPUT_NAME: exported.Tensor(dtype="float32", shape=shape)},
    )
    context.emit(events.progress(f"tracing {name}", fraction=0.1))
    figures = plain.write(
        PooledEncoder(model.module, pooling=spec.pooling),
        model=model,
        name=exported.ENCODER,
        component=component,
        out=context.out,
    )
    described = exported.ExportedModel(
        task=tasks.FEATURE_EXTRACTION,
        class_name=name,
        model_type=model.config.model_type,
        vocab_size=0,
        eos_token_ids=(),
        max_positions=description.max_positions(model.config),
        num_parameters=model.num_parameters,
        components={exported.ENCODER: component},
        extra={"pooling": spec.pooling},
    )
    return described, figures
