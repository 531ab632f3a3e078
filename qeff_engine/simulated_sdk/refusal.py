"""How the simulated compiler says no: a text on stderr and an exit code. Standard library only."""

from __future__ import annotations

FAILED = 1
BAD_JSON = 255  # the real compiler ends so when its JSON library throws


class Refusal(Exception):
    """The compiler does not go on.

    Attributes:
        text: what it prints to stderr.
        exit_code: what it ends with.
    """

    def __init__(self, text: str, *, exit_code: int = FAILED) -> None:
        super().__init__(text)
        self.text = text
        self.exit_code = exit_code


def model_refusal(*messages: str) -> Refusal:
    """A refusal of the model, in the compiler's form."""
    lines = "".join(f"Error message:  {message}\n" for message in messages)
    return Refusal(f"QAIC_ERROR:\n{lines}Unable to AddNodesToGraphFromModel")


def input_refusal(message: str) -> Refusal:
    """A refusal of an option's value or of a side file."""
    return Refusal(f"QAIC_ERROR: {message}")


def json_refusal(kind: str, *, message: str) -> Refusal:
    """A refusal of a JSON file, in the form of the compiler's JSON library."""
    return Refusal(f"[json.exception.{kind}] {message}", exit_code=BAD_JSON)
