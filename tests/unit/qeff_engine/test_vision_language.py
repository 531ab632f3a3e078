import numpy as np
import pytest
import torch

from qeff_engine import vision_language
from qeff_engine.errors import Numerics
from qeff_engine.generation import DecoderShape, generate
from qeff_engine.transforms.vision_language import merged

IMAGE = 9  # token id of the recording decoder
ROWS = 5


class Recorder:
    """A language program that keeps what it is passed, and counts image tokens as the graph does."""

    def __init__(self):
        self.calls = []

    def clock(self):
        return float(len(self.calls))

    def run(self, feeds, *, outputs):
        self.calls.append(dict(feeds))
        used = ((feeds["input_ids"] == IMAGE) & (feeds["position_ids"] >= 0)).sum(1, keepdims=True)
        logits_B1V = np.zeros((len(used), 1, 12), dtype=np.float32)
        return {"logits": logits_B1V, "image_idx_output": feeds["image_idx"] + used}


def test_embeddings_are_passed_once_a_batch_and_the_count_from_call_to_call():
    program = Recorder()
    embeds_NVD = np.arange(3 * ROWS * 2, dtype=np.float32).reshape(3, ROWS, 2)
    decoder = vision_language.SeeingDecoder(program, embeds_NVD=embeds_NVD, batch_size=2)
    prompts = [[1, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, 2], [IMAGE] * ROWS + [3], [4, *[IMAGE] * ROWS]]
    shape = DecoderShape(batch_size=2, prefill_len=4, ctx_len=16)
    generate(decoder, prompts=prompts, shape=shape, generation_len=2)
    passed = [call.get("vision_embeds") for call in program.calls]
    assert [embeds is not None for embeds in passed] == [True, False, False] * 2
    np.testing.assert_array_equal(passed[0], embeds_NVD[:2])
    np.testing.assert_array_equal(passed[3], np.stack([embeds_NVD[2], np.zeros((ROWS, 2))]))
    assert [call["image_idx"][:, 0].tolist() for call in program.calls] == [
        [0, 0], [3, 4], [5, 5],
        [0, 0], [3, 0], [5, 0],
    ]  # fmt: skip


class Tower:
    """A vision program that gives the mean of each picture."""

    def __init__(self, offset=0.0):
        self.offset = offset
        self.now_s = 0.0

    def clock(self):
        return self.now_s

    def run(self, feeds, *, outputs):
        self.now_s += 0.5
        assert len(feeds["pixel_values"]) == 1
        return {"vision_embeds": self.offset + feeds["pixel_values"].mean(axis=(1, 2, 3))[:, None, None]}


def test_each_picture_is_seen_by_a_call_of_its_own():
    pixels = np.arange(3, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 2, 2), np.float32)
    seen = vision_language.see(Tower(), pixel_values_NCHW=pixels)
    assert seen.embeds_NVD[:, 0, 0].tolist() == [0, 1, 2]
    assert seen.total_s == 1.5


def test_embeddings_that_are_not_finite_are_refused():
    with pytest.raises(Numerics, match="not finite"):
        vision_language.see(Tower(np.inf), pixel_values_NCHW=np.ones((1, 3, 2, 2), np.float32))


def merge(tokens, *, start):
    """Rows are 100, 101, ...; text embeddings are the token ids; padding is token -1."""
    tokens_BS = torch.tensor(tokens)
    out_BS1, count_B1 = merged(
        tokens_BS[..., None].float(),
        is_image_BS=tokens_BS == IMAGE,
        vision_embeds_BVD=100 + torch.arange(ROWS, dtype=torch.float)[None, :, None].expand(len(tokens), -1, 1),
        image_idx_B1=torch.tensor(start)[:, None],
    )
    return out_BS1[..., 0].tolist(), count_B1[:, 0].tolist()


def test_image_tokens_take_rows_in_order_and_sequences_count_for_themselves():
    assert merge([[1, IMAGE, IMAGE, 2], [IMAGE, 3, IMAGE, IMAGE]], start=[0, 1]) == (
        [[1, 100, 101, 2], [101, 3, 102, 103]],
        [2, 4],
    )


def test_a_picture_cut_by_calls_is_the_picture_in_one():
    whole, count = merge([[1, *[IMAGE] * ROWS, 2, 3]], start=[0])
    first, count_first = merge([[1, *[IMAGE] * 2]], start=[0])
    second, count_second = merge([[*[IMAGE] * (ROWS - 2), 2, 3]], start=count_first)
    assert whole[0] == first[0] + second[0]
    assert count == count_second == [ROWS]


def test_an_image_token_beyond_the_picture_stays_a_token():
    assert merge([[IMAGE, 4]], start=[ROWS]) == ([[IMAGE, 4]], [ROWS])
