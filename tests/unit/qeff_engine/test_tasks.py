import json

import pytest

from qeff_engine import tasks
from qeff_engine.errors import InvalidInput, Unsupported


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "text-generation"),
        ({"architectures": ["GPT2LMHeadModel"]}, "text-generation"),
        ({"architectures": ["BertModel"]}, "feature-extraction"),
        ({"architectures": ["ModernBertForMaskedLM"]}, "feature-extraction"),
        (
            {"architectures": ["LlavaForConditionalGeneration"], "vision_config": {"image_size": 8}},
            "image-text-to-text",
        ),
        ({"architectures": ["FuyuForCausalLM"], "vision_config": {"image_size": 8}}, "image-text-to-text"),
    ],
)
def test_a_config_tells_the_task(config, task):
    assert tasks.of_config(config) == task


def test_an_encoder_decoder_is_refused():
    config = {"architectures": ["WhisperForConditionalGeneration"], "is_encoder_decoder": True}
    with pytest.raises(Unsupported, match="WhisperForConditionalGeneration"):
        tasks.of_config(config)


def test_a_config_without_a_class_asks_for_the_task():
    with pytest.raises(InvalidInput, match=r"'llama'.*--task"):
        tasks.of_config({"model_type": "llama"})


def test_a_directory_without_a_config_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"config\.json is not a model's config"):
        tasks.of_snapshot(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    assert tasks.of_snapshot(tmp_path) == "feature-extraction"
