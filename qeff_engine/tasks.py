"""Which task a checkpoint is for, by its ``config.json`` alone. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qeff_engine import spec
from qeff_engine.errors import InvalidInput, Unsupported

TEXT_GENERATION, FEATURE_EXTRACTION, IMAGE_TEXT_TO_TEXT = spec.TASKS

_DECODER_ENDINGS = ("ForCausalLM", "LMHeadModel")
_CONDITIONAL_ENDING = "ForConditionalGeneration"
_VISION_FIELDS = ("vision_config",)


def of_config(config: Mapping[str, Any]) -> str:
    """The task of a checkpoint, one of :data:`qeff_engine.spec.TASKS`.

    A class with a language model head generates text; with a vision tower beside it, it reads images too; whatever is
    neither, from ``BertModel`` to ``...ForMaskedLM``, is taken as the encoder below its head.

    Args:
        config: the JSON object of ``config.json``.

    Raises:
        InvalidInput: the config names no class.
        Unsupported: the class is an encoder and a decoder in one, such as T5 or Whisper.
    """
    names = config.get("architectures") or []
    if not names:
        raise InvalidInput(
            f"The config of this '{config.get('model_type', 'unknown')}' model names no architectures, so its task is "
            "not known.",
            advice=f"Say it with --task, one of {', '.join(spec.TASKS)}.",
        )
    name = str(names[0])
    has_vision = any(config.get(field) for field in _VISION_FIELDS)
    if has_vision and name.endswith((_CONDITIONAL_ENDING, *_DECODER_ENDINGS)):
        return IMAGE_TEXT_TO_TEXT
    if name.endswith(_DECODER_ENDINGS):
        return TEXT_GENERATION
    if config.get("is_encoder_decoder"):
        raise Unsupported(
            f"{name} is an encoder and a decoder in one, expected a decoder, an encoder or a vision-language model.",
            advice="Speech and translation models are not among the supported tasks: " + ", ".join(spec.TASKS) + ".",
        )
    if name.endswith(_CONDITIONAL_ENDING):
        return TEXT_GENERATION
    return FEATURE_EXTRACTION


def of_snapshot(snapshot: Path) -> str:
    """The task of the checkpoint in a directory; see :func:`of_config`."""
    path = snapshot / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} is not a model's config: {error}.", advice="Resolve the model first.") from error
    return of_config(config)
