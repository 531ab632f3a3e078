import numpy as np
import onnxruntime
import pytest

from qeff_engine import generation
from qeff_engine.errors import InvalidInput, Numerics
from qeff_engine.generation import DecoderShape
from tests import toy_decoder

PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3], [5, 8, 9, 7, 9], [3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3], [8]]


class OrtDecoder:
    """The toy's graph in ONNX Runtime; retained states stay here, and every call takes a second of its clock."""

    def __init__(self, directory, *, shape):
        self._session = onnxruntime.InferenceSession(directory / toy_decoder.FILE)
        kv = np.full((shape.batch_size, 1, shape.ctx_len, toy_decoder.HIDDEN), 7.0, np.float32)  # left by others
        self._states = {"past_key.0": kv, "past_value.0": kv}
        self.num_calls = 0
        self.positions = []

    def clock(self):
        return float(self.num_calls)

    def run(self, feeds, *, outputs):
        self.num_calls += 1
        self.positions.append(feeds["position_ids"].copy())
        names = [*outputs, *(f"{name}_RetainedState" for name in self._states)]
        values = dict(zip(names, self._session.run(names, feeds | self._states), strict=True))
        self._states = {name: values[f"{name}_RetainedState"] for name in self._states}
        return {name: values[name] for name in outputs}


@pytest.fixture(scope="module")
def exported_toy(tmp_path_factory):
    directory = tmp_path_factory.mktemp("toy")
    toy_decoder.export(directory)
    return directory


def decode(directory, *, prompts=PROMPTS, batch_size=1, prefill_len=4, ctx_len=32, **options):
    shape = DecoderShape(batch_size=batch_size, prefill_len=prefill_len, ctx_len=ctx_len)
    program = OrtDecoder(directory, shape=shape)
    return generation.generate(program, prompts=prompts, shape=shape, **options), program


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
@pytest.mark.parametrize("prefill_len", [1, 4, 16])
def test_tokens_do_not_depend_on_batch_and_chunk_sizes(exported_toy, batch_size, prefill_len):
    result, _ = decode(exported_toy, batch_size=batch_size, prefill_len=prefill_len, generation_len=6)
    assert result.tokens == [toy_decoder.greedy(prompt, num_tokens=6) for prompt in PROMPTS]


def test_context_is_filled_when_no_length_is_given(exported_toy):
    result, _ = decode(exported_toy, batch_size=2, ctx_len=16)
    assert result.tokens == [toy_decoder.greedy(prompt, num_tokens=16 - len(prompt)) for prompt in PROMPTS]


def test_any_end_token_stops_its_own_row_only(exported_toy):
    free = [toy_decoder.greedy(prompt, num_tokens=8) for prompt in PROMPTS]
    eos = frozenset({free[0][2], free[1][4]})
    result, _ = decode(exported_toy, batch_size=5, generation_len=8, eos_token_ids=eos)
    assert result.tokens == [toy_decoder.greedy(prompt, num_tokens=8, eos=eos) for prompt in PROMPTS]
    assert len({len(tokens) for tokens in result.tokens}) > 1
    assert all(tokens[-1] in eos or len(tokens) == 8 for tokens in result.tokens)


def test_missing_rows_and_finished_rows_are_padding(exported_toy):
    eos = {toy_decoder.greedy(PROMPTS[1], num_tokens=2)[1]}
    _, program = decode(exported_toy, prompts=PROMPTS[:2], batch_size=4, generation_len=5, eos_token_ids=eos)
    assert all((positions[2:] == -1).all() for positions in program.positions)
    assert (program.positions[-1][1] == -1).all()
    assert program.positions[-1][0] >= 0


def test_a_short_row_gets_its_first_token_from_the_chunk_that_ends_it(exported_toy):
    result, _ = decode(exported_toy, batch_size=5, prefill_len=4, generation_len=3)
    # Prompts of 7, 3, 5, 11 and 1 tokens end in chunk 2, 1, 2, 3 and 1; a call takes one second.
    assert result.timings.ttft_s == [2.0, 1.0, 2.0, 3.0, 1.0]
    assert result.timings.token_times_s[3] == [3.0, 4.0, 5.0]


def test_rates_count_what_their_names_say(exported_toy):
    result, program = decode(exported_toy, prompts=PROMPTS[:3], batch_size=2, prefill_len=8, generation_len=4)
    # Two batches of one prefill call and three decode calls.
    assert program.num_calls == 8
    assert result.timings.total_s == 8.0
    assert result.timings.decode_tok_s == pytest.approx(9 / 6)
    assert result.timings.total_tok_s == pytest.approx(12 / 8)


def test_one_token_needs_no_decoding_and_has_no_decode_rate(exported_toy):
    result, program = decode(exported_toy, prompts=[[1, 2]], generation_len=1)
    assert program.num_calls == 1
    assert result.timings.decode_tok_s is None


def test_tokens_are_told_as_they_come(exported_toy):
    told = []
    result, _ = decode(
        exported_toy, batch_size=2, generation_len=4, on_token=lambda number, token: told.append((number, token))
    )
    assert [[token for owner, token in told if owner == number] for number in range(len(PROMPTS))] == result.tokens
    assert told[0][0] == 1  # the shorter prompt of the first batch is known first


def test_prompt_and_answer_longer_than_the_context_are_refused_with_both_numbers(exported_toy):
    with pytest.raises(InvalidInput, match=r"Prompt 3 has 11 tokens and 6 .* 17, expected at most .* 16"):
        decode(exported_toy, ctx_len=16, generation_len=6)


def test_prompt_that_fills_the_context_is_refused(exported_toy):
    with pytest.raises(InvalidInput, match="has 8 tokens and 1 "):
        decode(exported_toy, prompts=[[1] * 8], ctx_len=8)


def test_prompt_that_just_fits_is_generated(exported_toy):
    result, _ = decode(exported_toy, prompts=[[1] * 8], ctx_len=12, generation_len=4)
    assert result.tokens == [toy_decoder.greedy([1] * 8, num_tokens=4)]


def test_empty_prompt_is_refused(exported_toy):
    with pytest.raises(InvalidInput, match="Prompt 1 has no tokens"):
        decode(exported_toy, prompts=[[1], []])


def test_logits_that_are_not_numbers_are_an_error():
    class Broken:
        def clock(self):
            return 0.0

        def run(self, feeds, *, outputs):
            return {"logits": np.array([[[1.0, np.nan, 2.0]]], np.float32)}

    with pytest.raises(Numerics, match="token 0 of prompt 0"):
        generation.generate(
            Broken(), prompts=[[1]], shape=DecoderShape(batch_size=1, prefill_len=1, ctx_len=4), generation_len=2
        )
