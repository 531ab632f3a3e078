"""A model that is loaded in memory as a checkpoint in the cache, since stages read files."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from qeff_engine import tasks
from qeff_engine.errors import Infrastructure, InvalidInput
from qeff_engine.library.cache import StageCache

_FOLDER = "loaded"


def task_of(model: Any) -> str:
    """The task of a loaded transformers model; see :func:`qeff_engine.tasks.of_config`.

    Raises:
        InvalidInput: it is not a transformers model.
    """
    _require_transformers_model(model)
    return tasks.of_config({**model.config.to_dict(), "architectures": [type(model).__name__]})


def save(model: Any, *, cache: StageCache) -> Path:
    """The directory of a checkpoint with the model's weights as they are now; written once per content.

    Raises:
        InvalidInput: it is not a transformers model.
        Infrastructure: the cache cannot be written.
    """
    _require_transformers_model(model)
    target = cache.root / _FOLDER / _digest(model)
    if target.is_dir():
        return target
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        model.save_pretrained(partial)
        partial.rename(target)
    except OSError as error:
        if not target.is_dir():  # another process may have been faster
            raise Infrastructure(f"The model could not be saved to {target}: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _require_transformers_model(model: Any) -> None:
    if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        raise InvalidInput(
            f"model is a {type(model).__name__}, expected a model of transformers.",
            advice="Load it with transformers, or use from_pretrained with its directory.",
        )


def _digest(model: Any) -> str:
    """SHA-256 over class, config, and name, type, shape and bytes of every tensor of the state."""
    import torch

    found = hashlib.sha256(f"{type(model).__name__}\n{model.config.to_json_string(use_diff=False)}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
