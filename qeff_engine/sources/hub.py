"""A model of the Hugging Face hub as a snapshot, pinned to one commit.

Tokens come from where ``huggingface_hub`` looks for them and appear in no message. Its cache keeps the files, so a
model that was fetched once resolves without the network if its revision is a commit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qeff_engine import checkpoint, code_files, events
from qeff_engine.errors import EngineError, Infrastructure, InvalidInput
from qeff_engine.sources import directory
from qeff_engine.spec import ResolveSpec
from qeff_engine.stage import StageContext


def fetch(spec: ResolveSpec, context: StageContext) -> dict[str, Any]:
    """Download the files that matter and link them into ``context.out``.

    Raises:
        InvalidInput: there is no such repository or revision, it is gated, or it holds no whole checkpoint.
        Unsupported: the code is in another repository.
        Infrastructure: the hub cannot be reached.
    """
    import huggingface_hub
    import huggingface_hub.errors

    from_hub = _Repository(huggingface_hub, spec=spec)
    small_files = [*checkpoint.SIDE_FILES, checkpoint.INDEX_NAME]
    small = from_hub.download(small_files)
    commit = small.name
    context.emit(events.progress(f"{spec.source} is at commit {commit}", fraction=0.1))
    is_sharded = (small / checkpoint.INDEX_NAME).is_file()
    weights = sorted(set(checkpoint.weight_map(small).values())) if is_sharded else [checkpoint.WEIGHTS_NAME]
    code_patterns = ["*.py", *checkpoint.VOCABULARIES] if spec.trust_remote_code else []
    root = from_hub.download([*small_files, *weights, *code_patterns], commit=commit)
    try:
        names = checkpoint.directory_files(root, with_code=bool(spec.trust_remote_code))
    except InvalidInput as error:
        raise InvalidInput(f"{spec.source} at {commit} is no whole checkpoint. {error}") from error
    directory.link(root, names=names, out=context.out)
    if not spec.trust_remote_code:
        return {"commit": commit}
    code = code_files.read(root, repository=spec.source)
    return {"commit": commit, **directory.taken_along(code, out=context.out)}


class _Repository:
    """One repository of the hub, with its failures in our words."""

    def __init__(self, hub: Any, *, spec: ResolveSpec) -> None:
        self._hub, self._spec = hub, spec

    def download(self, patterns: list[str], *, commit: str | None = None) -> Path:
        """The directory of the commit in the hub's cache, with the files that match."""
        errors = self._hub.errors
        try:
            path = self._hub.snapshot_download(
                self._spec.source, revision=commit or self._spec.revision, allow_patterns=patterns
            )
        except errors.GatedRepoError as error:
            raise InvalidInput(
                f"{self._name} is gated, and the token that is set has no access to it.",
                advice="Ask for access on its page, then log in with `hf auth login` or set HF_TOKEN.",
            ) from error
        except errors.RevisionNotFoundError as error:
            raise InvalidInput(
                f"{self._spec.source} has no revision '{self._spec.revision}'.",
                advice="Name a branch, a tag or a commit of it.",
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise InvalidInput(
                f"There is no {self._name} on the hub, nor a directory of that name here.",
                advice="Check the spelling; a private one needs `hf auth login` or HF_TOKEN.",
            ) from error
        except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
            raise self._unreachable(error) from error
        return Path(path)

    @property
    def _name(self) -> str:
        revision = self._spec.revision
        return f"{self._spec.source}@{revision}" if revision else self._spec.source

    def _unreachable(self, error: Exception) -> EngineError:
        if self._hub.constants.HF_HUB_OFFLINE:
            return InvalidInput(
                f"{self._name} is not in the hub's cache, and HF_HUB_OFFLINE is set.",
                advice="Unset it, or name a directory or a .gguf file.",
            )
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        return Infrastructure(
            f"The hub cannot be reached for {self._name}: {type(cause).__name__}.",
            advice="Check the network and HF_ENDPOINT, or name a directory or a .gguf file.",
        )
