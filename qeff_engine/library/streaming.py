"""Generated text written while it comes."""

from __future__ import annotations

from typing import Any, TextIO

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoding gives for the first bytes of a character


class Streamer:
    """Writes the text of the first prompt as its tokens come; told every token, it ignores the other prompts'."""

    def __init__(self, tokenizer: Any, *, stream: TextIO) -> None:
        """Write with the ``decode`` of ``tokenizer``, which leaves out special tokens, to ``stream``."""
        self._tokenizer = tokenizer
        self._stream = stream
        self._tokens: list[int] = []
        self._written = ""

    def __call__(self, prompt: int, token: int) -> None:
        """Take a token of the prompt with this number."""
        if prompt != 0:
            return
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        if not text.endswith(_UNFINISHED):
            self._write(text)

    def end(self) -> None:
        """Write what is left and end the line."""
        self._write(self._tokenizer.decode(self._tokens))
        self._stream.write("\n")
        self._stream.flush()

    def _write(self, text: str) -> None:
        self._stream.write(text[len(self._written) :])
        self._stream.flush()
        self._written = text
