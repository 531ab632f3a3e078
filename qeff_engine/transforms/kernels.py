"""Our recurrences in the places of those that a model's own module has, with its functions' arguments.

Which name stands for which rule is data: :mod:`qeff_engine.architectures.recurrences`.

Shape legend: that of :mod:`qeff_engine.transforms.recurrences`, and I inner channels, D axes of a state.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from qeff_engine import patching
from qeff_engine.architectures.recurrences import RULES
from qeff_engine.transforms import recurrences
from qeff_engine.transforms.cache import RetainedCache
from qeff_engine.transforms.token_order import TokenOrder

_NORM_EPSILON = 1e-6


@contextlib.contextmanager
def replaced(model: nn.Module, *, cache: RetainedCache) -> Iterator[None]:
    """Let the recurrences of a model be computed by our rules on the order and states of a cache, inside a block."""
    changes = [
        (module, name, functools.partial(_FUNCTIONS[rule], cache))
        for module in modules_of(model)
        for name, rule in RULES.items()
        if name in vars(module)
    ]
    with patching.attributes(changes):
        yield


def modules_of(model: nn.Module) -> list[Any]:
    """The Python modules that the classes of a model are defined in."""
    return [sys.modules[name] for name in sorted({type(part).__module__ for part in model.modules()})]


def gated_delta_rule(
    cache: RetainedCache,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor,
    use_qk_l2norm_in_kernel: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs [B, S, H, V] and state [B, H, K, V] of queries and keys [B, S, H, K] and values [B, S, H, V].

    ``g`` is the logarithm of the decay [B, S, H] or [B, S, H, K]; a key head may serve several value heads.
    """
    shared = value.shape[2] // key.shape[2]
    query, key = (_normalized(item) if use_qk_l2norm_in_kernel else item for item in (query, key))
    query, key = (item.repeat_interleave(shared, dim=2) if shared > 1 else item for item in (query, key))
    log_decay = g if g.ndim == 4 else g[..., None]
    output, state = recurrences.delta_rule(
        query.transpose(1, 2) * key.shape[3] ** -0.5,
        key.transpose(1, 2),
        value.transpose(1, 2),
        log_decay_BHS1K=log_decay.transpose(1, 2),
        beta_BHS=beta.transpose(1, 2),
        state_BHKV=initial_state,
        order=cache.order,
    )
    return output.transpose(1, 2), state


def grouped_state_space(
    cache: RetainedCache,
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,  # noqa: N803  # the name by which it is passed
    B: torch.Tensor,  # noqa: N803
    C: torch.Tensor,  # noqa: N803
    D: torch.Tensor | None = None,  # noqa: N803
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs [B, S, H, P] and state [B, H, P, N] of a Mamba-2 scan.

    Args:
        cache: whose order of tokens is used.
        hidden_states: inputs [B, S, H, P].
        dt: time steps [B, S, H].
        A: logarithm of the decay in a time step [H].
        B: keys [B, S, G, N].
        C: queries [B, S, G, N].
        D: weight of the input in the output [H].
        dt_bias: added to the time steps.
        initial_states: the state before the call.
        dt_softplus: whether time steps go through a softplus.
        dt_limit: least and greatest time step. transformers holds decoded tokens to none, prompts to this one; a model
            was trained with it, and so it is held to here always.
        **kwargs: how the original would compute it.
    """
    assert initial_states is not None
    dt = _time_steps(dt, bias=dt_bias, softplus=dt_softplus).clamp(dt_limit[0], dt_limit[1])
    groups = B.shape[2]
    decay_BGRS = _grouped(dt * A, groups=groups)
    output, state = recurrences.state_space(
        _grouped(hidden_states * dt[..., None], groups=groups),
        log_decay_BGRS=decay_BGRS,
        key_BGSN=B.transpose(1, 2),
        query_BGSN=C.transpose(1, 2),
        state_BGRPN=_by_group(initial_states, groups=groups),
        order=cache.order,
    )
    result = output.flatten(1, 2).transpose(1, 2)
    if D is not None:
        result = result + hidden_states * D[:, None]
    return result, state.flatten(1, 2)


def selective_scan(
    cache: RetainedCache,
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,  # noqa: N803
    B: torch.Tensor,  # noqa: N803
    C: torch.Tensor,  # noqa: N803
    D: torch.Tensor | None = None,  # noqa: N803
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs [B, I, S] and state [B, I, N] of a Mamba scan, which begins with the state that was asked for last.

    Called once for each head, it takes the state of one head after another.

    Args:
        cache: whose order of tokens and state are used.
        hidden_states: inputs [B, I, S].
        dt: time steps [B, I, S].
        A: logarithm of the decay in a time step [I, N].
        B: what of the input is written [B, N, S].
        C: what of the state is read [B, N, S].
        D: weight of the input in the output [I].
        z: gates [B, I, S].
        delta_bias: added to the time steps [I].
        delta_softplus: whether time steps go through a softplus.
        **kwargs: how the original would compute it.
    """
    bias = None if delta_bias is None else delta_bias[:, None]
    dt_BSI1 = _time_steps(dt, bias=bias, softplus=delta_softplus).transpose(1, 2)[..., None]
    inputs_BSI = hidden_states.transpose(1, 2)
    states_BSIN, state_BIN = recurrences.linear_scan(
        torch.exp(dt_BSI1 * A),
        dt_BSI1 * B.transpose(1, 2)[:, :, None] * inputs_BSI[..., None],
        state_BX=cache.take_asked(hidden_states.ndim),
        order=cache.order,
    )
    output_BSI = (states_BSIN @ C.transpose(1, 2)[..., None]).squeeze(-1)
    if D is not None:
        output_BSI = output_BSI + inputs_BSI * D
    output = output_BSI.transpose(1, 2)
    return (output if z is None else output * functional.silu(z)), state_BIN


def lightning_attention(
    self: Any, hidden_states: torch.Tensor, *args: Any, past_key_values: Any = None, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """The forward of a lightning attention: linear attention with a constant decay for each head.

    Source: https://arxiv.org/abs/2401.04658.

    Args:
        self: the module.
        hidden_states: inputs [B, S, D].
        *args: position embeddings and mask, which it does not use.
        past_key_values: a cache with an order of tokens and states [B, H, K, V].
        **kwargs: how the original would compute it.
    """
    batch, length, _ = hidden_states.shape
    heads = self.num_attention_heads
    mixed = self.act_fn(self.qkv_proj(hidden_states)).reshape(batch, length, heads, 3 * self.head_dim)
    query, key, value = mixed.transpose(1, 2).split(self.head_dim, dim=3)
    before = past_key_values.get_recurrent_state(self.layer_idx)
    state = torch.zeros(batch, heads, self.head_dim, self.head_dim) if before is None else before
    output, after = recurrences.state_space(
        value[:, :, None],
        log_decay_BGRS=-self.slope_rate[None].expand(batch, -1, -1, length),
        key_BGSN=key,
        query_BGSN=query,
        state_BGRPN=state.transpose(2, 3)[:, :, None],
        order=past_key_values.order,
    )
    past_key_values.update_recurrent_state(after[:, :, 0].transpose(2, 3), self.layer_idx)
    joined = self.norm(output[:, :, 0].transpose(1, 2).reshape(batch, length, heads * self.head_dim))
    return self.out_proj(torch.sigmoid(self.output_gate(hidden_states)) * joined), None


def griffin_block(
    self: Any,
    input_states: torch.Tensor,
    position_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    use_cache: bool = True,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The forward of a recurrent block of Griffin, with its states [B, D, K] and [B, D] in the cache.

    Source: https://arxiv.org/abs/2402.19427.
    """
    number, order = self.layer_idx, past_key_values.order
    columns = past_key_values.update_conv_state(self.linear_x(input_states).transpose(1, 2), number)
    length, seen = input_states.shape[1], columns.shape[2]
    mixed = self.conv_1d(columns)[..., :seen][..., -length:].transpose(1, 2)
    before = past_key_values.get_recurrent_state(number)
    self.rg_lru.recurrent_states = (before, order)
    recurred = self.rg_lru(mixed, order.slots_BS)
    past_key_values.update_recurrent_state(self.rg_lru.recurrent_states, number)
    self.rg_lru.recurrent_states = None
    return self.linear_out(recurred * self.act_fn(self.linear_y(input_states))), None


def griffin_scan(
    self: Any,
    hidden_states: torch.Tensor,
    recurrent_gate: torch.Tensor,
    reset: torch.Tensor,
    recurrent_states: tuple[torch.Tensor, TokenOrder],
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scan of such a block: states [B, S, D] and the last one. The order of the tokens comes beside the state."""
    before, order = recurrent_states
    state = hidden_states[:, 0] * 0 if before is None else before
    return recurrences.linear_scan(recurrent_gate * ~reset, hidden_states, state_BX=state, order=order)


_FUNCTIONS = {item.__name__: item for item in (gated_delta_rule, grouped_state_space, selective_scan)}


def _normalized(vectors: torch.Tensor) -> torch.Tensor:
    return vectors * torch.rsqrt((vectors * vectors).sum(-1, keepdim=True) + _NORM_EPSILON)


def _time_steps(dt: torch.Tensor, *, bias: torch.Tensor | None, softplus: bool) -> torch.Tensor:
    shifted = dt if bias is None else dt + bias
    return functional.softplus(shifted) if softplus else shifted


def _grouped(values_BSHX: torch.Tensor, *, groups: int) -> torch.Tensor:
    """[B, S, H, X] as [B, G, R, S, X]."""
    return _by_group(values_BSHX.transpose(1, 2), groups=groups)


def _by_group(values_BHX: torch.Tensor, *, groups: int) -> torch.Tensor:
    batch, heads, *rest = values_BHX.shape
    return values_BHX.reshape(batch, groups, heads // groups, *rest)
