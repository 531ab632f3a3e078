"""Pictures and the prompts around them as a vision-language model takes them: pixels and token ids.

The snapshot's own processor does it, in its form on PIL and numpy: that needs no torchvision and gives the same pixels
everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qeff_engine.errors import InvalidInput, Unsupported
from qeff_engine.sdk.session import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """A prompt with its picture.

    Attributes:
        tokens: token ids; the place of the picture is filled with as many image tokens as it has embeddings.
        pixel_values_CHW: the picture, resized and normalized, float32.
    """

    tokens: list[int]
    pixel_values_CHW: Array


class Reader:
    """Reads prompts and pictures with the processor of a snapshot."""

    def __init__(self, snapshot: Path) -> None:
        """Load the processor.

        Raises:
            InvalidInput: the snapshot has none that can be read.
        """
        import transformers

        try:
            self._processor: Any = transformers.AutoProcessor.from_pretrained(
                snapshot, backend="pil", local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, ImportError, TypeError) as error:
            raise InvalidInput(
                f"{snapshot} has no processor for images that can be read: {error}",
                advice="Expected processor_config.json or preprocessor_config.json beside the weights.",
            ) from error
        if getattr(self._processor, "image_processor", None) is None:
            raise InvalidInput(
                f"{snapshot} has a tokenizer and no image processor.", advice="Expected preprocessor_config.json."
            )

    def read(self, prompt: str, *, picture: Path) -> Reading:
        """Token ids and pixels of a prompt and its picture.

        Raises:
            InvalidInput: the file is not a picture, or the prompt has not exactly one place for it.
            Unsupported: the processor cuts the picture into several.
        """
        token = str(getattr(self._processor, "image_token", None) or "<image>")
        if prompt.count(token) != 1:
            raise InvalidInput(
                f"The prompt {prompt!r} has {prompt.count(token)} places for a picture, expected 1.",
                advice=f"Write {token} where the picture belongs.",
            )
        features = self._processor(text=prompt, images=_opened(picture), return_tensors="np")
        pixels = features["pixel_values"]
        if pixels.ndim != 4 or pixels.shape[0] != 1:
            raise Unsupported(
                f"The model's processor makes pixel values of shape {pixels.shape} of one picture, expected "
                "(1, channels, height, width).",
                advice="Models that cut pictures into tiles or patches are not supported.",
            )
        return Reading(tokens=[int(token_id) for token_id in features["input_ids"][0]], pixel_values_CHW=pixels[0])


def paths_of(directory: Path, *, num_prompts: int) -> list[Path]:
    """A picture for each prompt, in the order of the files' names; a single one is for all.

    Raises:
        InvalidInput: there are neither as many as prompts nor one.
    """
    paths = sorted(path for path in directory.iterdir() if path.is_file())
    if len(paths) == 1:
        return paths * num_prompts
    if len(paths) != num_prompts:
        raise InvalidInput(
            f"There are {len(paths)} pictures for {num_prompts} prompts, expected as many, or one for all."
        )
    return paths


def pixels_of(readings: Sequence[Reading]) -> Array:
    """Pixel values [N, C, H, W] of all pictures, which the processor has made equally large."""
    import numpy as np

    return np.stack([reading.pixel_values_CHW for reading in readings])


def _opened(picture: Path) -> Any:
    """The picture in RGB, the right way up."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(picture) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise InvalidInput(
            f"{picture} is not a picture that can be read: {error}.", advice="Use PNG, JPEG or WebP."
        ) from error
