"""What a config may say beside the checkpoint that it comes with."""

from __future__ import annotations

import pytest
import transformers
from transformers.models.auto import configuration_auto

from qeff_engine.architectures import classes
from qeff_engine.errors import InvalidInput, Unsupported

NUM_TENSORS = 24


def test_a_tower_that_the_checkpoint_leaves_out_may_have_more_layers_than_there_are_tensors():
    config = {"num_hidden_layers": 2, "vision_config": {"num_hidden_layers": 34}}
    classes.require_possible(config, num_tensors=NUM_TENSORS)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"num_hidden_layers": 34}, "num_hidden_layers"),
        ({"vision_config": {"num_hidden_layers": 10**9}}, "vision_config.num_hidden_layers"),
        ({"text_config": {"num_experts": 10**9}}, "text_config.num_experts"),
    ],
)
def test_numbers_of_parts_that_no_checkpoint_has_are_refused_by_name(config, field):
    with pytest.raises(InvalidInput, match=rf" for {field}, expected at most"):
        classes.require_possible(config, num_tensors=NUM_TENSORS)


def test_an_architecture_that_only_this_process_has_told_transformers_of_is_not_known(monkeypatch):
    """Its code is no part of any key, so a result of it would be taken for that of other code."""

    class MineConfig(transformers.PretrainedConfig):
        model_type = "mine"

    monkeypatch.setattr(configuration_auto.CONFIG_MAPPING, "_extra_content", {})
    transformers.AutoConfig.register("mine", MineConfig)
    assert not classes.is_known({"model_type": "mine"})
    with pytest.raises(Unsupported, match="does not know the architecture 'mine'"):
        classes.require_known({"model_type": "mine"})
