"""An architecture that neither transformers nor this package knows, added by a distribution of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from qeff_engine import toolchain
from qeff_engine.architectures import registry
from qeff_engine.errors import EngineError, InvalidInput, Unsupported
from tests import exported_decoder, tiny

MODELING = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP


class MadeUpConfig(LlamaConfig):
    model_type = "made_up"


class MadeUpMLP(LlamaMLP):
    def forward(self, x):
        y = super().forward(x)
        for row in y.reshape(-1, y.shape[-1]):
            if row[0].item() < 0:  # a branch on a value: nothing that can be traced
                row.neg_()
        return y


class MadeUpForCausalLM(LlamaForCausalLM):
    config_class = MadeUpConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = MadeUpMLP(config)
"""
TRACING = """
import torch
from transformers.models.llama.modeling_llama import LlamaMLP


def forward(self, x):
    y = LlamaMLP.forward(self, x)
    return torch.where(y[..., :1] < 0, -y, y)
"""
ARCHITECTURE = """
from qeff_engine.architectures.form import Architecture

ARCHITECTURE = Architecture(
    model_types=("made_up",),
    config_class="made_up.modeling:MadeUpConfig",
    model_classes={"text-generation": "made_up.modeling:MadeUpForCausalLM"},
    replacements={"made_up.modeling:MadeUpMLP.forward": "made_up.tracing:forward"},
)
WITHOUT_REPLACEMENTS = Architecture(
    model_types=("made_up",),
    config_class="made_up.modeling:MadeUpConfig",
    model_classes={"text-generation": "made_up.modeling:MadeUpForCausalLM"},
)
NOT_THERE = Architecture(
    model_types=("made_up",),
    config_class="made_up.modeling:MadeUpConfig",
    model_classes={"text-generation": "made_up.modeling:MadeUpForCausalLM"},
    replacements={"made_up.modeling:MadeUpMLP.forward": "made_up.tracing:backward"},
)
WRONG = Architecture(
    model_types=("made_up",),
    config_class="made_up.modeling:MadeUpConfig",
    model_classes={"text-generation": "made_up.modeling:MadeUpForCausalLM"},
    unsupported="its layers speak to each other.",
)
"""
PROMPTS = [list(b"The capital of"), list(b"Once."), list(b"Let us see")]


@pytest.fixture
def distribution(tmp_path: Path) -> Path:
    """A directory for ``sys.path`` with the package made_up, as pip would install it."""
    site = tmp_path / "site"
    package = site / "made_up"
    package.mkdir(parents=True)
    for name, content in (
        ("__init__", ""),
        ("modeling", MODELING),
        ("tracing", TRACING),
        ("architecture", ARCHITECTURE),
    ):
        (package / f"{name}.py").write_text(content)
    name_entry_point(site, "made_up.architecture:ARCHITECTURE")
    return site


def name_entry_point(site: Path, place: str) -> None:
    info = site / "made_up-1.2.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\nmade_up = {place}\n")


def engine(*arguments: str | Path, site: Path) -> subprocess.CompletedProcess[str]:
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-m", "qeff_engine", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def checkpoint(
    distribution: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, torch.nn.Module]]:
    monkeypatch.syspath_prepend(str(distribution))
    from made_up import modeling

    fields = {**tiny.config("llama").to_dict(), "model_type": "made_up"}
    torch.manual_seed(0)
    model = modeling.MadeUpForCausalLM(modeling.MadeUpConfig(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15)
    model.save_pretrained(tmp_path / "source")
    yield tmp_path / "source", model
    for name in [name for name in sys.modules if name.partition(".")[0] == "made_up"]:
        del sys.modules[name]


def test_an_architecture_from_outside_is_resolved_and_exported_and_equals_its_model(
    distribution: Path, checkpoint: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    source, model = checkpoint
    for command in (
        ("resolve", "--source", source, "--out", tmp_path / "snapshot"),
        ("export", "--snapshot", tmp_path / "snapshot", "--out", tmp_path / "onnx"),
    ):
        process = engine(*command, site=distribution)
        assert process.returncode == 0, process.stdout + process.stderr
    decoder = exported_decoder.Decoder(tmp_path / "onnx", batch_size=3, ctx_len=32)
    tokens, logits_BTV = exported_decoder.greedy(decoder, PROMPTS, num_tokens=6, chunk=8)
    expected, expected_BTV = exported_decoder.reference(model, PROMPTS, num_tokens=6)
    assert tokens == expected
    np.testing.assert_allclose(logits_BTV, expected_BTV, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("place", "failure", "words"),
    [
        ("made_up.architecture:WITHOUT_REPLACEMENTS", Unsupported, "cannot be traced"),
        ("made_up.architecture:WRONG", Unsupported, "its layers speak to each other"),
        ("made_up.architecture:MISSING", InvalidInput, "made_up.architecture:MISSING"),
        ("made_up.architecture:NOT_THERE", InvalidInput, "nothing at made_up.tracing:backward"),
        ("made_up.modeling:MadeUpConfig", InvalidInput, "expected an Architecture"),
    ],
)
def test_what_cannot_be_exported_of_it_is_refused_with_the_reason(
    place: str,
    failure: type[EngineError],
    words: str,
    distribution: Path,
    checkpoint: tuple[Path, torch.nn.Module],
    tmp_path: Path,
) -> None:
    name_entry_point(distribution, place)
    with pytest.raises(failure, match=words):
        exported_decoder.make(checkpoint[0], tmp_path)


def test_its_version_is_part_of_the_toolchain(distribution: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "architectures" not in toolchain.versions(None)
    monkeypatch.syspath_prepend(str(distribution))
    assert toolchain.versions(None)["architectures"] == "made_up: made-up 1.2"
