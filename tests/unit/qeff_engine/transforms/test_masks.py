import torch
from transformers import masking_utils

from qeff_engine.transforms import masks

POSITIONS_BS = torch.tensor([[2, 3], [0, -1]])
CTX_LEN = 5


def allowed(rule):
    mask = masks.position_mask(2, 2, CTX_LEN, q_offset=POSITIONS_BS, mask_function=rule)
    assert mask.shape == (2, 1, 2, CTX_LEN)
    return (mask == 0)[:, 0].int().tolist()


def test_a_token_sees_positions_up_to_its_own_and_padding_sees_none():
    assert allowed(masking_utils.causal_mask_function) == [
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]],
        [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    ]


def test_a_window_is_counted_from_the_position():
    assert allowed(masking_utils.sliding_window_causal_mask_function(2)) == [
        [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]],
        [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    ]


def test_without_positions_it_is_the_mask_of_transformers():
    arguments = {"batch_size": 1, "q_length": 3, "kv_length": 4, "q_offset": 1, "kv_offset": 0}
    torch.testing.assert_close(
        masks.position_mask(**arguments),
        masking_utils.eager_mask(**arguments, allow_is_causal_skip=False, dtype=torch.float32),
    )


def test_a_mask_of_padding_is_respected():
    mask = masks.position_mask(1, 2, 2, attention_mask=torch.tensor([[1, 0]]))
    assert (mask == 0)[0, 0].int().tolist() == [[1, 0], [1, 0]]
