"""The caller's pictures as files, as the run stage takes them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qeff_engine.errors import InvalidInput


def saved_pictures(pictures: Sequence[Any], *, directory: Path) -> Path:
    """The directory, with a file for each picture, named by its number.

    Args:
        pictures: paths or PIL images.
        directory: an empty directory.

    Raises:
        InvalidInput: there are none, a path does not exist, or something is neither path nor image.
    """
    if not pictures:
        raise InvalidInput("images is empty, expected one for each prompt, or one for all.")
    for number, picture in enumerate(pictures):
        if isinstance(picture, str | Path):
            if not Path(picture).is_file():
                raise InvalidInput(f"Image {number} is {picture}, which is not a file.")
            shutil.copyfile(picture, directory / f"{number:06}{Path(picture).suffix.lower()}")
        elif hasattr(picture, "save"):
            picture.save(directory / f"{number:06}.png")
        else:
            raise InvalidInput(f"Image {number} is a {type(picture).__name__}, expected a path or a PIL image.")
    return directory
