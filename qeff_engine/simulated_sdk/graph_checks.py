"""What the compiler refuses in a graph before it looks at shapes."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.defs

from qeff_engine.simulated_sdk import graph_walk, shapes
from qeff_engine.simulated_sdk.refusal import model_refusal
from qeff_engine.simulated_sdk.static_values import Scope, StaticValues

# Their results have shapes that depend on data, or they hold what is no tensor: nothing the card can compile.
_UNSUPPORTED = frozenset(
    {
        "NonZero",
        "Unique",
        "Compress",
        "StringNormalizer",
        "StringConcat",
        "StringSplit",
        "RegexFullMatch",
        "TfIdfVectorizer",
        "LabelEncoder",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SplitToSequence",
        "ConcatFromSequence",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "ImageDecoder",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Bernoulli",
    }
)
_OTHER_DOMAINS = {("com.microsoft", "MatMulNBits"), ("com.microsoft", "GroupQueryAttention")}

# Inputs that the compiler wants to know: number, word in its message.
_CONSTANT_INPUTS = {
    "Range": ((0, "start"), (1, "limit"), (2, "delta")),
    "Slice": ((1, "starts"), (2, "ends"), (3, "axes"), (4, "steps")),
    "Split": ((1, "split"),),
    "ReduceSum": ((1, "axes"),),
}
_CONSTANT_TEXT = {
    "Range": "Range: '{0}' input must be a constant tensor",
    "Slice": "Slice: Non-constant {0} tensor not supported.",
    "Split": "Non-constant {0} tensor not supported",
    "ReduceSum": "ReduceSum: Non-constant {0} tensor not supported.",
}


def check(model: onnx.ModelProto, *, static: StaticValues) -> None:
    """Refuse what cannot be compiled.

    Raises:
        Refusal: operators that are not supported (all of them are listed), or inputs that must be constant and are not.
    """
    _check_operators(model)
    versions = shapes.where(model)
    messages = _non_constant(model.graph.node, scope=None, static=static, where=versions)
    for key, function in graph_walk.functions_of(model).items():
        messages += _non_constant(function.node, scope=key, static=static, where=versions)
    if messages:
        raise model_refusal(*messages)


def _check_operators(model: onnx.ModelProto) -> None:
    functions = graph_walk.functions_of(model)
    unsupported: dict[str, int] = {}
    for nodes, imports in [
        (model.graph.node, model.opset_import),
        *((function.node, function.opset_import) for function in model.functions),
    ]:
        versions = {"" if item.domain == "ai.onnx" else item.domain: item.version for item in imports}
        for node in graph_walk.all_nodes(nodes):
            if graph_walk.key_of(node) not in functions and not _is_supported(node, versions=versions):
                name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
                unsupported[name] = unsupported.get(name, 0) + 1
    if unsupported:
        raise model_refusal(
            *(f"Operator {name} is not supported ({n} nodes)" for name, n in sorted(unsupported.items()))
        )


def _is_supported(node: onnx.NodeProto, *, versions: dict[str, int]) -> bool:
    if node.domain not in graph_walk.ONNX_DOMAINS:
        return (node.domain, node.op_type) in _OTHER_DOMAINS
    return node.op_type not in _UNSUPPORTED and onnx.defs.has(
        node.op_type, max_inclusive_version=versions.get("", onnx.defs.onnx_opset_version())
    )


def _non_constant(nodes: Iterable[onnx.NodeProto], *, scope: Scope, static: StaticValues, where: str) -> list[str]:
    messages: list[str] = []
    for node in graph_walk.all_nodes(nodes):
        if not graph_walk.is_onnx(node, *_CONSTANT_INPUTS):
            continue
        for number, word in _CONSTANT_INPUTS[node.op_type]:
            if number < len(node.input) and not static.is_static(node.input[number], scope=scope):
                text = _CONSTANT_TEXT[node.op_type].format(word)
                messages.append(f"[Operator-'{node.name or node.output[0]}', {where}] : {text}")
    return messages
