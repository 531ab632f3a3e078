"""Mixtures of experts as batched matrix products over all experts: nothing in the graph depends on the routing but
the weights of a sum.

The code of transformers computes the chosen experts alone, by sorting tokens or by loops over the experts that were
hit. A program of the card has one size for everything, so its compiler refuses both. Of the forms that it takes, this
one reads each expert's weights once per call, as constants that can be compressed, and needs neither control flow nor
copies of weights. Gathering the weights of the chosen experts instead, k for each of T tokens, reads less where
T * k < E, that is in decoding few sequences, but copies more than all weights in prefill, and one graph serves both.
The price is arithmetic: E / k times that of the chosen experts.

Shape legend: T tokens, k experts per token, E experts, D hidden size, I intermediate size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers.integrations import moe

from qeff_engine import patching


@contextlib.contextmanager
def batched() -> Iterator[None]:
    """Let every experts module of transformers' interface compute all experts, for the time of a block."""
    with patching.attributes([(moe.ExpertsInterface, "get_interface", lambda *_: of_interface)]):
        yield


def of_interface(self: Any, hidden_TD: torch.Tensor, index_Tk: torch.Tensor, weights_Tk: torch.Tensor) -> torch.Tensor:
    """The forward of a class that transformers' ``use_experts_implementation`` decorates.

    Its flags say how weights are laid out (``is_transposed``: input axis before output axis) and whether there are
    gates, biases and a norm behind each expert.
    """
    name = "gate_up_proj" if self.has_gate else "up_proj"
    hidden_ETI = _products(self, name, hidden_TD[None])
    hidden_ETI = self._apply_gate(hidden_ETI) if self.has_gate else self.act_fn(hidden_ETI)
    outputs_ETD = _products(self, "down_proj", hidden_ETI)
    if self.has_post_expert_norm:
        outputs_ETD = self.post_expert_norm(outputs_ETD)
    return weighted_sum(outputs_ETD, index_Tk=index_Tk, weights_Tk=weights_Tk).to(hidden_TD.dtype)


def _products(module: Any, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """Inputs [E or 1, T, in] times the weight of that name of each expert."""
    weight = getattr(module, name)
    products: torch.Tensor = inputs @ (weight if module.is_transposed else weight.transpose(1, 2))
    if module.has_bias:
        products = products + getattr(module, f"{name}_bias")[:, None]
    return products


def weighted_sum(outputs_ETD: torch.Tensor, *, index_Tk: torch.Tensor, weights_Tk: torch.Tensor) -> torch.Tensor:
    """The outputs [T, D] of the experts in ``index`` with their weights; an index of E or more counts nothing.

    What other experts make of a token may be infinite in 16 bits, so it is replaced and not multiplied by zero.
    """
    chosen_TkE = index_Tk[:, :, None] == torch.arange(outputs_ETD.shape[0])
    weights_TE = torch.where(chosen_TkE, weights_Tk[:, :, None], 0.0).sum(1)
    weighted_ETD = outputs_ETD * weights_TE.T[:, :, None]
    return torch.where(chosen_TkE.any(1).T[:, :, None], weighted_ETD, 0.0).sum(0)


def with_halves(activation: Callable[[torch.Tensor], torch.Tensor], gate_up_ETI: torch.Tensor) -> torch.Tensor:
    """A gated activation whose gates are the first half of the last axis."""
    gate_ETI, up_ETI = gate_up_ETI.chunk(2, dim=-1)
    return activation(gate_ETI) * up_ETI


def dbrx(self: Any, hidden: torch.Tensor, index_Tk: torch.Tensor, weights_Tk: torch.Tensor) -> torch.Tensor:
    """The forward of ``DbrxExperts``: all experts lie in one matrix, one below the other; ``hidden`` is [B, S, D]."""
    glu = self.mlp
    gate_EID, up_EID, down_EID = (
        weight.view(self.num_experts, self.ffn_hidden_size, self.hidden_size) for weight in (glu.w1, glu.v1, glu.w2)
    )
    hidden_TD = hidden.reshape(-1, self.hidden_size)
    hidden_ETI = glu.activation_fn(hidden_TD @ gate_EID.transpose(1, 2)) * (hidden_TD @ up_EID.transpose(1, 2))
    summed_TD = weighted_sum(hidden_ETI @ down_EID, index_Tk=index_Tk, weights_Tk=weights_Tk)
    return summed_TD.view(hidden.shape)


def longcat_flash(self: Any, hidden_TD: torch.Tensor, index_Tk: torch.Tensor, weights_Tk: torch.Tensor) -> torch.Tensor:
    """The forward of ``LongcatFlashExperts``: experts behind the routed ones give back what they get."""
    given_T = torch.where(index_Tk >= self.num_routed_experts, weights_Tk, 0.0).sum(1)
    summed_TD = hidden_TD * given_T[:, None]
    if self.gate_up_proj is None:
        return summed_TD
    gate_up_EID = self.gate_up_proj[: self.num_routed_experts]
    hidden_ETI = with_halves(self.act_fn, hidden_TD @ gate_up_EID.transpose(1, 2))
    outputs_ETD = hidden_ETI @ self.down_proj.transpose(1, 2)
    return summed_TD + weighted_sum(outputs_ETD, index_Tk=index_Tk, weights_Tk=weights_Tk)


def jetmoe(self: Any, inputs_BSD: torch.Tensor) -> torch.Tensor:
    """The forward of ``JetMoeMoE``."""
    inputs_TD = inputs_BSD.reshape(-1, self.input_size)
    index_Tk, gates_Tk = _jetmoe_routing(self.router, inputs_TD)
    hidden_ETI = with_halves(self.activation, inputs_TD @ self.input_linear.weight.transpose(1, 2))
    outputs_ETD = hidden_ETI @ self.output_linear.weight.transpose(1, 2)
    summed_TD: torch.Tensor = weighted_sum(outputs_ETD, index_Tk=index_Tk, weights_Tk=gates_Tk) + self.bias
    return summed_TD.view(inputs_BSD.shape)


def jetmoe_queries(self: Any, inputs_BSD: torch.Tensor) -> tuple[torch.Tensor, None, tuple[torch.Tensor, torch.Tensor]]:
    """``JetMoeMoA.map``: the queries [B, S, k, width] of the chosen experts, nothing, and what was chosen."""
    batch_size, seq_len, _ = inputs_BSD.shape
    inputs_TD = inputs_BSD.reshape(-1, self.input_size)
    index_Tk, gates_Tk = _jetmoe_routing(self.router, inputs_TD)
    queries_TEQ = (inputs_TD @ self.input_linear.weight.transpose(1, 2)).transpose(0, 1)
    queries_TkQ = queries_TEQ.gather(1, index_Tk[:, :, None].expand(-1, -1, self.hidden_size))
    return queries_TkQ.view(batch_size, seq_len, self.top_k, self.hidden_size), None, (index_Tk, gates_Tk)


def jetmoe_outputs(self: Any, attended_BSkQ: torch.Tensor, chosen: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """``JetMoeMoA.reduce``: the output [B, S, D] of what :func:`jetmoe_queries` asked."""
    batch_size, seq_len, num_chosen, width = attended_BSkQ.shape
    index_Tk, gates_Tk = chosen
    attended_TkQ = attended_BSkQ.reshape(-1, num_chosen, width)
    chosen_ETk = index_Tk == torch.arange(self.num_experts)[:, None, None]
    attended_ETQ = torch.where(chosen_ETk[..., None], attended_TkQ, 0.0).sum(2)
    outputs_ETD = attended_ETQ @ self.output_linear.weight.transpose(1, 2)
    summed_TD: torch.Tensor = weighted_sum(outputs_ETD, index_Tk=index_Tk, weights_Tk=gates_Tk) + self.bias
    return summed_TD.view(batch_size, seq_len, self.input_size)


def _jetmoe_routing(router: Any, inputs_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits_Tk, index_Tk = router.layer(inputs_TD).float().topk(router.top_k, dim=1)
    return index_Tk, torch.softmax(logits_Tk, dim=1)
