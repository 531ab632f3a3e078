"""The two halves of a vision-language model as modules: what sees, and what puts the seen into the text.

One way for all architectures whose pieces have the common shape: ``get_image_features(pixel_values)`` gives the rows
that take the places of the image tokens among the embeddings.

Shape legend: B batch, S tokens, V rows of a picture, D hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from qeff_engine import exported
from qeff_engine.errors import Unsupported
from qeff_engine.vision_language import EMBEDS, IMAGE_IDX, NEXT_IMAGE_IDX


class VisionTower(torch.nn.Module):
    """Pixel values [1, channels, height, width] of a picture to its vision embeddings [1, V, D].

    One picture, since models take a batch apart with Python loops, which a trace would unroll.
    """

    def __init__(self, model: Any) -> None:
        """Wrap a model of transformers that has ``get_image_features``."""
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The rows of the picture; models give them as a list by picture, stacked, or one after another."""
        features = self.model.get_image_features(pixel_values=pixel_values)
        rows = getattr(features, "pooler_output", features)
        if isinstance(rows, list | tuple):
            rows = torch.cat(list(rows))
        rows_BVD: torch.Tensor = rows.reshape(1, -1, rows.shape[-1])
        return rows_BVD


def merged(
    embeds_BSD: torch.Tensor,
    *,
    is_image_BS: torch.Tensor,
    vision_embeds_BVD: torch.Tensor,
    image_idx_B1: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings with the vision rows in the places of the image tokens, and how many rows are used then.

    The k-th image token of a sequence takes row k, counted from ``image_idx``, so that a picture may span calls. An
    image token beyond the last row keeps its own embedding, as in the original model once no picture is passed.

    Args:
        embeds_BSD: embeddings of the tokens.
        is_image_BS: where the image tokens are; padding is none.
        vision_embeds_BVD: the rows.
        image_idx_B1: rows used by earlier calls.
    """
    index_BS = is_image_BS.long().cumsum(1) - 1 + image_idx_B1
    takes_BS = is_image_BS & (index_BS < vision_embeds_BVD.shape[1])
    last = vision_embeds_BVD.shape[1] - 1
    rows_BSD = torch.gather(
        vision_embeds_BVD, 1, index_BS.clamp(min=0, max=last)[..., None].expand(-1, -1, embeds_BSD.shape[-1])
    )
    merged_BSD = torch.where(takes_BS[..., None], rows_BSD.to(embeds_BSD.dtype), embeds_BSD)
    return merged_BSD, image_idx_B1 + takes_BS.long().sum(1, keepdim=True)


class VisionInputs:
    """What a decoder takes beside its tokens to speak about a picture.

    Follows :class:`qeff_engine.transforms.decoder.InputExtension`.

    Attributes:
        inputs: the vision rows and how many of them earlier calls have used.
        outputs: how many are used then, and the rows again, which stay on the device.
    """

    def __init__(self, *, image_token_id: int, num_rows: int, hidden_size: int) -> None:
        """Put rows [B, ``num_rows``, ``hidden_size``] into the places of a token."""
        rows = exported.Tensor(dtype="float32", shape=("batch_size", num_rows, hidden_size))
        count = exported.Tensor(dtype="int64", shape=("batch_size", 1))
        self.inputs: Mapping[str, exported.Tensor] = {EMBEDS: rows, IMAGE_IDX: count}
        self.outputs: Mapping[str, exported.Tensor] = {NEXT_IMAGE_IDX: count, EMBEDS + exported.RETAINED: rows}
        self._token = image_token_id

    def embed(
        self,
        embeds_BSD: torch.Tensor,
        *,
        input_ids_BS: torch.Tensor,
        position_ids_BS: torch.Tensor,
        extra: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """The embeddings with the rows in their places, and the further outputs."""
        merged_BSD, count_B1 = merged(
            embeds_BSD,
            is_image_BS=(input_ids_BS == self._token) & (position_ids_BS >= 0),
            vision_embeds_BVD=extra[EMBEDS],
            image_idx_B1=extra[IMAGE_IDX],
        )
        return merged_BSD, {NEXT_IMAGE_IDX: count_B1, EMBEDS + exported.RETAINED: extra[EMBEDS].clone()}


def image_token_id(config: Any) -> int:
    """The token whose places the vision rows take.

    Raises:
        Unsupported: the config names none.
    """
    for name in ("image_token_id", "image_token_index"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    raise Unsupported(f"The config of this {config.model_type} model names no image token.")


def image_size(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of the pictures that the vision tower takes.

    Raises:
        Unsupported: the tower takes pictures of any size.
    """
    size = getattr(config.vision_config, "image_size", None)
    channels = int(getattr(config.vision_config, "num_channels", 3))
    if isinstance(size, int):
        return channels, size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return channels, int(size[0]), int(size[1])
    raise Unsupported(
        f"The vision tower of this {config.model_type} model has the image size {size!r}, expected one fixed size."
    )


def require_common_shape(model: Any) -> None:
    """Refuse a model whose pieces do not have the common shape, so that no wrong tokens come out.

    Raises:
        Unsupported: its vision tower needs more than pixels, or its decoder more than positions.
    """
    name = type(model).__name__
    if not hasattr(model, "get_image_features"):
        raise Unsupported(f"{name} has no get_image_features, which every supported vision-language model has.")
    parameters = inspect.signature(model.get_image_features).parameters.values()
    needed = [
        item.name for item in parameters if item.default is item.empty and item.kind is item.POSITIONAL_OR_KEYWORD
    ]
    if needed != ["pixel_values"]:
        raise Unsupported(f"The vision tower of {name} needs {', '.join(needed)}, expected pixel_values alone.")
    types = [key for key in inspect.signature(model.forward).parameters if key.endswith("token_type_ids")]
    if types:
        raise Unsupported(
            f"{name} takes {types[0]}: what belongs to a picture decides about attention or positions in it, and an "
            "exported decoder goes by the positions of the tokens alone."
        )
