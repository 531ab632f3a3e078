"""Closed forms against the same recurrences token by token, in float64."""

import numpy as np
import pytest
import torch

from qeff_engine.transforms import recurrences
from qeff_engine.transforms.recurrences import GatedMemory, Weighted
from qeff_engine.transforms.token_order import TokenOrder

BATCH, HEADS, KEY_DIM, VALUE_DIM = 3, 2, 4, 3
TOLERANCE = 2e-5  # of float32, relative to the largest value


def positions(num_tokens):
    """A row without padding, one that ends early, one of padding alone: all continue something."""
    slots = torch.arange(num_tokens).repeat(BATCH, 1).to(torch.int32) + 5
    slots[1, (num_tokens + 1) // 2 :] = -1
    slots[2] = -1
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


def averages_one_by_one(key, value, log_decay, bonus, state, slots):
    """Averages, and the averages and the logarithms of the weights behind the last token, from logarithms alone."""
    key, value, log_decay, bonus = (item.double().numpy() for item in (key, value, log_decay, bonus))
    average, weight, exponent = (item.double().numpy().copy() for item in state)
    with np.errstate(divide="ignore"):
        log_weight = exponent + np.log(weight)
    outputs = np.zeros(key.shape)

    def with_one(row, log_one, one):
        both = np.logaddexp(log_weight[row], log_one)
        return np.exp(log_weight[row] - both) * average[row] + np.exp(log_one - both) * one, both

    for row, token in np.ndindex(BATCH, key.shape[1]):
        if slots[row, token] >= 0:
            outputs[row, token], _ = with_one(row, key[row, token] + bonus, value[row, token])
            log_weight[row] += log_decay
            average[row], log_weight[row] = with_one(row, key[row, token], value[row, token])
    return outputs, average, log_weight


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 150, recurrences.MAX_TOKENS])
@pytest.mark.parametrize("strength", [0.1, 300.0], ids=["alike", "far apart"])
@pytest.mark.parametrize("has_past", [True, False], ids=["continued", "begun"])
def test_a_weighted_average_is_that_of_single_tokens(num_tokens, strength, has_past):
    slots = positions(num_tokens)
    channels = 6
    # From one that forgets nothing to one that forgets at once, with weights that float32 cannot hold.
    log_decay = torch.tensor([0.0, -1e-5, -1e-3, -0.3, -20.0, -400.0])
    key, value = strength * drawn(0, BATCH, num_tokens, channels), drawn(1, BATCH, num_tokens, channels)
    key[..., 1] -= 2 * strength
    key[..., 2] += 2 * strength
    bonus = drawn(2, channels)
    # An exponent without a weight says nothing: a row that begins finds zeros, other rows what was there.
    weight = 1 + drawn(3, BATCH, channels).abs().clamp(max=1.7) if has_past else torch.zeros(BATCH, channels)
    exponent = torch.round(strength * drawn(4, BATCH, channels))
    state = Weighted(average=drawn(5, BATCH, channels), weight=weight, exponent=exponent)
    expected, average, log_weight = averages_one_by_one(key, value, log_decay, bonus, state, slots)
    found, after = recurrences.weighted_average(
        key, value, log_decay_C=log_decay, bonus_C=bonus, state_BC=state, order=TokenOrder(slots)
    )
    close(torch.where((slots >= 0)[..., None], found, 0.0), expected)
    for old, new in zip(state, after, strict=True):
        assert torch.equal(old[2], new[2])
    close(after.average[:2], average[:2])
    close((after.exponent + after.weight.log())[:2], log_weight[:2])
    assert torch.equal(after.exponent, after.exponent.round())
    assert float(after.weight[:2].min()) > 0.999
    assert float(after.weight[:2].max()) < 2.719


def memories_one_by_one(query, key, value, log_input, log_forget, state, epsilon, slots):
    """Outputs, and the states behind the last token, step by step as the paper has them."""
    query, key, value, log_input, log_forget = (
        item.double().numpy() for item in (query, key, value, log_input, log_forget)
    )
    matrix, keys, (whole, rest) = *(item.double().numpy() for item in state[:2]), state.exponent_BH2.double().unbind(2)
    matrix, keys, exponent = matrix.copy(), keys.copy(), (whole + rest).numpy()
    outputs = np.zeros(value.shape)
    for row, head, token in np.ndindex(BATCH, HEADS, slots.shape[1]):
        if slots[row, token] < 0:
            continue
        at, now = (row, head), (row, head, token)
        largest = max(log_forget[now] + exponent[at], log_input[now])
        forget = np.exp(log_forget[now] + exponent[at] - largest)
        written = np.exp(log_input[now] - largest)
        matrix[at] = forget * matrix[at] + written * np.outer(key[now], value[now])
        keys[at] = forget * keys[at] + written * key[now]
        exponent[at] = largest
        divisor = max(abs(query[now] @ keys[at]), np.exp(-largest)) + epsilon
        outputs[now] = query[now] @ matrix[at] / divisor
    return outputs, (matrix, keys, exponent)


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 150, recurrences.MAX_TOKENS])
@pytest.mark.parametrize("strength", [1.0, 15.0, 200.0], ids=["alike", "capped", "far apart"])
def test_a_gated_memory_is_that_of_single_tokens(num_tokens, strength):
    slots = positions(num_tokens)
    # Of one sign in each head: a divisor that all but cancels out has no digits in float32, step by step neither.
    key, query = drawn(0, BATCH, HEADS, num_tokens, KEY_DIM).abs(), drawn(1, BATCH, HEADS, num_tokens, KEY_DIM).abs()
    query[:, 1] *= -1
    value = drawn(2, BATCH, HEADS, num_tokens, VALUE_DIM)
    log_input = strength * drawn(3, BATCH, HEADS, num_tokens)
    log_forget = torch.nn.functional.logsigmoid(5 + strength * drawn(4, BATCH, HEADS, num_tokens))
    log_forget[:, 0] *= 1e-3
    exponent = torch.stack(
        [torch.round(0.5 * strength * drawn(7, BATCH, HEADS)), drawn(8, BATCH, HEADS).frac().abs()], 2
    )
    exponent[2, :, 1] = 1.0  # what half precision makes of 0.9999
    state = GatedMemory(drawn(5, BATCH, HEADS, KEY_DIM, VALUE_DIM), drawn(6, BATCH, HEADS, KEY_DIM).abs(), exponent)
    expected, states = memories_one_by_one(query, key, value, log_input, log_forget, state, 1e-3, slots)
    found, after = recurrences.gated_memory(
        query,
        key,
        value,
        log_input_BHS=log_input,
        log_forget_BHS=log_forget,
        state=state,
        epsilon=1e-3,
        order=TokenOrder(slots),
    )
    close(torch.where((slots >= 0)[:, None, :, None], found, 0.0), expected)
    for old, new in zip(state, after, strict=True):
        assert torch.equal(old[2], new[2])
    for new, wanted in zip((*after[:2], after.exponent_BH2.sum(2)), states, strict=True):
        close(new, wanted)
    whole, rest = after.exponent_BH2.unbind(2)
    assert torch.equal(whole, whole.round())
    assert 0 <= float(rest.min()) <= float(rest.max()) <= 1


def test_calls_are_as_long_as_stated_and_no_longer():
    def last_state(num_tokens):
        slots = torch.arange(num_tokens)[None].to(torch.int32)
        ones = torch.ones(1, num_tokens, 1)
        _, state = recurrences.linear_scan(ones, ones, state_BX=torch.zeros(1, 1), order=TokenOrder(slots))
        return float(state)

    assert last_state(recurrences.MAX_TOKENS) == recurrences.MAX_TOKENS
    assert last_state(recurrences.MAX_TOKENS + 1) != recurrences.MAX_TOKENS + 1
