"""Decoders of models that are encoder and decoder in one."""

from __future__ import annotations

from collections.abc import Mapping

from tests.parity.configs.entry import Entry, entry

TABLE: Mapping[str, Entry] = {
    "bart": entry(is_decoder=True),
    "bigbird_pegasus": entry(is_decoder=True, attention_type="original_full"),
    "blenderbot": entry(is_decoder=True),
    "blenderbot-small": entry(is_decoder=True),
    "marian": entry(is_decoder=True),
    "mbart": entry(is_decoder=True),
    "mvp": entry(is_decoder=True),
    "pegasus": entry(is_decoder=True),
    "plbart": entry(is_decoder=True),
    "prophetnet": entry(
        is_decoder=True,
        hidden_size=32,
        num_decoder_layers=2,
        num_encoder_layers=2,
        num_decoder_attention_heads=4,
        pad_token_id=0,
        add_cross_attention=False,
    ),
    "trocr": entry(is_decoder=True),
    "whisper": entry(is_decoder=True, max_target_positions=128),
    "biogpt": entry(),
}
