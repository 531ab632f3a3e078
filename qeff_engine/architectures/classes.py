"""Which class of transformers is behind an architecture and a task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from qeff_engine import code_files, tasks
from qeff_engine.architectures import form, registry, remote_code
from qeff_engine.architectures.form import Architecture
from qeff_engine.errors import InvalidInput, Unsupported, near_miss

_MAPPINGS: Mapping[str, str] = MappingProxyType(
    {
        tasks.TEXT_GENERATION: "MODEL_FOR_CAUSAL_LM_MAPPING",
        tasks.FEATURE_EXTRACTION: "MODEL_MAPPING",
        tasks.IMAGE_TEXT_TO_TEXT: "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    }
)
_AUTO_CLASSES: Mapping[str, str] = MappingProxyType(
    {
        tasks.TEXT_GENERATION: "AutoModelForCausalLM",
        tasks.FEATURE_EXTRACTION: "AutoModel",
        tasks.IMAGE_TEXT_TO_TEXT: "AutoModelForImageTextToText",
    }
)


# Fields that count parts of a model, each of which takes time to make even without storage.
_PARTS = re.compile(r"(?:^n|num|_local|routed)_(?:\w+_)?(layers?|heads?|experts|blocks)$")
_MOST_PARTS = 1 << 16
_MOST_LAYERS_WITHIN = 1 << 10  # of a tower, which the checkpoint of a decoder may leave out


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether transformers, :mod:`registry` or code with consent knows the architecture of a ``config.json``.

    What else this process has told transformers does not count: results are not cached under it.
    """
    from transformers.models.auto import configuration_auto

    name = str(config["model_type"])
    told = configuration_auto.CONFIG_MAPPING._extra_content.get(name)
    if name in configuration_auto.CONFIG_MAPPING_NAMES or remote_code.is_of_checkpoint(told):
        return True
    found = registry.of_model_type(name)
    return found is not None and bool(found.config_class)


def require_known(config: Mapping[str, Any]) -> None:
    """Refuse a ``config.json`` of an architecture that is not known.

    Raises:
        Unsupported: the message names the architecture and one with nearly the same name.
    """
    from transformers.models.auto import configuration_auto

    if is_known(config):
        return
    name = str(config["model_type"])
    hint = near_miss(name, list(configuration_auto.CONFIG_MAPPING_NAMES))
    raise Unsupported(
        f"transformers does not know the architecture '{name}'.",
        advice=hint if hint.startswith("Did") else "See docs/adding-architectures.md.",
    )


def require_possible(config: Mapping[str, Any], *, num_tensors: int, within: str = "") -> None:
    """Refuse a ``config.json`` with numbers of parts that its checkpoint cannot have, before anything is made of them.

    Sizes of tensors need no rule: tensors are made without storage and compared with those of the checkpoint.

    Args:
        config: the JSON object.
        num_tensors: tensors of the checkpoint: each layer has one at least, if it is not of a tower that is left out.
        within: path of the object in ``config.json``, with a point behind.

    Raises:
        InvalidInput: the message names the field.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            require_possible(value, num_tensors=num_tensors, within=f"{within}{name}.")
        elif isinstance(value, int) and (found := _PARTS.search(name)):
            layers = max(num_tensors, _MOST_LAYERS_WITHIN) if within else num_tensors
            most = layers if found[1].startswith("layer") else _MOST_PARTS
            if value < 0:
                raise InvalidInput(f"config.json says {value} for {within}{name}, expected at least 0.")
            if value > most:
                raise InvalidInput(
                    f"config.json says {value} for {within}{name}, expected at most {most}.",
                    advice=f"The checkpoint has {num_tensors} tensors.",
                )


def load_config(directory: Any) -> Any:
    """The config object of a checkpoint directory; from now on transformers knows its architecture, too.

    Raises:
        InvalidInput: a field of the config has a value that its class refuses, or it needs its own code and there is no
            consent to it.
        Unsupported: the architecture is not known.
    """
    import json

    import transformers
    from huggingface_hub.errors import StrictDataclassError

    fields = json.loads((directory / "config.json").read_text())
    if code_files.has_code(fields) and not is_known(fields):
        raise code_files.not_consented(str(directory), consent=code_files.read(directory).digest)
    require_known(fields)
    name = str(fields["model_type"])
    found = registry.of_model_type(name)
    if found is not None and found.config_class:
        _introduce(found, name=name)
    try:
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise InvalidInput(f"{directory / 'config.json'} is refused by transformers: {error}") from error
    config._attn_implementation = None  # the config may name code on the hub here; callers say what they want
    return config


def _introduce(architecture: Architecture, *, name: str) -> None:
    """Tell transformers the classes of an architecture that it does not know."""
    import transformers

    config_class = form.find(architecture.config_class)
    try:
        transformers.AutoConfig.register(name, config_class, exist_ok=True)
        for task, place in architecture.model_classes.items():
            getattr(transformers, _AUTO_CLASSES[task]).register(config_class, form.find(place), exist_ok=True)
    except (ValueError, KeyError, AttributeError) as error:
        raise InvalidInput(
            f"The classes of the architecture '{name}' are refused: {error}.",
            advice="See docs/adding-architectures.md.",
        ) from error


def model_class(config: Any, *, task: str) -> Any:
    """The class for a config and a task.

    Raises:
        Unsupported: there is none.
    """
    from transformers.models.auto import modeling_auto

    mapping = getattr(modeling_auto, _MAPPINGS[task])
    if type(config) not in mapping:
        raise Unsupported(
            f"transformers has no class for the task {task} of the architecture '{config.model_type}'.",
            advice="Choose another task with --task, or another model.",
        )
    found = mapping[type(config)]
    candidates = found if isinstance(found, tuple | list) else (found,)
    named = [item for item in candidates if item.__name__ in (getattr(config, "architectures", None) or ())]
    return (named or candidates)[0]


def own_config(config: Any, *, kind: Any) -> Any:
    """The config that a class is made from: the decoder's alone, for a decoder of a model with more to it."""
    if kind.config_class is None or isinstance(config, kind.config_class):
        return config
    text = config.get_text_config(decoder=True)
    return text if isinstance(text, kind.config_class) else config


def empty_model(config: Any, *, task: str) -> Any:
    """The model of a config with parameters of float32 on meta, that is, without storage.

    Raises:
        InvalidInput: a field of the config has a value that the model refuses.
        Unsupported: there is no class for the task.
    """
    import torch

    chosen = model_class(config, task=task)
    config = own_config(config, kind=chosen)
    try:
        with torch.device("meta"):
            model = chosen._from_config(config, dtype=torch.float32, attn_implementation="eager")
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
        AssertionError,
    ) as error:
        raise InvalidInput(
            f"{chosen.__name__} cannot be made from this config: {error}", advice="Check config.json."
        ) from error
    return model.eval()
