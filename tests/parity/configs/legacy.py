"""Decoders from before the common cache."""

from __future__ import annotations

from collections.abc import Mapping

from tests.parity.configs.entry import Entry, entry, impossible

TABLE: Mapping[str, Entry] = {
    "openai-gpt": entry(),
    "reformer": entry(
        is_decoder=True,
        attn_layers=["local", "local"],
        axial_pos_embds=False,
        feed_forward_size=48,
        attention_head_size=8,
    ),
    "xlm": impossible("transformers implements it as an encoder only"),
    "xlnet": entry(d_model=32, n_layer=2, n_head=4, d_inner=48, d_head=8, attn_type="uni"),
}
