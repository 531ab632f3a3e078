"""Tiny saved checkpoints with byte tokenizers, of decoders whose layers differ in what quantization looks at."""

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from qeff_engine import spec, stage
from qeff_engine.stages import quantize

COMMON = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXTRA = {
    "gemma2": {"head_dim": 16, "sliding_window": 16},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
}
GPT2 = {
    "vocab_size": 256,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def save(directory, model_type, *, dtype=torch.float32, max_shard_size="1GB", **changes):
    """A saved checkpoint of a model with weights large enough that layers matter; returns its directory."""
    fields = GPT2 if model_type == "gpt2" else {**COMMON, **EXTRA.get(model_type, {}), **changes}
    config = transformers.AutoConfig.for_model(model_type, **fields)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.mul_(4)
    model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    save_byte_tokenizer(directory)
    return directory


def save_byte_tokenizer(directory):
    """A tokenizer with one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)


def quantized(snapshot, out, *, method, group_size=32, num_samples=3, seed=0):
    """What the stage makes of a snapshot: its result and the events it emitted."""
    out.mkdir(parents=True, exist_ok=True)
    emitted = []
    result = quantize.run(
        spec.QuantizeSpec(method=method, group_size=group_size, num_samples=num_samples, seq_len=48, seed=seed),
        stage.StageContext(out=out, work=out, inputs={stage.SNAPSHOT: snapshot}, emit=emitted.append),
    )
    return result, emitted
