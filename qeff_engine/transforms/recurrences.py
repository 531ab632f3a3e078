"""Recurrences over the tokens of a call in closed form: plain matrix products, no loop, whatever the number of tokens.

A token at a time is no form for a graph: a loop in it is no documented operator of the card's compiler, and unrolled it
grows with the traced length. Here the whole call is one chunk. What padding would write or decay is masked, so states
pass it unchanged.

:func:`delta_rule` and :func:`linear_scan` double what they cover :data:`LEVELS` times; a call has at most
:data:`MAX_TOKENS` tokens. Decays are taken over blocks that end or begin where two halves meet, so every factor is at
most one: nothing overflows, and no difference of large sums loses digits.

:func:`weighted_average` and :func:`gated_memory` weigh tokens by exponentials without a bound. Weights are kept
relative to an exponent, about the largest that went into them. The whole part of an exponent is kept apart:
a card that computes in half precision then loses no small decay beside it.

Sources: gated delta rule, https://arxiv.org/abs/2412.06464; its chunked form, https://arxiv.org/abs/2406.06484; decays
per channel, https://arxiv.org/abs/2510.26692; state-space duality, https://arxiv.org/abs/2405.21060; selective scan,
https://arxiv.org/abs/2312.00752; weighted average of RWKV-4, https://arxiv.org/abs/2305.13048; matrix memory of xLSTM,
https://arxiv.org/abs/2405.04517.

Shape legend: B batch, H heads, G groups of heads, R heads of a group, S and T tokens of a call, K key dimension,
V value dimension, N state dimension, P head dimension, C channels, X any further axes. An axis called 1K is 1 or K
long.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from qeff_engine.transforms.token_order import TokenOrder

LEVELS = 10
MAX_TOKENS = 2**LEVELS

# The logarithm of no weight at all: its exponential is 0 beside any other, and half precision has it.
_NOTHING = -30000.0
# Below any weight that is not 0: each is at least 1 at first, and merged ten times by factors of at least exp(-1/2).
_LEAST_WEIGHT = 1e-3


def delta_rule(
    query_BHSK: torch.Tensor,
    key_BHSK: torch.Tensor,
    value_BHSV: torch.Tensor,
    *,
    log_decay_BHS1K: torch.Tensor,
    beta_BHS: torch.Tensor,
    state_BHKV: torch.Tensor,
    order: TokenOrder,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gated delta rule: ``S = decay S``, ``S = S + k beta (v - k S)``, ``o = q S`` for each token.

    Args:
        query_BHSK: scaled queries.
        key_BHSK: keys, normalized.
        value_BHSV: values.
        log_decay_BHS1K: logarithm of the decay, at most 0; one for a head or one for each channel of its keys.
        beta_BHS: how much of the difference is written.
        state_BHKV: before the call.
        order: of the tokens.

    Returns:
        Outputs [B, H, S, V] and the state after the call. Outputs of padding mean nothing.
    """
    real = order.is_real_BS[:, None, :, None]
    zero = torch.zeros(())
    decay = torch.where(real, log_decay_BHS1K, zero)
    beta = torch.where(real, beta_BHS[..., None], zero)
    up_to = _with_heads(order.precedes_BST | order.is_same_BST)
    precedes = _with_heads(order.precedes_BST)
    follows = precedes.transpose(-1, -2)
    block = _with_heads(order.is_same_BST)
    inverse = block.float()
    attention = inverse * (query_BHSK * key_BHSK).sum(-1, keepdim=True)
    for level in range(LEVELS):
        wider = _with_heads(order.in_one_block_BST(2 ** (level + 1)))
        pair = wider & ~block & precedes
        # Between T and S lie the rest of the block of T and the beginning of the next one, which is that of S.
        head = torch.exp((up_to & block).float() @ decay)
        rest = torch.exp((follows & block).float() @ decay)
        keys_BHKT = (key_BHSK * rest).transpose(-1, -2)
        attention = torch.where(pair, (query_BHSK * head) @ keys_BHKT, attention)
        overlap = torch.where(pair, beta * ((key_BHSK * head) @ keys_BHKT), zero)
        inverse = inverse - inverse @ overlap @ inverse
        block = wider
    before = torch.exp(up_to.float() @ decay)
    after = torch.exp(follows.float() @ decay)
    written_BHSV = inverse @ (beta * (value_BHSV - (key_BHSK * before) @ state_BHKV))
    output_BHSV = (query_BHSK * before) @ state_BHKV + attention @ written_BHSV
    kept = torch.exp(decay.sum(2))[..., None] * state_BHKV
    return output_BHSV, kept + (key_BHSK * after).transpose(-1, -2) @ written_BHSV


def state_space(
    input_BGRSP: torch.Tensor,
    *,
    log_decay_BGRS: torch.Tensor,
    key_BGSN: torch.Tensor,
    query_BGSN: torch.Tensor,
    state_BGRPN: torch.Tensor,
    order: TokenOrder,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear attention with a decay for each head: ``S = decay S + x k``, ``o = S q`` for each token.

    Args:
        input_BGRSP: what is written.
        log_decay_BGRS: logarithm of the decay, at most 0.
        key_BGSN: where it is written, the same for the heads of a group.
        query_BGSN: from where it is read.
        state_BGRPN: before the call.
        order: of the tokens.

    Returns:
        Outputs [B, G, R, S, P] and the state after the call. Outputs of padding mean nothing.
    """
    real = order.is_real_BS[:, None, None, :, None]
    zero = torch.zeros(())
    decay = torch.where(real, log_decay_BGRS[..., None], zero)
    written = torch.where(real, input_BGRSP, zero)
    up_to = (order.precedes_BST | order.is_same_BST)[:, None, None]
    precedes = order.precedes_BST[:, None, None]
    # The sum of the decays behind T up to S, for each pair.
    between = up_to.float() @ (decay * precedes.float())
    scores = (query_BGSN @ key_BGSN.transpose(-1, -2))[:, :, None]
    weights = torch.where(up_to, scores * torch.exp(between), zero)
    before = torch.exp(up_to.float() @ decay)
    after = torch.exp(precedes.transpose(-1, -2).float() @ decay)
    read = (query_BGSN[:, :, None] * before) @ state_BGRPN.transpose(-1, -2)
    added = written.transpose(-1, -2) @ (key_BGSN[:, :, None] * after)
    kept = torch.exp(decay.sum(3))[..., None] * state_BGRPN
    return weights @ written + read, kept + added


def linear_scan(
    decay_BSX: torch.Tensor, added_BSX: torch.Tensor, *, state_BX: torch.Tensor, order: TokenOrder
) -> tuple[torch.Tensor, torch.Tensor]:
    """``s = decay s + added`` for each token and element.

    Args:
        decay_BSX: factors between 0 and 1.
        added_BSX: what is added.
        state_BX: before the call.
        order: of the tokens.

    Returns:
        The states [B, S, X] behind each token, and the state [B, X] after the call.
    """
    real = order.is_real_BS.reshape(*order.is_real_BS.shape, *(1 for _ in decay_BSX.shape[2:]))
    decay = torch.where(real, decay_BSX, torch.ones(()))
    total = torch.where(real, added_BSX, torch.zeros(()))
    for level in range(LEVELS):
        total = total + decay * _later(total, 2**level, fill=0.0)
        decay = decay * _later(decay, 2**level, fill=1.0)
    states_BSX = total + decay * state_BX[:, None]
    return states_BSX, states_BSX[:, -1]


class Weighted(NamedTuple):
    """An average and the weight that it has.

    Attributes:
        average: of values.
        weight: its weight, divided by the exponential of ``exponent``; 0 when there is nothing in it.
        exponent: a whole number, by which the weight is kept in range. Half precision has those up to 2048, and a
            slow decay is not lost in them.
    """

    average: torch.Tensor
    weight: torch.Tensor
    exponent: torch.Tensor

    def decayed(self, log_decay: torch.Tensor) -> Weighted:
        """The same with less weight."""
        whole = torch.round(log_decay)
        return Weighted(
            average=self.average, weight=self.weight * torch.exp(log_decay - whole), exponent=self.exponent + whole
        )

    def plus(self, other: Weighted) -> Weighted:
        """The average of both."""
        exponent = torch.maximum(self.exponent, other.exponent)
        others = other.weight * torch.exp(other.exponent - exponent)
        weight = self.weight * torch.exp(self.exponent - exponent) + others
        share = others / weight.clamp(min=_LEAST_WEIGHT)
        return Weighted(average=self.average + share * (other.average - self.average), weight=weight, exponent=exponent)


def weighted_average(
    key_BSC: torch.Tensor,
    value_BSC: torch.Tensor,
    *,
    log_decay_C: torch.Tensor,
    bonus_C: torch.Tensor,
    state_BC: Weighted,
    order: TokenOrder,
) -> tuple[torch.Tensor, Weighted]:
    """Averages of values weighted by ``exp(key)``, of which older tokens keep less and less.

    For each token and channel ``o = (s + exp(key + bonus) value) / (z + exp(key + bonus))``, and then
    ``s = exp(log_decay) s + exp(key) value``, ``z = exp(log_decay) z + exp(key)``.

    Args:
        key_BSC: logarithms of the weights, above -30000.
        value_BSC: values.
        log_decay_C: logarithm of the decay from a token to the next, at most 0.
        bonus_C: what the logarithm of a token's own weight has more than it has later.
        state_BC: the average ``s / z`` and its weight ``z`` before the call.
        order: of the tokens.

    Returns:
        Averages [B, S, C] and the state after the call. Averages of padding mean nothing.
    """
    real = order.is_real_BS[..., None]
    nothing = torch.full((), _NOTHING)
    count = real.to(key_BSC.dtype)  # of the real tokens in what has been covered
    single = _single(key_BSC, value_BSC)
    covered = Weighted(
        average=torch.where(real, single.average, torch.zeros(())),
        weight=torch.where(real, single.weight, torch.zeros(())),
        exponent=torch.where(real, single.exponent, nothing),
    )
    for level in range(LEVELS):
        earlier = Weighted(
            average=_later(covered.average, 2**level, fill=0.0),
            weight=_later(covered.weight, 2**level, fill=0.0),
            exponent=_later(covered.exponent, 2**level, fill=_NOTHING),
        )
        covered = covered.plus(earlier.decayed(count * log_decay_C))
        count = count + _later(count, 2**level, fill=0.0)
    known = torch.where(state_BC.weight > 0, state_BC.exponent, nothing)
    first = Weighted(*(part[:, None] for part in state_BC._replace(exponent=known)))
    behind = covered.plus(first.decayed(count * log_decay_C))
    before = Weighted(*(torch.cat([one, rest[:, :-1]], dim=1) for one, rest in zip(first, behind, strict=True)))
    output = before.plus(_single(key_BSC + bonus_C, value_BSC))
    return output.average, _behind_last(behind, before=state_BC, order=order)


def _single(log_weight: torch.Tensor, value: torch.Tensor) -> Weighted:
    exponent = torch.floor(log_weight)
    return Weighted(average=value, weight=torch.exp(log_weight - exponent), exponent=exponent)


def _behind_last(behind_BSC: Weighted, *, before: Weighted, order: TokenOrder) -> Weighted:
    """What stands behind the last token of each row, weighing 1 to e; a row without tokens keeps what was before."""
    average, weight, exponent = (part[:, -1] for part in behind_BSC)
    whole = torch.floor(torch.log(weight.clamp(min=_LEAST_WEIGHT)))
    after = Weighted(average=average, weight=weight * torch.exp(-whole), exponent=exponent + whole)
    has_tokens = order.num_real_B[:, None] > 0
    return Weighted(*(torch.where(has_tokens, new, old) for new, old in zip(after, before, strict=True)))


class GatedMemory(NamedTuple):
    """The state of :func:`gated_memory`, relative to an exponential.

    Attributes:
        matrix_BHKV: sum of keys and values.
        keys_BHK: sum of keys.
        exponent_BH2: the largest of the logarithms that the tokens' weights have now, and of what the beginning's,
            which was 0, has become. It is a whole number and the rest below 1: half precision would otherwise lose
            slow decays in it.
    """

    matrix_BHKV: torch.Tensor
    keys_BHK: torch.Tensor
    exponent_BH2: torch.Tensor


def gated_memory(
    query_BHSK: torch.Tensor,
    key_BHSK: torch.Tensor,
    value_BHSV: torch.Tensor,
    *,
    log_input_BHS: torch.Tensor,
    log_forget_BHS: torch.Tensor,
    state: GatedMemory,
    epsilon: float,
    order: TokenOrder,
) -> tuple[torch.Tensor, GatedMemory]:
    """A matrix memory with exponential gates: ``C = f C + i k v``, ``n = f n + i k`` for each token.

    Read by ``o = q C / (max(|q n|, 1) + epsilon exp(m))``, where ``m = max(m + log f, log i)`` is the exponent that
    both are kept relative to.

    Args:
        query_BHSK: scaled queries.
        key_BHSK: keys.
        value_BHSV: values.
        log_input_BHS: logarithm of ``i``, above -30000.
        log_forget_BHS: logarithm of ``f``, at most 0.
        state: before the call.
        epsilon: added to the divisor.
        order: of the tokens.

    Returns:
        Outputs [B, H, S, V] and the state after the call. Outputs of padding mean nothing.
    """
    # Logarithms are relative to the whole part of the exponent.
    whole_BH11, rest_BH11 = state.exponent_BH2[:, :, :1, None], state.exponent_BH2[:, :, 1:, None]
    real = order.is_real_BS[:, None, :, None]
    decay = torch.where(real, log_forget_BHS[..., None], torch.zeros(()))
    gate = torch.where(real, log_input_BHS[..., None] - whole_BH11, torch.full((), _NOTHING))
    precedes = _with_heads(order.precedes_BST)
    up_to = precedes | _with_heads(order.is_same_BST)
    between = up_to.to(decay.dtype) @ (decay * precedes.to(decay.dtype))
    log_weights = torch.where(up_to, between + gate.transpose(-1, -2), torch.full((), _NOTHING))
    carried = up_to.to(decay.dtype) @ decay + rest_BH11
    largest = torch.maximum(log_weights.amax(-1, keepdim=True), carried)
    attention = (query_BHSK @ key_BHSK.transpose(-1, -2)) * torch.exp(log_weights - largest)
    read = query_BHSK * torch.exp(carried - largest)
    output = attention @ value_BHSV + read @ state.matrix_BHKV
    divisor = attention.sum(-1, keepdim=True) + read @ state.keys_BHK[..., None]
    # Both sides of the quotient by what keeps exp(-exponent), of weak gates alone, from growing out of range.
    exponent = largest + whole_BH11
    shrink = torch.exp(exponent.clamp(max=0.0))
    least = torch.exp(-exponent.clamp(min=0.0))
    output = output * shrink / (torch.maximum(divisor.abs() * shrink, least) + epsilon * shrink)
    return output, _memory_behind(
        state, key_BHSK=key_BHSK, value_BHSV=value_BHSV, decay_BHS1=decay, gate_BHS1=gate, order=order
    )


def _memory_behind(
    before: GatedMemory,
    *,
    key_BHSK: torch.Tensor,
    value_BHSV: torch.Tensor,
    decay_BHS1: torch.Tensor,
    gate_BHS1: torch.Tensor,
    order: TokenOrder,
) -> GatedMemory:
    """The state after a call; padding has no decay and its gate is nothing."""
    whole_BH1, rest_BH1 = before.exponent_BH2[..., :1], before.exponent_BH2[..., 1:]
    follows = _with_heads(order.precedes_BST).transpose(-1, -2).to(decay_BHS1.dtype)
    log_weights = follows @ decay_BHS1 + gate_BHS1
    kept = decay_BHS1.sum(2) + rest_BH1
    largest = torch.maximum(kept, log_weights.amax(2))
    keys = key_BHSK * torch.exp(log_weights - largest[:, :, None])
    factor = torch.exp(kept - largest)
    more = torch.floor(largest)
    exponent_BH2 = torch.cat([whole_BH1 + more, largest - more], dim=-1)
    has_tokens = order.num_real_B[:, None, None] > 0
    return GatedMemory(
        matrix_BHKV=factor[..., None] * before.matrix_BHKV + keys.transpose(-1, -2) @ value_BHSV,
        keys_BHK=factor * before.keys_BHK + keys.sum(2),
        exponent_BH2=torch.where(has_tokens, exponent_BH2, before.exponent_BH2),
    )


def _later(values_BSX: torch.Tensor, num_tokens: int, *, fill: float) -> torch.Tensor:
    """The values of each token moved to the one ``num_tokens`` behind it."""
    behind_first = [0, 0] * (values_BSX.ndim - 2)
    moved = torch.nn.functional.pad(values_BSX, [*behind_first, num_tokens, 0], value=fill)
    return moved[:, : values_BSX.shape[1]]


def _with_heads(mask_BST: torch.Tensor) -> torch.Tensor:
    return mask_BST[:, None]
