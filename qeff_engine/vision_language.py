"""Running a vision-language model: the vision program sees the pictures, the language program takes what it saw.

Both need the device's cores, so they are active one after the other. Shape legend: N pictures, B batch, V rows of
embeddings of a picture, D hidden size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from qeff_engine.errors import Numerics
from qeff_engine.generation import DecoderProgram
from qeff_engine.sdk.session import Array

PIXELS, EMBEDS = "pixel_values", "vision_embeds"
IMAGE_IDX, NEXT_IMAGE_IDX = "image_idx", "image_idx_output"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What the vision program made of pictures.

    Attributes:
        embeds_NVD: embeddings.
        total_s: time of all calls in seconds of the program's clock.
    """

    embeds_NVD: Array
    total_s: float


def see(program: DecoderProgram, *, pixel_values_NCHW: Array) -> Seen:
    """Run the vision program on each picture.

    Raises:
        Numerics: an embedding is not finite.
    """
    start_s = program.clock()
    embeds_NVD = np.concatenate(
        [program.run({PIXELS: pixels_CHW[None]}, outputs=(EMBEDS,))[EMBEDS] for pixels_CHW in pixel_values_NCHW]
    )
    total_s = program.clock() - start_s
    if not np.isfinite(embeds_NVD).all():
        raise Numerics("Embeddings of a picture are not finite.", advice="Activations may exceed the range of float16.")
    return Seen(embeds_NVD=embeds_NVD, total_s=total_s)


class SeeingDecoder:
    """A language program that is called like one without pictures: it adds the embeddings and counts the image tokens.

    A call with a token at position 0 begins the next batch: there the embeddings are passed, and they stay on the
    device for the batch. From call to call goes how many rows each sequence has used, since a picture may span
    several prefill calls.
    """

    def __init__(self, program: DecoderProgram, *, embeds_NVD: Array, batch_size: int) -> None:
        """Call ``program``; the pictures are those of the prompts, in their order."""
        missing = -len(embeds_NVD) % batch_size
        self._program = program
        self._waiting = list(
            np.pad(embeds_NVD, ((0, missing), (0, 0), (0, 0))).reshape(-1, batch_size, *embeds_NVD.shape[1:])
        )
        self._image_idx_B1 = np.zeros((batch_size, 1), dtype=np.int64)

    def clock(self) -> float:
        """Seconds since some start."""
        return self._program.clock()

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str]) -> dict[str, Array]:
        """Run the program once, with ``input_ids`` and ``position_ids`` as feeds."""
        all_feeds = dict(feeds)
        if (feeds["position_ids"] == 0).any():
            all_feeds[EMBEDS] = self._waiting.pop(0)
            self._image_idx_B1 = np.zeros_like(self._image_idx_B1)
        all_feeds[IMAGE_IDX] = self._image_idx_B1
        found = self._program.run(all_feeds, outputs=(*outputs, NEXT_IMAGE_IDX))
        self._image_idx_B1 = found.pop(NEXT_IMAGE_IDX)
        return found
