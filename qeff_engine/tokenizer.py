"""Texts to token ids and back, by the tokenizer of a snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qeff_engine.errors import InvalidInput

FILE_NAME = "tokenizer.json"
_OTHER_FORMS = ("*.model", "*.tiktoken", "vocab.*", "tokenizer_config.json")


class Tokenizer:
    """A snapshot's tokenizer. Special tokens that the model expects around a text (BOS) are added."""

    def __init__(self, snapshot: Path) -> None:
        """Read it.

        With ``tokenizer.json`` this takes the ``tokenizers`` library alone; other forms need transformers.

        Raises:
            InvalidInput: the snapshot has no tokenizer that can be read.
        """
        path = snapshot / FILE_NAME
        self._fast: Any = None
        self._slow: Any = None
        if path.is_file():
            self._fast = _fast(path)
        else:
            self._slow = _slow(snapshot)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, special tokens included; never cut, never padded."""
        if self._fast is not None:
            return list(self._fast.encode(text).ids)
        return list(self._slow(text)["input_ids"])

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids, without special tokens."""
        tokenizer = self._fast if self._fast is not None else self._slow
        return str(tokenizer.decode(tokens, skip_special_tokens=True))


def _fast(path: Path) -> Any:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception and nothing narrower
        raise InvalidInput(f"{path} is not a tokenizer: {error}.", advice="Fetch the model again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _slow(snapshot: Path) -> Any:
    advice = f"Expected {FILE_NAME} beside the weights."
    if not any(path for pattern in _OTHER_FORMS for path in snapshot.glob(pattern)):
        raise InvalidInput(f"{snapshot} has no tokenizer.", advice=advice)
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(snapshot, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise InvalidInput(f"{snapshot} has no tokenizer that can be read: {error}", advice=advice) from error
