"""Closed forms against the same recurrences token by token, in float64."""

import numpy as np
import pytest
import torch

from qeff_engine.transforms import recurrences
from qeff_engine.transforms.token_order import TokenOrder

BATCH, HEADS, KEY_DIM, VALUE_DIM = 2, 2, 4, 3
TOLERANCE = 2e-5  # of float32, relative to the largest value


def positions(num_tokens):
    """One row without padding, one that ends early: both continue something."""
    slots = torch.arange(num_tokens).repeat(BATCH, 1).to(torch.int32) + 5
    slots[1, (num_tokens + 1) // 2 :] = -1
    return slots


def drawn(seed, *shape):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape), dtype=torch.float32)


def close(found, expected):
    expected = torch.as_tensor(expected)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < TOLERANCE


def deltas_one_by_one(query, key, value, log_decay, beta, state, slots):
    outputs, states = np.zeros((*query.shape[:3], VALUE_DIM)), state.double().numpy().copy()
    query, key, value, log_decay, beta = (item.double().numpy() for item in (query, key, value, log_decay, beta))
    for row, head in np.ndindex(BATCH, HEADS):
        for token in range(slots.shape[1]):
            if slots[row, token] < 0:
                continue
            kept = np.exp(log_decay[row, head, token])[:, None] * states[row, head]
            difference = value[row, head, token] - key[row, head, token] @ kept
            kept = kept + np.outer(key[row, head, token], beta[row, head, token] * difference)
            states[row, head], outputs[row, head, token] = kept, query[row, head, token] @ kept
    return outputs, states


@pytest.mark.parametrize("width", [1, KEY_DIM], ids=["decay of a head", "decay of a channel"])
@pytest.mark.parametrize("num_tokens", [1, 2, 7, 150])
@pytest.mark.parametrize("strength", [0.01, 30.0], ids=["weak", "strong"])
def test_the_delta_rule_is_that_of_single_tokens(width, num_tokens, strength):
    slots = positions(num_tokens)
    key = torch.nn.functional.normalize(drawn(0, BATCH, HEADS, num_tokens, KEY_DIM), dim=-1)
    # Text that repeats itself: the same key again and again is where powers of the overlaps would explode.
    key[:, 0] = key[:, 0, :1]
    query, value = drawn(1, *key.shape), drawn(2, BATCH, HEADS, num_tokens, VALUE_DIM)
    log_decay = -strength * drawn(3, BATCH, HEADS, num_tokens, width).abs()
    beta = torch.sigmoid(drawn(4, BATCH, HEADS, num_tokens))
    state = drawn(5, BATCH, HEADS, KEY_DIM, VALUE_DIM)
    expected, expected_state = deltas_one_by_one(query, key, value, log_decay, beta, state, slots)
    found, found_state = recurrences.delta_rule(
        query, key, value, log_decay_BHS1K=log_decay, beta_BHS=beta, state_BHKV=state, order=TokenOrder(slots)
    )
    real = (slots >= 0)[:, None, :, None]
    close(torch.where(real, found, 0.0), expected)
    close(found_state, expected_state)


@pytest.mark.parametrize("num_tokens", [1, 2, 150])
@pytest.mark.parametrize("strength", [0.01, 30.0], ids=["weak", "strong"])
def test_a_state_space_is_that_of_single_tokens(num_tokens, strength):
    slots = positions(num_tokens)
    written = drawn(0, BATCH, 1, HEADS, num_tokens, VALUE_DIM)
    log_decay = -strength * drawn(1, BATCH, 1, HEADS, num_tokens).abs()
    key, query = drawn(2, BATCH, 1, num_tokens, KEY_DIM), drawn(3, BATCH, 1, num_tokens, KEY_DIM)
    state = drawn(4, BATCH, 1, HEADS, VALUE_DIM, KEY_DIM)
    expected, states = np.zeros(written.shape), state.double().numpy().copy()
    for row, head, token in np.ndindex(BATCH, HEADS, num_tokens):
        if slots[row, token] >= 0:
            kept = np.exp(log_decay[row, 0, head, token].double().numpy()) * states[row, 0, head]
            states[row, 0, head] = kept + np.outer(written[row, 0, head, token], key[row, 0, token])
            expected[row, 0, head, token] = states[row, 0, head] @ query[row, 0, token].double().numpy()
    found, found_state = recurrences.state_space(
        written, log_decay_BGRS=log_decay, key_BGSN=key, query_BGSN=query, state_BGRPN=state, order=TokenOrder(slots)
    )
    close(torch.where((slots >= 0)[:, None, None, :, None], found, 0.0), expected)
    close(found_state, states)


@pytest.mark.parametrize("num_tokens", [1, 2, 150])
def test_a_scan_is_that_of_single_tokens(num_tokens):
    slots = positions(num_tokens)
    decay, added = torch.sigmoid(drawn(0, BATCH, num_tokens, 3, 2)), drawn(1, BATCH, num_tokens, 3, 2)
    state = drawn(2, BATCH, 3, 2)
    expected, states = np.zeros(added.shape), state.double().numpy().copy()
    for row, token in np.ndindex(BATCH, num_tokens):
        if slots[row, token] >= 0:
            states[row] = decay[row, token].double().numpy() * states[row] + added[row, token].double().numpy()
        expected[row, token] = states[row]
    found, found_state = recurrences.linear_scan(decay, added, state_BX=state, order=TokenOrder(slots))
    close(found, expected)
    close(found_state, states)


def test_calls_are_as_long_as_stated_and_no_longer():
    def last_state(num_tokens):
        slots = torch.arange(num_tokens)[None].to(torch.int32)
        ones = torch.ones(1, num_tokens, 1)
        _, state = recurrences.linear_scan(ones, ones, state_BX=torch.zeros(1, 1), order=TokenOrder(slots))
        return float(state)

    assert last_state(recurrences.MAX_TOKENS) == recurrences.MAX_TOKENS
    assert last_state(recurrences.MAX_TOKENS + 1) != recurrences.MAX_TOKENS + 1
