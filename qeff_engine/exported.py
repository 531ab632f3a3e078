"""What the ``export`` stage leaves behind: ``export.json`` beside the graphs. Standard library only.

::

    export.json              this description
    <Class>.onnx             graph of a component; initializers are external data, by reference
    *.safetensors            the checkpoint's own files, hard-linked, which the graphs point into
    <component>.side.bin     tensors that are not contiguous bytes of the checkpoint, streamed
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from qeff_engine import files

FILE_NAME = "export.json"
FORMAT = 1
RETAINED = "_RetainedState"  # output X_RetainedState is the next call's input X and stays on the device

LAYERS_DOMAIN = "qeff.layers"  # of the functions that are layers, called once per layer

DECODER = "decoder"  # text in (or image embeddings and text), logits and KV out
VISION = "vision"  # pixels in, vision_embeds out
ENCODER = "encoder"  # text in, embeddings out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output of a graph.

    Attributes:
        dtype: numpy name, such as ``int64``.
        shape: sizes; a string is a symbol that specializations give a value to.
    """

    dtype: str
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """One graph of an exported model.

    Attributes:
        file: ONNX file, relative to the artifact.
        inputs: by name, in graph order; includes retained states (``past_key.0`` ...).
        outputs: by name, in graph order; a retained state is its input's name + :data:`RETAINED`.
        num_layer_functions: distinct layers that are local functions of the graph, called once per layer; 0 when the
            layers stand in the graph itself. A compiler can compile each such function once.
        max_seq_len: most tokens of a call that the graph computes rightly; 0 when there is no limit.
        fp32_values: values that a compiler must not compute in fp16, by the names of nodes' outputs.
    """

    file: str
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    num_layer_functions: int = 0
    max_seq_len: int = 0
    fp32_values: tuple[str, ...] = ()

    @property
    def retained(self) -> list[str]:
        """Names of the inputs whose successors are among the outputs."""
        return [name for name in self.inputs if name + RETAINED in self.outputs]

    @property
    def symbols(self) -> list[str]:
        """Symbolic axis names, each once, in order of appearance among the inputs."""
        seen = dict.fromkeys(axis for tensor in self.inputs.values() for axis in tensor.shape if isinstance(axis, str))
        return list(seen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """An exported model: its graphs and what a runner must know of its config.

    Attributes:
        task: one of :data:`qeff_engine.spec.TASKS`.
        class_name: transformers class that was exported, such as ``LlamaForCausalLM``.
        model_type: transformers ``model_type``.
        vocab_size: width of the logits; 0 for an encoder.
        eos_token_ids: tokens that end a sequence.
        max_positions: longest sequence that the model's config allows; 0 when it names none, or when what the model
            keeps has no length.
        num_parameters: elements of all weights, tied ones once.
        components: graphs by name (:data:`DECODER`, :data:`VISION`, :data:`ENCODER`).
        extra: further JSON values of a task (image token id, number of image tokens, ...).
    """

    task: str
    class_name: str
    model_type: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_positions: int
    num_parameters: int
    components: dict[str, Component]
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def save(self, directory: Path) -> None:
        """Write ``export.json`` into ``directory``."""
        files.save_description(directory, FILE_NAME, version=FORMAT, fields=dataclasses.asdict(self))


def load(directory: Path) -> ExportedModel:
    """The description in ``directory``.

    Raises:
        InvalidInput: there is none, or it has another format.
    """
    fields = files.load_description(
        directory, FILE_NAME, version=FORMAT, what="an exported model", advice="Export the model first."
    )
    components = {name: _component(item) for name, item in fields.pop("components").items()}
    return ExportedModel(components=components, eos_token_ids=tuple(fields.pop("eos_token_ids")), **fields)


def _component(fields: dict[str, Any]) -> Component:
    tensors = {
        side: {name: Tensor(dtype=item["dtype"], shape=tuple(item["shape"])) for name, item in fields[side].items()}
        for side in ("inputs", "outputs")
    }
    return Component(
        file=fields["file"],
        num_layer_functions=fields.get("num_layer_functions", 0),
        max_seq_len=fields.get("max_seq_len", 0),
        fp32_values=tuple(fields.get("fp32_values", ())),
        **tensors,
    )
