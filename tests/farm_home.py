"""A farm's home with a database and no processes, and a checkpoint that is cheap to make: for tests of commands."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from farm import db
from tests import farm_driver

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "vocab_size": 16,
    "max_position_embeddings": 256,
}
TENSORS = {"model.embed_tokens.weight": (16, 8), "lm_head.weight": (16, 8)}


def write_checkpoint(directory: Path, *, config: Mapping[str, object] | None = None, seed: int = 0) -> Path:
    """A directory with ``config.json``, ``tokenizer.json`` and a safetensors file of zeros; no torch is needed."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(safetensors(seed=seed))
    return directory


def safetensors(*, seed: int = 0) -> bytes:
    """A safetensors file: length of the header (u64), header (JSON), data."""
    header: dict[str, object] = {"__metadata__": {"seed": str(seed)}}
    offset = 0
    for name, (rows, columns) in TENSORS.items():
        size = 4 * rows * columns
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(offset)


@pytest.fixture(scope="session")
def database_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite database at the newest revision, made once."""
    from farm import schema

    path = tmp_path_factory.mktemp("template") / "farm.db"
    schema.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def farm_home(tmp_path: Path, database_template: Path) -> Path:
    """The home of a farm that is not running."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copyfile(database_template, home / "farm.db")
    return home


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint directory."""
    return write_checkpoint(tmp_path / "tiny-llama")


@pytest.fixture
def database(farm_home: Path) -> Iterator[db.Database]:
    """The database of ``farm_home``."""
    opened = db.open_database(f"sqlite:///{farm_home / 'farm.db'}")
    yield opened
    opened.dispose()


@pytest.fixture
def driver(database: db.Database) -> farm_driver.Driver:
    """Somebody who does the work of ``farm_home``."""
    return farm_driver.Driver.start(database)
