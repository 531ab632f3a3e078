"""What layers of RWKV-4 and xLSTM keep, as a device keeps it: rounded to half precision behind every token."""

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


def average_behind(number, state, *, key):
    token = torch.full((1, 1, 1), key)
    return recurrences.weighted_average(
        token,
        torch.ones(1, 1, 1),
        log_decay_C=torch.tensor([-FORGOTTEN]),
        bonus_C=torch.zeros(1),
        state_BC=state,
        order=order_of(number),
    )[1]


def test_halves_do_not_lose_the_slow_decay_of_an_average():
    state = average_behind(0, Weighted(*torch.zeros(3, 1, 1)), key=12.3)
    first = float(state.exponent + state.weight.log())
    for number in range(1, NUM_TOKENS):
        state = Weighted(*(part.half().float() for part in average_behind(number, state, key=-1000.0)))
    lost = first - float(state.exponent + state.weight.log())
    assert lost == pytest.approx(FORGOTTEN * (NUM_TOKENS - 1), rel=0.1)


def remembered(number, states, *, log_input):
    """The states of an xLSTM memory behind one more token, which is written with this gate."""
    layout = LayerLayout(states={name: tuple(state.shape) for name, state in states.items()})
    order = order_of(number)
    layer = RetainedLayer(order=order, states=states, layout=layout)
    cache = RetainedCache([layer], order=order, positions_BS=order.slots_BS, ctx_len=1)
    ones = torch.ones(1, 1, 1, 1)
    forget = torch.full((1, 1, 1), FORGOTTEN).neg().exp().logit()
    gate = torch.full((1, 1, 1), log_input)
    module = SimpleNamespace(config=SimpleNamespace(eps=1e-6))
    passed_states.xlstm_memory(module, ones, ones, ones, gate, forget, cache, 0)
    assert not layer.unwritten
    return dict(zip(states, layer.successors(), strict=True))


def test_halves_do_not_lose_the_slow_decay_of_a_memory():
    noise = {f"recurrent_state_{index}": torch.randn(1, 1, *shape) for index, shape in enumerate([(1, 1), (1,), (2,)])}
    states = remembered(0, noise, log_input=12.3)

    def log_weight():
        _, keys, exponent = states.values()
        return float(keys.log() + exponent.sum())

    first = log_weight()
    assert first == pytest.approx(12.3, abs=1e-5)
    for number in range(1, NUM_TOKENS):
        states = remembered(number, states, log_input=-15.0)
        states = {name: state.half().float() for name, state in states.items()}
    assert first - log_weight() == pytest.approx(FORGOTTEN * (NUM_TOKENS - 1), rel=0.1)
