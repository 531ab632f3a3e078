"""What layers of RWKV-4 and xLSTM keep, as a device computes and keeps it: in half precision throughout."""

from types import SimpleNamespace

import pytest
import torch

from qeff_engine.transforms import passed_states, recurrences
from qeff_engine.transforms.cache import LayerLayout, RetainedCache, RetainedLayer
from qeff_engine.transforms.recurrences import Weighted
from qeff_engine.transforms.token_order import TokenOrder

# What is kept loses so much of its logarithm with each token. Halves near 12 are 0.008 apart.
FORGOTTEN, NUM_TOKENS = 0.003, 200


def order_of(*positions):
    return TokenOrder(torch.tensor([positions], dtype=torch.int32))


def log_weight(weight, exponent):
    return float(weight.double().log() + exponent.double().sum())


def average_behind(number, state, *, key):
    token = torch.full((1, 1, 1), key).half()
    return recurrences.weighted_average(
        token,
        torch.ones_like(token),
        log_decay_C=torch.tensor([-FORGOTTEN]).half(),
        bonus_C=torch.zeros(1).half(),
        state_BC=state,
        order=order_of(number),
    )[1]


def test_halves_do_not_lose_the_slow_decay_of_an_average():
    state = average_behind(0, Weighted(*torch.zeros(3, 1, 1).half()), key=12.3)
    assert {part.dtype for part in state} == {torch.float16}
    first = log_weight(state.weight, state.exponent)
    assert first == pytest.approx(12.3, abs=5e-3)
    for number in range(1, NUM_TOKENS):
        state = average_behind(number, state, key=-1000.0)
    lost = first - log_weight(state.weight, state.exponent)
    assert lost == pytest.approx(FORGOTTEN * (NUM_TOKENS - 1), rel=0.1)


def remembered(number, states, *, log_input):
    """The states of an xLSTM memory behind one more token, which is written with this gate."""
    layout = LayerLayout(states={name: tuple(state.shape) for name, state in states.items()})
    order = order_of(number)
    layer = RetainedLayer(order=order, states=states, layout=layout)
    cache = RetainedCache([layer], order=order, positions_BS=order.slots_BS, ctx_len=1)
    ones = torch.ones(1, 1, 1, 1).half()
    forget = torch.full((1, 1, 1), FORGOTTEN).neg().exp().logit().half()
    gate = torch.full((1, 1, 1), log_input).half()
    module = SimpleNamespace(config=SimpleNamespace(eps=1e-6))
    passed_states.xlstm_memory(module, ones, ones, ones, gate, forget, cache, 0)
    assert not layer.unwritten
    return dict(zip(states, layer.successors(), strict=True))


def test_halves_do_not_lose_the_slow_decay_of_a_memory():
    shapes = enumerate([(1, 1), (1,), (2,)])
    states = {f"recurrent_state_{index}": torch.randn(1, 1, *shape).half() for index, shape in shapes}
    states = remembered(0, states, log_input=12.3)
    assert {state.dtype for state in states.values()} == {torch.float16}
    _, keys, exponent = states.values()
    first = log_weight(keys, exponent)
    assert first == pytest.approx(12.3, abs=5e-3)
    for number in range(1, NUM_TOKENS):
        states = remembered(number, states, log_input=-15.0)
    _, keys, exponent = states.values()
    assert first - log_weight(keys, exponent) == pytest.approx(FORGOTTEN * (NUM_TOKENS - 1), rel=0.1)
