"""Experts computed all at once give what the loops of transformers over the chosen ones give."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.models.aria.modeling_aria import AriaExperts
from transformers.models.dbrx.modeling_dbrx import DbrxExperts
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.jetmoe.modeling_jetmoe import JetMoeMoA, JetMoeMoE
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.muse_spark.modeling_muse_spark import MuseSparkExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from qeff_engine.transforms import experts

EXPERTS, CHOSEN, TOKENS, HIDDEN, INNER = 5, 2, 19, 16, 12
NAMES_OF_SIZES = {
    EXPERTS: ("num_local_experts", "moe_num_experts", "n_routed_experts", "num_experts"),
    HIDDEN: ("hidden_size", "moe_hidden_size", "moe_latent_size"),
    INNER: ("intermediate_size", "moe_intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size"),
    CHOSEN: ("num_experts_per_tok", "zero_expert_num", "num_key_value_heads"),
}
CONFIG = SimpleNamespace(
    **{name: size for size, names in NAMES_OF_SIZES.items() for name in names},
    hidden_act="silu",
    mlp_hidden_act="relu2",
    activation_function="silu",
    ffn_act_fn={"name": "silu"},
    swiglu_alpha=1.7,
    swiglu_limit=0.5,
    rms_norm_eps=1e-6,
    post_norm_eps=1e-6,
    kv_channels=4,
    _experts_implementation="eager",
)


def made(kind):
    torch.manual_seed(0)
    module = kind(CONFIG).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5)
    return module


def routed(num_experts):
    """Hidden states, and experts and weights that differ between tokens; no expert twice for one token."""
    generator = torch.Generator().manual_seed(1)
    scores_TE = torch.rand(TOKENS, num_experts, generator=generator)
    weights_Tk, index_Tk = scores_TE.topk(CHOSEN)
    return torch.randn(TOKENS, HIDDEN, generator=generator), index_Tk, weights_Tk


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "forward", "num_experts"),
    [
        (MixtralExperts, experts.of_interface, EXPERTS),
        (AriaExperts, experts.of_interface, EXPERTS),
        (GptOssExperts, experts.of_interface, EXPERTS),
        (NemotronHExperts, experts.of_interface, EXPERTS),
        (MuseSparkExperts, experts.of_interface, EXPERTS),
        (DbrxExperts, experts.dbrx, EXPERTS),
        (LongcatFlashExperts, experts.longcat_flash, EXPERTS + CHOSEN),  # some give back what they get
    ],
)
def test_all_experts_at_once_equal_the_loop_over_the_chosen_ones(kind, forward, num_experts):
    module = made(kind)
    hidden_TD, index_Tk, weights_Tk = routed(num_experts)
    expected_TD = module(hidden_TD, index_Tk, weights_Tk).view(TOKENS, HIDDEN)
    assert len(index_Tk.unique()) == num_experts, "every expert should be chosen by some token"
    assert expected_TD.abs().max() > 0.1
    torch.testing.assert_close(forward(module, hidden_TD, index_Tk, weights_Tk), expected_TD, rtol=0, atol=1e-5)


@torch.no_grad()
def test_experts_of_jetmoe_equal_its_own():
    inputs_BSD = torch.randn(2, 6, HIDDEN, generator=torch.Generator().manual_seed(2))
    feed_forward, attention = made(JetMoeMoE), made(JetMoeMoA)
    torch.testing.assert_close(experts.jetmoe(feed_forward, inputs_BSD), feed_forward(inputs_BSD), rtol=0, atol=1e-5)
    expected, _, their_choice = attention.map(inputs_BSD)
    queries, _, our_choice = experts.jetmoe_queries(attention, inputs_BSD)
    torch.testing.assert_close(queries, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        experts.jetmoe_outputs(attention, queries, our_choice),
        attention.reduce(expected, their_choice),
        rtol=0,
        atol=1e-5,
    )


@torch.no_grad()
def test_an_expert_that_overflows_counts_for_those_alone_that_chose_it():
    outputs_ETD = torch.ones(3, 2, 4)
    outputs_ETD[2] = torch.inf
    found_TD = experts.weighted_sum(
        outputs_ETD, index_Tk=torch.tensor([[0, 1], [1, 2]]), weights_Tk=torch.tensor([[0.25, 0.5], [0.25, 0.5]])
    )
    assert found_TD[0].tolist() == [0.75] * 4
    assert found_TD[1].isinf().all()


@torch.no_grad()
def test_an_index_behind_the_experts_counts_nothing():
    found_TD = experts.weighted_sum(
        torch.ones(3, 1, 4), index_Tk=torch.tensor([[1, 3]]), weights_Tk=torch.tensor([[0.25, 0.5]])
    )
    assert found_TD.tolist() == [[0.25] * 4]
