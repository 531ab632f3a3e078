"""A GGUF file as a snapshot: weights decoded to float32 tensor by tensor, config and tokenizer made from its metadata.

What the names in the file mean, and how llama.cpp permuted some weights, is taken from transformers; its own loader
is not used, since it holds the whole model in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qeff_engine import checkpoint, events, gguf_header, spec
from qeff_engine.architectures import classes
from qeff_engine.errors import InvalidInput, Unsupported, near_miss
from qeff_engine.stage import StageContext

Array = np.ndarray[Any, Any]

_PROBE_TEXT = " The capital of France is\nParis, since 987.\tOr so: <naïve> ÅÄÖ 'tis 北京!"


def fetch(resolve_spec: spec.ResolveSpec, context: StageContext) -> dict[str, Any]:
    """Decode the file into ``context.out``.

    Raises:
        InvalidInput: the file is damaged, changed since it was asked for, or lacks weights of its model.
        Unsupported: an architecture or a tokenizer that transformers does not read from GGUF.
    """
    source = checkpoint.inspect(resolve_spec.source)
    if resolve_spec.fingerprint and source.fingerprint != resolve_spec.fingerprint:
        raise InvalidInput(f"{source.location} changed after it was asked for.", advice="Submit again, or retry.")
    path = Path(source.location)
    header = gguf_header.read(path)
    config = _config(path, header=header)
    model = classes.empty_model(config, task=spec.TASKS[0])
    config.architectures = [type(model).__name__]
    config.dtype = "float32"
    _write_weights(path, header=header, model=model, context=context)
    config.save_pretrained(context.out)
    _write_generation_config(config, out=context.out)
    _write_tokenizer(path, out=context.out)
    return {"architecture": header.architecture}


def _config(path: Path, *, header: gguf_header.Header) -> Any:
    import transformers
    from transformers import modeling_gguf_pytorch_utils as legacy

    try:
        config = transformers.AutoConfig.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, KeyError) as error:
        raise Unsupported(
            f"{path} has the architecture '{header.architecture}', which transformers does not read from GGUF.",
            advice=near_miss(header.architecture, list(legacy.GGUF_SUPPORTED_ARCHITECTURES)),
        ) from error
    # The tokenizer's own name of itself in the metadata, not a place where the model could be found.
    config._name_or_path = ""
    return config


def _write_weights(path: Path, *, header: gguf_header.Header, model: Any, context: StageContext) -> None:
    from qeff_engine.quantizers.checkpoint_files import CheckpointWriter, TensorInfo

    # A tied weight has one name in the file.
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    plan = {name: TensorInfo(dtype="F32", shape=shape) for name, shape in shapes.items()}
    missing = set(plan)
    total = len(plan)
    with CheckpointWriter(context.out, plan) as writer:
        for name, values in _decoded(path, header=header, model=model):
            if name not in missing:
                continue  # a weight that is tied in this model, or a constant such as RoPE factors
            if values.shape != shapes[name]:
                raise InvalidInput(
                    f"Tensor {name} of {path} has the shape {list(values.shape)}, expected {list(shapes[name])}.",
                    advice="Convert the model to GGUF again.",
                )
            writer.write(name, np.ascontiguousarray(values, dtype=np.float32))
            missing.discard(name)
            done = total - len(missing)
            if done % 50 == 0:
                context.emit(events.progress(f"decoded {done} of {total} tensors", fraction=done / total))
        if missing:
            raise InvalidInput(
                f"{path} lacks {len(missing)} weights of {type(model).__name__}, such as {min(missing)}.",
                advice="Convert the model to GGUF again.",
            )


def _decoded(path: Path, *, header: gguf_header.Header, model: Any) -> Iterator[tuple[str, Array]]:
    """Names as the model spells them and values, one after another; experts that the file splits come last."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils as legacy

    collected: dict[str, Any] = {"config": model.config.to_dict(), "tensors": {}}
    processor = legacy.TENSOR_PROCESSORS.get(header.architecture, legacy.TensorProcessor)(config=collected["config"])
    names = _names(header.architecture, model=model, processor=processor)
    for tensor in header.tensors:
        raw = np.fromfile(path, dtype=np.uint8, count=tensor.nbytes, offset=tensor.offset)
        try:
            kind = gguf.GGMLQuantizationType(tensor.kind)
            values = gguf.dequantize(raw.reshape(*tensor.shape[:-1], -1), kind)
        except (ValueError, NotImplementedError) as error:  # no such type, or one that gguf knows and cannot decode
            raise Unsupported(
                f"Tensor {tensor.name} of {path} has the type {tensor.kind}, which cannot be decoded.",
                advice="Use a file with another quantization.",
            ) from error
        result = processor.process(
            weights=values, name=tensor.name, tensor_key_mapping=names, parsed_parameters=collected
        )
        if result.name in names:
            yield names[result.name], result.weights
    for name, stacked in collected["tensors"].items():
        yield name, stacked.numpy()


def _names(architecture: str, *, model: Any, processor: Any) -> dict[str, str]:
    """The model's name of each tensor by the file's name.

    Some files were made from the model below the head, so names are also tried without its prefix.
    """
    import gguf

    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    names: dict[str, str] = {}
    for prefix, module in (("", model), (f"{model.base_model_prefix}.", model.base_model)):
        found: dict[str, str] = {}
        for full_name in module.state_dict():
            name = processor.preprocess_name(full_name)
            stem, dot, suffix = name.rpartition(".")
            if suffix not in ("weight", "bias"):
                stem, dot, suffix = name, "", ""
            spelled = table.get_name(stem)
            if spelled is None:
                processor.perform_fallback_tensor_mapping(found, dot + suffix, prefix, name)
            else:
                found[spelled + dot + suffix] = prefix + name
        names = {**found, **names}
    return names


def _write_generation_config(config: Any, *, out: Path) -> None:
    import transformers

    transformers.GenerationConfig.from_model_config(config).save_pretrained(out)


def _write_tokenizer(path: Path, *, out: Path) -> None:
    """Save the tokenizer as plain ``tokenizer.json``, and make sure that it is read back as the same tokenizer."""
    import tokenizers
    import transformers
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    try:
        architecture, vocabulary, settings = get_gguf_tokenizer(str(path))
        made, _ = convert_gguf_tokenizer(architecture, vocabulary)
    except Exception as error:  # the tokenizers library raises plain Exception and nothing narrower
        raise Unsupported(f"The tokenizer in {path} cannot be read: {error}") from error
    # The class that transformers chooses by model_type may treat spaces in its own way when it is loaded again.
    plain = transformers.PreTrainedTokenizerFast(
        **{
            **settings,
            "tokenizer_object": made,
            "pad_token": settings["pad_token"] or settings["eos_token"],
            "clean_up_tokenization_spaces": False,
        }
    )
    plain.save_pretrained(out)
    expected = plain(_PROBE_TEXT)["input_ids"]
    raw = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json")).encode(_PROBE_TEXT).ids
    again = transformers.AutoTokenizer.from_pretrained(out, local_files_only=True, trust_remote_code=False)
    loaded = again(_PROBE_TEXT)["input_ids"]
    if not (expected == raw == loaded):
        raise Unsupported(
            f"The tokenizer in {path} is not the same after saving: {expected[:8]} became {raw[:8]} and {loaded[:8]}.",
            advice="Use the checkpoint that the file was made from.",
        )
