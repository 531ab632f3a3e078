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
from qeff_engine.errors import InvalidInput, Unsupported
from qeff_engine.stage import StageContext

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
    config = _config(path)
    model = classes.empty_model(config, task=spec.TASKS[0])
    config.architectures = [type(model).__name__]
    config.dtype = "float32"
    _write_weights(path, model=model, context=context)
    config.save_pretrained(context.out)
    _write_generation_config(config, out=context.out)
    _write_tokenizer(path, out=context.out)
    return {"architecture": gguf_header.check(path).get("general.architecture", "")}


def _config(path: Path) -> Any:
    import transformers
    from transformers import modeling_gguf_pytorch_utils as legacy

    try:
        config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except (ValueError, KeyError) as error:
        name = str(gguf_header.check(path).get("general.architecture", "unknown"))
        raise Unsupported(
            f"{path} has the architecture '{name}', which transformers does not read from GGUF.",
            advice=spec.near_miss(name, list(legacy.GGUF_SUPPORTED_ARCHITECTURES)),
        ) from error
    # The tokenizer's own name of itself in the metadata, not a place where the model could be found.
    config._name_or_path = ""
    return config


def _write_weights(path: Path, *, model: Any, context: StageContext) -> None:
    from qeff_engine.quantizers.checkpoint_files import CheckpointWriter, TensorInfo

    # A tied weight has one name in the file.
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    plan = {name: TensorInfo(dtype="F32", shape=shape) for name, shape in shapes.items()}
    missing = set(plan)
    total = len(plan)
    with CheckpointWriter(context.out, plan) as writer:
        for name, values in _decoded(path, model=model):
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


def _decoded(path: Path, *, model: Any) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Names as the model spells them and values, one after another; experts that the file splits come last."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils as legacy

    reader = gguf.GGUFReader(path)
    architecture = str(gguf_header.check(path).get("general.architecture", ""))
    collected: dict[str, Any] = {"config": model.config.to_dict(), "tensors": {}}
    processor = legacy.TENSOR_PROCESSORS.get(architecture, legacy.TensorProcessor)(config=collected["config"])
    names = legacy.get_gguf_hf_weights_map(model, processor)
    for tensor in reader.tensors:
        try:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise Unsupported(
                f"Tensor {tensor.name} of {path} has the type {tensor.tensor_type.name}, which cannot be decoded.",
                advice="Use a file with another quantization.",
            ) from error
        result = processor.process(
            weights=values, name=tensor.name, tensor_key_mapping=names, parsed_parameters=collected
        )
        if result.name in names:
            yield names[result.name], result.weights
    for name, stacked in collected["tensors"].items():
        yield name, stacked.numpy()


def _write_generation_config(config: Any, *, out: Path) -> None:
    import transformers

    transformers.GenerationConfig.from_model_config(config).save_pretrained(out)


def _write_tokenizer(path: Path, *, out: Path) -> None:
    """Save the tokenizer as plain ``tokenizer.json``, and make sure that it is read back as the same tokenizer."""
    import tokenizers
    import transformers

    try:
        made = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except (ValueError, KeyError) as error:
        raise Unsupported(f"The tokenizer in {path} cannot be read: {error}") from error
    # The class that transformers chooses by model_type may rebuild spaces in its own way when it is loaded again.
    plain = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer,
        chat_template=made.chat_template,
        bos_token=made.bos_token,
        eos_token=made.eos_token,
        unk_token=made.unk_token,
        pad_token=made.pad_token or made.eos_token,
        clean_up_tokenization_spaces=False,
    )
    plain.save_pretrained(out)
    expected = made.backend_tokenizer.encode(_PROBE_TEXT).ids
    raw = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json")).encode(_PROBE_TEXT).ids
    loaded = transformers.AutoTokenizer.from_pretrained(out, local_files_only=True)(_PROBE_TEXT)["input_ids"]
    if not (expected == raw == loaded):
        raise Unsupported(
            f"The tokenizer in {path} is not the same after saving: {expected[:8]} became {raw[:8]} and {loaded[:8]}.",
            advice="Use the checkpoint that the file was made from.",
        )
