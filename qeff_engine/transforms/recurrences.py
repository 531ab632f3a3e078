"""Recurrences over the tokens of a call in closed form: plain matrix products, no loop, whatever the number of tokens.

A token at a time is no form for a graph: a loop in it is no documented operator of the card's compiler, and unrolled it
grows with the traced length. Here the whole call is one chunk. What padding would write or decay is masked, so states
pass it unchanged.

:func:`delta_rule` and :func:`linear_scan` double what they cover :data:`LEVELS` times; a call has at most
:data:`MAX_TOKENS` tokens. Decays are taken over blocks that end or begin where two halves meet, so every factor is at
most one: nothing overflows, and no difference of large sums loses digits.

Sources: gated delta rule, https://arxiv.org/abs/2412.06464; its chunked form, https://arxiv.org/abs/2406.06484; decays
per channel, https://arxiv.org/abs/2510.26692; state-space duality, https://arxiv.org/abs/2405.21060; selective scan,
https://arxiv.org/abs/2312.00752.

Shape legend: B batch, H heads, G groups of heads, R heads of a group, S and T tokens of a call, K key dimension,
V value dimension, N state dimension, P head dimension, X any further axes. An axis called 1K is 1 or K long.
"""

from __future__ import annotations

import torch

from qeff_engine.transforms.token_order import TokenOrder

LEVELS = 10
MAX_TOKENS = 2**LEVELS


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


def _later(values_BSX: torch.Tensor, num_tokens: int, *, fill: float) -> torch.Tensor:
    """The values of each token moved to the one ``num_tokens`` behind it."""
    behind_first = [0, 0] * (values_BSX.ndim - 2)
    moved = torch.nn.functional.pad(values_BSX, [*behind_first, num_tokens, 0], value=fill)
    return moved[:, : values_BSX.shape[1]]


def _with_heads(mask_BST: torch.Tensor) -> torch.Tensor:
    return mask_BST[:, None]
