"""Models whose layers are passed their states one by one: RWKV-4 and xLSTM, with a cache in the place of the states.

A shift of tokens is a convolution of two columns, of which the state keeps the one that belongs to the last token.

Shape legend: B batch, S tokens of this call, D hidden size, C channels of a recurrence, H heads, K key dimension,
V value dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers.models.rwkv.modeling_rwkv import RwkvOutput
from transformers.models.xlstm.modeling_xlstm import xLSTMOutput

from qeff_engine.transforms import recurrences
from qeff_engine.transforms.recurrences import GatedMemory, Weighted


def rwkv_blocks(
    self: Any, input_ids: torch.Tensor, *, inputs_embeds: torch.Tensor | None = None, state: Any = None, **kwargs: Any
) -> Any:
    """The forward of an RWKV model.

    Every so many blocks what is added to the hidden states becomes half of what it was. Weights are left as they are:
    each block is told its factor as a tensor, so that blocks with different factors are the same code.

    Args:
        self: the module.
        input_ids: tokens [B, S].
        inputs_embeds: their embeddings [B, S, D], if they are known.
        state: a cache with an order of tokens.
        **kwargs: how the original would compute it.
    """
    hidden_BSD = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
    halved_every = self.config.rescale_every
    factor = 1.0
    for number, block in enumerate(self.blocks):
        hidden_BSD = block(hidden_BSD, state=(state, torch.full((), factor)))[0]
        if halved_every > 0 and (number + 1) % halved_every == 0:
            hidden_BSD, factor = hidden_BSD / 2, factor / 2
    return RwkvOutput(last_hidden_state=self.ln_out(hidden_BSD), state=state)


def rwkv_block(self: Any, hidden: torch.Tensor, state: Any, **kwargs: Any) -> tuple[torch.Tensor, None, None]:
    """The forward of a block of RWKV-4.

    Source: https://arxiv.org/abs/2305.13048.

    Args:
        self: the module.
        hidden: inputs [B, S, D].
        state: a cache with an order of tokens, and the factor of what the block adds.
        **kwargs: how the original would compute it.
    """
    cache, factor = state
    if hasattr(self, "pre_ln"):
        hidden = self.pre_ln(hidden)
    hidden = hidden + factor * _rwkv_attention(self.attention, self.ln1(hidden), cache=cache)
    hidden = hidden + factor * _rwkv_feed_forward(self.feed_forward, self.ln2(hidden), cache=cache)
    return hidden, None, None


def _rwkv_attention(module: Any, hidden_BSD: torch.Tensor, *, cache: Any) -> torch.Tensor:
    before_BSD = _shifted(hidden_BSD, cache=cache, number=module.layer_id, state_idx=0)
    key_BSC = module.key(_mixed(hidden_BSD, before_BSD, share=module.time_mix_key))
    value_BSC = module.value(_mixed(hidden_BSD, before_BSD, share=module.time_mix_value))
    receptance_BSC = module.receptance(_mixed(hidden_BSD, before_BSD, share=module.time_mix_receptance))
    shape = (key_BSC.shape[0], key_BSC.shape[2])
    average_BSC, after = recurrences.weighted_average(
        key_BSC,
        value_BSC,
        log_decay_C=-torch.exp(module.time_decay),
        bonus_C=module.time_first,
        state_BC=Weighted(*_states(cache, module.layer_id, shapes=[shape] * 3)),
        order=cache.order,
    )
    for index, successor in enumerate(after):
        cache.update_recurrent_state(successor, module.layer_id, index)
    output_BSD: torch.Tensor = module.output(torch.sigmoid(receptance_BSC) * average_BSC)
    return output_BSD


def _rwkv_feed_forward(module: Any, hidden_BSD: torch.Tensor, *, cache: Any) -> torch.Tensor:
    before_BSD = _shifted(hidden_BSD, cache=cache, number=module.layer_id, state_idx=1)
    key = torch.relu(module.key(_mixed(hidden_BSD, before_BSD, share=module.time_mix_key)))
    receptance_BSD = module.receptance(_mixed(hidden_BSD, before_BSD, share=module.time_mix_receptance))
    output_BSD: torch.Tensor = torch.sigmoid(receptance_BSD) * module.value(key * key)
    return output_BSD


def _shifted(hidden_BSD: torch.Tensor, *, cache: Any, number: int, state_idx: int) -> torch.Tensor:
    """What the token before each one had; zeros before the first."""
    length = hidden_BSD.shape[1]
    columns = cache.update_conv_state(hidden_BSD.transpose(1, 2), number, state_idx, conv_kernel_size=1)
    before_BDS: torch.Tensor = functional.pad(columns, (1, 0))[..., -(length + 1) : -1]
    return before_BDS.transpose(1, 2)


def _mixed(new: torch.Tensor, before: torch.Tensor, *, share: torch.Tensor) -> torch.Tensor:
    return before + share * (new - before)


def xlstm_blocks(
    self: Any,
    input_ids: torch.Tensor | None = None,
    *,
    inputs_embeds: torch.Tensor | None = None,
    cache_params: Any = None,
    **kwargs: Any,
) -> Any:
    """The forward of an xLSTM model. It passes each block the cache and its number.

    Args:
        self: the module.
        input_ids: tokens [B, S].
        inputs_embeds: their embeddings [B, S, D], if they are known.
        cache_params: a cache with an order of tokens.
        **kwargs: how the original would compute it.
    """
    hidden_BSD = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
    for number, block in enumerate(self.blocks):
        hidden_BSD = block(hidden_BSD, cache_params, layer_idx=number)[0]
    return xLSTMOutput(last_hidden_state=self.out_norm(hidden_BSD), cache_params=cache_params)


def xlstm_block(self: Any, x: torch.Tensor, state: Any, layer_idx: int) -> tuple[torch.Tensor, None]:
    """The forward of a block of xLSTM.

    Args:
        self: the module.
        x: inputs [B, S, D].
        state: a cache with an order of tokens.
        layer_idx: number of the block.
    """
    # The layer takes three states and hands them on to its memory untouched.
    x = x + self.mlstm_layer(self.norm_mlstm(x), (state, layer_idx, None))[0]
    return x + self.ffn(self.norm_ffn(x)), None


def xlstm_memory(
    self: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    igate: torch.Tensor,
    fgate: torch.Tensor,
    c_initial: Any,
    n_initial: int,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The memory of a layer of xLSTM: outputs [B, H, S, V].

    Source: https://arxiv.org/abs/2405.04517.

    Args:
        self: the module.
        query: queries [B, H, S, K].
        key: keys [B, H, S, K].
        value: values [B, H, S, V].
        igate: logarithms of the input gates [B, H, S].
        fgate: forget gates in front of their sigmoid [B, H, S].
        c_initial: a cache with an order of tokens.
        n_initial: number of the layer.
        **kwargs: how the original would compute it.
    """
    cache, number = c_initial, n_initial
    heads, key_dim, value_dim = key.shape[:2], key.shape[3], value.shape[3]
    before = _states(cache, number, shapes=[(*heads, key_dim, value_dim), (*heads, key_dim), (*heads, 2)])
    output_BHSV, after = recurrences.gated_memory(
        query * query.shape[-1] ** -0.5,
        key,
        value,
        log_input_BHS=igate,
        log_forget_BHS=functional.logsigmoid(fgate),
        state=GatedMemory(*before),
        epsilon=self.config.eps,
        order=cache.order,
    )
    for index, successor in enumerate(after):
        cache.update_recurrent_state(successor, number, index)
    return output_BHSV, None


def _states(cache: Any, number: int, *, shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    """The recurrent states of a layer before a call; zeros of these shapes where a cache has none yet."""
    states = [cache.get_recurrent_state(number, index) for index in range(len(shapes))]
    return [torch.zeros(shape) if state is None else state for shape, state in zip(shapes, states, strict=True)]
