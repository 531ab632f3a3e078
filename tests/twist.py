"""A made-up decoder that no library knows: its code comes with the checkpoint, as code on the hub does.

Its layers are a llama's with another feed-forward network, and a rotary table that its constructor computes and nobody
else. It imports a second file and, in a folder, a third. Each of its files writes a line into the file that the
environment variable :data:`MARKER` names when it is run: its name, the process, and names of secrets that it saw.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from tests import tiny

MARKER = "QEFF_TEST_TWIST"  # of those that a stage of the farm may see
MODEL_TYPE = "twist"
TELL = f"""
import os

if os.environ.get({MARKER!r}):
    with open(os.environ[{MARKER!r}], "a") as stream:
        secrets = sorted(name for name in os.environ if name.startswith("HF_TOKEN"))
        stream.write(f"{{os.path.basename(__file__)}} {{os.getpid()}} {{' '.join(secrets)}}\\n")
"""
FILES: Mapping[str, str] = MappingProxyType(
    {
        "configuration_twist.py": TELL
        + """
from transformers import PretrainedConfig


class TwistConfig(PretrainedConfig):
    model_type = "twist"
    attribute_map = {"num_hidden_layers": "depth"}

    def __init__(self, vocab_size=64, hidden_size=32, intermediate_size=48, depth=2, num_attention_heads=4,
                 num_key_value_heads=2, head_dim=8, max_position_embeddings=128, theta=50.0, twist=0.5, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.depth, self.num_attention_heads, self.num_key_value_heads = depth, num_attention_heads, num_key_value_heads
        self.head_dim, self.max_position_embeddings = head_dim, max_position_embeddings
        self.theta, self.twist = theta, twist
        self.hidden_act, self.rms_norm_eps, self.initializer_range = "silu", 1e-6, 0.02
        self.attention_bias = self.mlp_bias = False
        self.attention_dropout = 0.0
        self.rope_parameters = {"rope_type": "default", "rope_theta": theta}
""",
        "modeling_twist.py": TELL
        + """
import torch
from torch import nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from .configuration_twist import TwistConfig
from .parts.twisting import twisted


class TwistRotary(nn.Module):
    def __init__(self, config):
        super().__init__()
        steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self.register_buffer("inv_freq", 1.0 / config.theta**steps, persistent=False)

    def forward(self, x, position_ids):
        angles = position_ids[:, :, None].float() * self.inv_freq[None, None, :]
        both = torch.cat((angles, angles), dim=-1)
        return both.cos().to(x.dtype), both.sin().to(x.dtype)


class TwistMLP(LlamaMLP):
    def __init__(self, config):
        super().__init__(config)
        self.twist = config.twist

    def forward(self, x):
        return twisted(super().forward(x), by=self.twist)


class TwistForCausalLM(LlamaForCausalLM):
    config_class = TwistConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.rotary_emb = TwistRotary(config)
        for layer in self.model.layers:
            layer.mlp = TwistMLP(config)
        self.post_init()

    def _init_weights(self, module):
        pass
""",
        "parts/twisting.py": TELL
        + """
def twisted(x, *, by):
    return x + by * x.roll(1, dims=-1)
""",
        "tokenizer_twist.py": TELL
        + """
from pathlib import Path

from transformers import PreTrainedTokenizer


class TwistTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "twist.tiktoken"}

    def __init__(self, vocab_file, **kwargs):
        self.shift = int(Path(vocab_file).read_text())
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return 256

    def get_vocab(self):
        return {chr(number): number for number in range(256)}

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return (ord(token) + self.shift) % 256

    def _convert_id_to_token(self, index):
        return chr(index)

    def save_vocabulary(self, save_directory, filename_prefix=None):
        return ()
""",
    }
)
AUTO_MAP = {
    "AutoConfig": "configuration_twist.TwistConfig",
    "AutoModelForCausalLM": "modeling_twist.TwistForCausalLM",
}


def save(directory: Path, *, own_tokenizer: bool = False, fields: Mapping[str, Any] | None = None) -> Path:
    """A checkpoint with random weights and its code in ``directory``, which is returned.

    Args:
        directory: made when it does not exist.
        own_tokenizer: its tokenizer is code, too; else it is one of :func:`tests.tiny.tokenizer`.
        fields: of the config, over tiny ones.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_code(directory)
    model(directory, fields=fields).save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    change(directory / "config.json", {**config, "auto_map": AUTO_MAP})
    if own_tokenizer:
        auto_map = {"AutoTokenizer": ["tokenizer_twist.TwistTokenizer", None]}
        (directory / "twist.tiktoken").write_text("0")
        settings = {"tokenizer_class": "TwistTokenizer", "auto_map": auto_map}
        change(directory / "tokenizer_config.json", settings)
    else:
        tiny.tokenizer().save_pretrained(directory)
    return directory


def write_code(directory: Path, *, package: str = "") -> None:
    """The files of the code."""
    for name, text in FILES.items():
        path = directory / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def model(place: Path, *, fields: Mapping[str, Any] | None = None) -> Any:
    """A model with random weights, made by an ordinary import of the code; ``place`` takes a package for it."""
    package = place / "twist_for_tests"
    write_code(package)
    sys.path.insert(0, str(place))
    try:
        importlib.invalidate_caches()
        modeling = importlib.import_module("twist_for_tests.modeling_twist")
    finally:
        sys.path.remove(str(place))
        for name in [name for name in sys.modules if name.partition(".")[0] == "twist_for_tests"]:
            del sys.modules[name]
        for path in sorted(package.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        package.rmdir()
    torch.manual_seed(0)
    special = {"bos_token_id": tiny.BOS, "eos_token_id": tiny.EOS, "pad_token_id": tiny.PAD}
    made = modeling.TwistForCausalLM(modeling.TwistConfig(vocab_size=tiny.VOCAB_SIZE, **special, **(fields or {})))
    tiny.randomize(made)
    return made.eval()


def change(path: Path, fields: Mapping[str, Any]) -> None:
    """Write a JSON file anew."""
    path.write_text(json.dumps(fields, indent=1))
