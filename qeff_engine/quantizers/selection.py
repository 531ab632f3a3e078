"""Which linears of a model are quantized, and why the others are not. Looks at shapes only."""

from __future__ import annotations

import dataclasses

from torch import nn
from transformers.pytorch_utils import Conv1D

from qeff_engine.errors import InvalidInput, Unsupported
from qeff_engine.quantizers import base
from qeff_engine.quantizers.layerwise import LayeredModel
from qeff_engine.quantizers.packing import NIBBLES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """What of the decoder layers becomes integers.

    Attributes:
        linears: (out, in) of each linear to quantize, by its name in the model.
        kept: why a linear stays in float, by its name in the model.
        stacked: elements of each stacked expert weight, which stays in float, by its name in the model.
    """

    linears: dict[str, tuple[int, int]]
    kept: dict[str, str]
    stacked: dict[str, int]

    def of_layer(self, layer_name: str) -> list[str]:
        """The linears to quantize in a layer, by their names in the layer."""
        prefix = layer_name + "."
        return [name.removeprefix(prefix) for name in self.linears if name.startswith(prefix)]


def select(model: LayeredModel, *, group_size: int) -> Selection:
    """The linears of the model's decoder layers, if ``group_size`` fits them.

    Embeddings and the head are outside the layers and stay in float. In the layers, these stay in float too: linears
    whose widths are not whole words of eight weights, routers, and linears that the checkpoint stores under another
    name as a part of something else.

    Raises:
        Unsupported: a layer multiplies by something that is not an ``nn.Linear``.
        InvalidInput: the group size does not fit, or nothing can be quantized.
    """
    selection = Selection(linears={}, kept={}, stacked={})
    for number, layer_name in enumerate(model.layer_names):
        _select_layer(model, model.layer(number), layer_name=layer_name, selection=selection)
    if not selection.linears:
        raise InvalidInput(
            f"No linear of the {len(model.layer_names)} decoder layers can be quantized.",
            advice="Leave this model unquantized.",
        )
    base.check_group_size(selection.linears, group_size=group_size)
    return selection


def _select_layer(model: LayeredModel, layer: nn.Module, *, layer_name: str, selection: Selection) -> None:
    stacked = {name: weight for name, weight in layer.named_parameters() if weight.dim() > 2}
    num_experts = {weight.shape[0] for weight in stacked.values()}
    selection.stacked.update({f"{layer_name}.{name}": weight.numel() for name, weight in stacked.items()})
    for name, module in layer.named_modules():
        full_name = f"{layer_name}.{name}"
        if isinstance(module, Conv1D):
            raise Unsupported(
                f"{full_name} is a Conv1D, expected nn.Linear: the packed layouts have no transposed weights.",
                advice="Leave this model unquantized.",
            )
        if not isinstance(module, nn.Linear):
            continue
        out_features, in_features = module.weight.shape
        if f"{full_name}.weight" not in model.key_of_parameter:
            selection.kept[full_name] = "the checkpoint stores it as a part of another tensor"
        elif out_features % NIBBLES or in_features % NIBBLES:
            selection.kept[full_name] = f"its widths {in_features} and {out_features} are not multiples of {NIBBLES}"
        elif out_features in num_experts:
            selection.kept[full_name] = "it chooses experts"
        else:
            selection.linears[full_name] = (out_features, in_features)
