import numpy as np
import pytest

from qeff_engine import embedding
from qeff_engine.errors import InvalidInput, Numerics

TEXTS = [[5, 6], [7], [8, 9, 10, 11], [3, 2, 1]]


class Encoder:
    """Each token's state is twice its id; padding gives NaN, which nobody may see. A call takes half a second."""

    def __init__(self, *, broken=False):
        self.calls = []
        self._broken = broken

    def clock(self):
        return len(self.calls) / 2

    def run(self, feeds, *, outputs):
        self.calls.append(feeds)
        states = 2.0 * feeds["input_ids"][:, :, None] * np.ones(3, np.float32)
        states[(feeds["attention_mask"] == 0).all(axis=1)] = np.nan
        if self._broken:
            states[0, 0, 0] = np.inf
        return dict.fromkeys(outputs, states)


def embed(texts, *, batch_size, seq_len=4, **options):
    encoder = Encoder(**options)
    input_ids, mask = embedding.padded(texts, seq_len=seq_len)
    return (
        embedding.embed(encoder, input_ids_NS=input_ids, attention_mask_NS=mask, batch_size=batch_size, output="out"),
        encoder,
    )


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7])
def test_every_text_gets_its_own_row_whatever_the_batch(batch_size):
    result, encoder = embed(TEXTS, batch_size=batch_size)
    assert result.values.shape == (4, 4, 3)
    for row, text in zip(result.values, TEXTS, strict=True):
        assert row[: len(text), 0].tolist() == [2.0 * token for token in text]
    assert {feeds["input_ids"].shape for feeds in encoder.calls} == {(batch_size, 4)}


def test_rates_are_per_call_and_per_text():
    result, encoder = embed(TEXTS, batch_size=3)
    assert len(encoder.calls) == 2
    assert (result.total_s, result.latency_s, result.embeddings_s) == (1.0, 0.5, 4.0)


def test_a_text_longer_than_the_program_is_refused_with_both_numbers():
    with pytest.raises(InvalidInput, match="Text 2 has 4 tokens, expected 1 to 3"):
        embedding.padded(TEXTS, seq_len=3)
    with pytest.raises(InvalidInput, match="Text 0 has 0 tokens"):
        embedding.padded([[]], seq_len=3)


def test_embeddings_that_are_not_finite_are_an_error():
    with pytest.raises(Numerics):
        embed(TEXTS, batch_size=4, broken=True)


def test_difference_leaves_padding_out_unless_pooled():
    _, mask = embedding.padded([[1, 2]], seq_len=3)
    ours, reference = np.zeros((1, 3, 2), np.float16), np.zeros((1, 3, 2), np.float32)
    reference[0, 2] = 9.0
    reference[0, 1, 1] = -0.25
    assert embedding.max_abs_diff(ours, reference=reference, attention_mask_NS=mask) == 0.25
    assert embedding.max_abs_diff(ours[:, 2], reference=reference[:, 2], attention_mask_NS=mask) == 9.0
