import pytest
import torch

from qeff_engine.errors import InvalidInput
from qeff_engine.quantizers import calibration


class WordTokenizer:
    """Numbers the words of a text, in order."""

    def __call__(self, text, *, add_special_tokens, verbose):
        assert not add_special_tokens
        return {"input_ids": list(range(len(text.split())))}


def rows(num_words, *, num_samples, seed=0):
    return calibration.token_rows(
        WordTokenizer(), text="word " * num_words, num_samples=num_samples, seq_len=8, seed=seed
    )


def test_pieces_do_not_overlap_when_the_text_is_long_enough():
    picked = rows(100, num_samples=5)
    assert picked.shape == (5, 8)
    assert picked.unique().numel() == 40
    assert (picked[:, 0] % 8 == 0).all()


def test_too_short_a_text_gives_overlapping_pieces():
    picked = rows(20, num_samples=5)
    assert picked.shape == (5, 8)
    assert (picked.diff(dim=1) == 1).all()


def test_the_seed_decides():
    assert torch.equal(rows(500, num_samples=5), rows(500, num_samples=5))
    assert not torch.equal(rows(500, num_samples=5), rows(500, num_samples=5, seed=1))


def test_less_than_one_sequence_is_refused():
    with pytest.raises(InvalidInput, match="has 7 tokens, expected at least one sequence of 8"):
        rows(7, num_samples=1)


def test_the_default_text_comes_without_its_header():
    text = calibration.default_text()
    assert text.startswith("It is a truth universally acknowledged")
    assert "LICENSE" not in text
    assert len(text) > 30_000
