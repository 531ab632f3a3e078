"""What a config may say beside the checkpoint that it comes with."""

from __future__ import annotations

import pytest

from qeff_engine.architectures import classes
from qeff_engine.errors import InvalidInput

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
