import io

from qeff_engine.library.results import GeneratedTexts
from qeff_engine.library.streaming import Streamer


def texts(**changes):
    fields = {
        "prompts": ["Why?"],
        "generated_texts": [" Because " + "x" * 100],
        "generated_ids": [[1, 2]],
        "prefill_time": 0.01234,
        "decode_perf": None,
        "total_perf": 40.0,
        "total_time": 0.05,
        "simulated": True,
    }
    return GeneratedTexts(**{**fields, **changes})


def test_it_prints_as_a_short_table():
    lines = str(texts()).splitlines()
    assert lines[0].startswith("'Why?' -> ' Because xxx")
    assert max(map(len, lines)) <= 100
    assert [line.split() for line in lines[1:]] == [
        ["prefill", "(TTFT)", "0.01234", "s"],
        ["decode", "-", "tok/s"],
        ["total", "40", "tok/s"],
        ["total", "time", "0.05", "s"],
        ["times", "are", "simulated"],
    ]


def test_times_of_a_real_card_carry_no_label():
    assert "simulated" not in str(texts(simulated=False))


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, tokens):
        return bytes(tokens).decode(errors="replace")


def test_streaming_writes_whole_characters_of_the_first_prompt_alone():
    stream = io.StringIO()
    streamer = Streamer(Bytes(), stream=stream)
    written = []
    for prompt, token in [(0, ord("a")), (1, ord("z")), *((0, byte) for byte in "é".encode()), (0, ord("b"))]:
        streamer(prompt, token)
        written.append(stream.getvalue())
    assert written == ["a", "a", "a", "aé", "aéb"]
    streamer.end()
    assert stream.getvalue() == "aéb\n"
