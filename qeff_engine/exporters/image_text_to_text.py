"""Vision-language models: two graphs, pixels to embeddings, and tokens and embeddings to logits."""

from __future__ import annotations

from typing import Any

from qeff_engine import events, exported, tasks
from qeff_engine.architectures import proven
from qeff_engine.errors import Unsupported
from qeff_engine.exporters import description, plain
from qeff_engine.onnx_graph import angles, binding, tracing
from qeff_engine.spec import ExportSpec
from qeff_engine.stage import SNAPSHOT, StageContext
from qeff_engine.transforms import decoder, vision_language, weightless
from qeff_engine.transforms.weightless import WeightlessModel
from qeff_engine.vision_language import EMBEDS, PIXELS


def export(spec: ExportSpec, context: StageContext) -> tuple[exported.ExportedModel, dict[str, Any]]:
    """Export both halves of a model whose pieces have the common shape.

    Raises:
        InvalidInput: the weights do not belong to the config.
        Unsupported: the model does not have that shape, or cannot be traced.
    """
    model = weightless.load(context.inputs[SNAPSHOT], task=tasks.IMAGE_TEXT_TO_TEXT)
    vision_language.require_common_shape(model.module)
    _require_proven_decoder(model)
    name = type(model.module).__name__
    context.emit(events.progress(f"tracing the vision tower of {name}", fraction=0.1))
    vision, vision_figures = _export_vision(model, context=context)
    context.emit(events.progress(f"tracing the decoder of {name}", fraction=0.4))
    language, language_figures = _export_language(model, embeds=vision.outputs[EMBEDS], context=context)
    described = exported.ExportedModel(
        task=tasks.IMAGE_TEXT_TO_TEXT,
        class_name=name,
        model_type=model.config.model_type,
        vocab_size=int(language.outputs["logits"].shape[2]),
        eos_token_ids=description.eos_token_ids(model.config, snapshot=model.snapshot),
        max_positions=description.max_positions(model.config),
        num_parameters=model.num_parameters,
        components={exported.VISION: vision, exported.DECODER: language},
        extra={
            "image_token_id": vision_language.image_token_id(model.config),
            "num_image_tokens": vision.outputs[EMBEDS].shape[1],
        },
    )
    return described, {key: value + language_figures.get(key, 0) for key, value in vision_figures.items()}


def _require_proven_decoder(model: WeightlessModel) -> None:
    """Refuse a decoder that nobody has compared: behind a vision tower it cannot be tried small."""
    decoder_type = model.config.get_text_config(decoder=True).model_type
    if not (proven.is_proven(decoder_type) or proven.is_proven(model.config.model_type)):
        raise Unsupported(
            f"The decoder '{decoder_type}' of {type(model.module).__name__} is not among the proven architectures, and "
            "one that takes what a vision tower saw is not tried small.",
            advice="docs/architectures.md lists those that are proven.",
        )


def _export_vision(model: WeightlessModel, *, context: StageContext) -> tuple[exported.Component, dict[str, Any]]:
    """The graph of the vision tower, for one picture."""
    tower = vision_language.VisionTower(model.module)
    pixels = exported.Tensor(dtype="float32", shape=(1, *vision_language.image_size(model.config)))
    embeds = exported.Tensor(dtype="float32", shape=_shape_of_rows(tower, model=model, pixels=pixels))
    component = exported.Component(
        file=f"{type(model.module).__name__}_vision.onnx", inputs={PIXELS: pixels}, outputs={EMBEDS: embeds}
    )
    figures = plain.write(tower, model=model, name=exported.VISION, component=component, out=context.out)
    return component, figures


def _shape_of_rows(
    tower: vision_language.VisionTower, *, model: WeightlessModel, pixels: exported.Tensor
) -> tuple[int, ...]:
    """The shape of what the tower makes of one picture, by running it on shapes alone."""
    try:
        with tracing.prepared(), model.fake_mode:
            rows_BVD = tower(*tracing.examples({PIXELS: pixels}, sizes={}).values())
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise Unsupported(
            f"The vision tower of {type(model.module).__name__} does not take one picture of shape "
            f"{pixels.shape}: {error}",
            advice="Models that cut pictures into tiles or patches are not supported.",
        ) from error
    return tuple(int(size) for size in rows_BVD.shape)


def _export_language(
    model: WeightlessModel, *, embeds: exported.Tensor, context: StageContext
) -> tuple[exported.Component, dict[str, Any]]:
    """The graph of the decoder, which takes what the vision tower saw."""
    _, num_rows, hidden_size = embeds.shape
    extension = vision_language.VisionInputs(
        image_token_id=vision_language.image_token_id(model.config),
        num_rows=int(num_rows),
        hidden_size=int(hidden_size),
    )
    graph = decoder.export_decoder(model, extension=extension)
    component = exported.Component(
        file=f"{type(model.module).__name__}.onnx",
        inputs=graph.inputs,
        outputs=graph.outputs,
        max_seq_len=graph.max_seq_len,
        fp32_values=angles.angle_values(graph.model.graph),
    )
    bound = binding.bind(
        graph.model,
        sources=model.sources,
        snapshot=model.snapshot,
        out=context.out,
        side_file=f"{exported.DECODER}.side.bin",
    )
    graph_bytes = binding.save(graph.model, context.out / component.file)
    return component, description.figures(bound, graph_bytes=graph_bytes)
