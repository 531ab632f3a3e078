"""A model source before anything is loaded: what it is, whether its files are whole, and what they look like.

Used by the command line before a submission, so only headers are read and only the standard library is imported.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qeff_engine import code_files, gguf_header, safetensors_header, spec
from qeff_engine.errors import InvalidInput, near_miss
from qeff_engine.safetensors_header import TensorPlace

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

# Files beside the weights that a snapshot keeps: no code, which takes consent (see code_files), and never pickle.
SIDE_FILES = (
    CONFIG_NAME,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "quantize_config.json",
    "quant_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)
VOCABULARIES = ("*.model", "*.tiktoken")  # what a tokenizer with code of its own may read, by patterns
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_HUB_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*\w)?")
_MAX_HUB_ID = 96
_END_BYTES = 64 << 10  # of a file, for its fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A model source that exists, or a hub id.

    Attributes:
        kind: one of :data:`qeff_engine.spec.SOURCE_KINDS`.
        location: absolute path, or the hub id.
        revision: commit, branch or tag of a hub id.
        files: bytes of the files that matter, by relative name; empty for a hub id.
        fingerprint: what the files look like; empty for a hub id.
        trust_remote_code: consent to its code, see :class:`qeff_engine.spec.ResolveSpec`.
    """

    kind: str
    location: str
    revision: str | None = None
    files: Mapping[str, int] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""
    trust_remote_code: str = ""

    def to_spec(self) -> spec.ResolveSpec:
        """The spec of the stage that makes a snapshot of this source."""
        return spec.ResolveSpec(
            source=self.location,
            kind=self.kind,
            revision=self.revision,
            fingerprint=self.fingerprint,
            trust_remote_code=self.trust_remote_code,
        )


def resolve_spec(
    source: str, *, revision: str | None = None, trust_remote_code: str | bool | None = None
) -> spec.ResolveSpec:
    """The resolve spec of a source; see :func:`inspect`."""
    return inspect(source, revision=revision, trust_remote_code=trust_remote_code).to_spec()


def inspect(source: str, *, revision: str | None = None, trust_remote_code: str | bool | None = None) -> Source:
    """What a source is, after its headers were checked. Weights are not read, the hub is not asked, no code is run.

    Args:
        source: directory, ``.gguf`` file or hub id.
        revision: commit, branch or tag of a hub id.
        trust_remote_code: consent to the source's code: a commit of a hub id, the digest of a directory's code
            (:mod:`qeff_engine.code_files`), or nothing. True is no consent: it does not say to what.

    Raises:
        InvalidInput: it does not exist, its files are not a whole checkpoint, or the consent is not to its code.
        Unsupported: it is a split GGUF file.
    """
    consent = "" if trust_remote_code in (None, False) else str(trust_remote_code)
    path = Path(source).expanduser()
    exists = bool(source) and _exists(path)
    if not exists and not _looks_like_path(source):
        _require_hub_id(source)
        if consent:
            _require_commit(consent, source=source)
        return Source(kind="hub", location=source, revision=revision or consent or None, trust_remote_code=consent)
    if not exists:
        raise InvalidInput(
            f"{source} does not exist, expected a checkpoint directory or a .gguf file.", advice=_path_advice(path)
        )
    if revision is not None:
        raise InvalidInput(
            f"revision is '{revision}', but {source} is on this machine.", advice="Only hub ids have revisions."
        )
    path = path.absolute()
    code: list[str] = []
    try:
        names = directory_files(path, with_code=bool(consent)) if path.is_dir() else _checked_gguf(path)
        if consent and path.is_dir():
            code = list(_consented(path, consent=consent).contents)
    except OSError as error:
        raise InvalidInput(
            f"{error.filename or path} cannot be read: {error.strerror}.", advice="Check its permissions."
        ) from error
    root = path if path.is_dir() else path.parent
    return Source(
        kind="directory" if path.is_dir() else "gguf",
        location=str(path),
        files={name: (root / name).stat().st_size for name in names},
        fingerprint=fingerprint(root, names=[*names, *code]),
        trust_remote_code=consent,
    )


def _consented(directory: Path, *, consent: str) -> code_files.Code:
    """The code of a directory, to which consent was given."""
    code = code_files.read(directory)
    if not spec.CODE_DIGEST.fullmatch(consent):
        raise InvalidInput(
            f"trust_remote_code is '{consent}' for {directory}, expected the digest of its code: only hub ids have "
            "commits.",
            advice=f"{code_files.READ_FIRST} Then give {code_files.OPTION} {code.digest}.",
        )
    code_files.require_equal(code, consent=consent, place=str(directory))
    return code


def _require_commit(consent: str, *, source: str) -> None:
    """Refuse consent to what a hub id may be at another time."""
    if spec.COMMIT.fullmatch(consent):
        return
    branch = consent if _HUB_NAME.fullmatch(consent) else "main"
    known = next((found for name in (branch, "main") if (found := _known_commit(source, branch=name))), "")
    raise InvalidInput(
        f"trust_remote_code is '{consent}' for {source}, expected the 40 digits of a commit: consent is to exact code, "
        "and not to what a name stands for at another time.",
        advice=f"When it was fetched last, it was at {known}. {code_files.READ_FIRST}"
        if known
        else "The page of its files on the hub shows commits. " + code_files.READ_FIRST,
    )


def _known_commit(source: str, *, branch: str) -> str:
    """Where a branch was when it was last fetched, by the hub's cache on this machine; empty when it never was.

    The layout of the cache is described in https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
    """
    homes = (
        os.environ.get("HF_HUB_CACHE"),
        os.environ.get("HF_HOME") and f"{os.environ['HF_HOME']}/hub",
        f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface/hub",
    )
    cache = Path(next(home for home in homes if home)).expanduser()
    try:
        commit = (cache / f"models--{source.replace('/', '--')}" / "refs" / branch).read_text().strip()
    except (OSError, ValueError):
        return ""
    return commit if spec.COMMIT.fullmatch(commit) else ""


def code_digest(directory: Path) -> str:
    """The digest of a checkpoint directory's code, which consent to it names; see :func:`qeff_engine.code_files.read`.

    Raises:
        InvalidInput, Unsupported: it has none, or none that could run.
    """
    return code_files.read(directory).digest


def fingerprint(root: Path, *, names: Iterable[str]) -> str:
    """Digest of names, sizes, modification times and both ends of each file: cheap, and another one for other files.

    Times alone do not tell two models of one shape apart where a package or an image sets all times alike.
    """
    looks = {}
    for name in names:
        stat = (root / name).stat()
        looks[name] = [stat.st_size, stat.st_mtime_ns, _ends(root / name, num_bytes=stat.st_size)]
    return spec.digest(looks)


def _ends(path: Path, *, num_bytes: int) -> str:
    """SHA-256 of the first and the last bytes of a file."""
    with path.open("rb") as stream:
        found = hashlib.sha256(stream.read(_END_BYTES))
        stream.seek(max(0, num_bytes - _END_BYTES))
        found.update(stream.read(_END_BYTES))
    return found.hexdigest()


def directory_files(directory: Path, *, with_code: bool = False) -> list[str]:
    """Names of the files of a checkpoint directory that matter, sorted, after their headers were checked.

    Code is not among them; ``with_code`` adds what only code can read.

    Raises:
        InvalidInput: it is not a whole checkpoint.
    """
    config(directory)
    safetensors_index(directory)
    side = [name for name in SIDE_FILES if (directory / name).is_file()]
    more = [path.name for pattern in VOCABULARIES for path in directory.glob(pattern) if path.is_file()]
    return sorted({*side, *weight_files(directory), *(more if with_code else ())})


def config(directory: Path) -> dict[str, Any]:
    """The JSON object of ``config.json``.

    Raises:
        InvalidInput: there is none, or it is no config of a model.
    """
    path = directory / CONFIG_NAME
    if not path.is_file():
        raise InvalidInput(
            f"{directory} has no {CONFIG_NAME}, expected a checkpoint directory.", advice=_no_config_advice(directory)
        )
    fields = _json_object(path)
    if not isinstance(fields.get("model_type"), str):
        raise InvalidInput(f"{path} names no model_type.", advice="Save the model with save_pretrained.")
    return fields


def model_type(source: Source) -> str | None:
    """The architecture that a directory's config or a GGUF file's header names; None for a hub id."""
    if source.kind == "hub":
        return None
    path = Path(source.location)
    if source.kind == "directory":
        return str(config(path)["model_type"])
    return gguf_header.read(path).architecture


def weight_files(directory: Path) -> list[str]:
    """Names of the safetensors files that hold the weights, and of their index.

    As in transformers, a single file goes before an index.

    Raises:
        InvalidInput: there are none, or not all of them.
    """
    if (directory / WEIGHTS_NAME).is_file():
        return [WEIGHTS_NAME]
    if not (directory / INDEX_NAME).is_file():
        raise _no_weights(directory)
    shards = sorted(set(weight_map(directory).values()))
    missing = [name for name in shards if not (directory / name).is_file()]
    if missing:
        raise InvalidInput(
            f"{directory} has {len(shards) - len(missing)} of {len(shards)} shards: {missing[0]} is missing.",
            advice="Fetch the missing shards.",
        )
    return [*shards, INDEX_NAME]


def safetensors_index(directory: Path) -> dict[str, TensorPlace]:
    """Every tensor of a checkpoint directory by name.

    Raises:
        InvalidInput: a file is missing or damaged, or the index names a tensor that its shard does not have.
    """
    names = weight_files(directory)
    index: dict[str, TensorPlace] = {}
    for name in names:
        if name != INDEX_NAME:
            index.update(safetensors_header.read(directory / name))
    if INDEX_NAME in names:
        for tensor, shard in weight_map(directory).items():
            if tensor not in index or index[tensor].file != shard:
                raise InvalidInput(
                    f"{INDEX_NAME} says that {shard} has the tensor {tensor}, but it does not.",
                    advice=f"Fetch {shard} and the index again, from the same revision.",
                )
    return index


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a null byte
        return False


def _looks_like_path(source: str) -> bool:
    return source.startswith(("/", ".", "~")) or source.endswith((".gguf", "/")) or source.count("/") > 1


def _path_advice(path: Path) -> str:
    """Where the path ends to exist, or a sibling with nearly the same name."""
    parent = path.absolute().parent
    if not _exists(parent):
        return f"{parent} does not exist either."
    try:
        names = [entry.name for entry in parent.iterdir()]
    except OSError:
        names = []
    hint = near_miss(path.name, names) if names else ""
    return hint if hint.startswith("Did") else "Check the spelling."


def _require_hub_id(source: str) -> None:
    parts = source.split("/")
    valid = all(_HUB_NAME.fullmatch(part) and "--" not in part and ".." not in part for part in parts)
    if not valid or len(source) > _MAX_HUB_ID:
        raise InvalidInput(
            f"'{source}' is neither a path that exists nor a hub id such as organization/name.",
            advice="Name a checkpoint directory, a .gguf file or a hub id.",
        )


def _checked_gguf(path: Path) -> list[str]:
    gguf_header.read(path)
    return [path.name]


def _json_object(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInput(f"{path} is not JSON: {error}.", advice="Fetch the file again.") from error
    if not isinstance(fields, dict):
        raise InvalidInput(f"{path} is a JSON {type(fields).__name__}, expected an object.")
    return fields


def weight_map(directory: Path) -> dict[str, str]:
    """The shard of each tensor, as the index of a directory says.

    Raises:
        InvalidInput: the index is damaged.
    """
    path = directory / INDEX_NAME
    found = _json_object(path).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise InvalidInput(f"{path} has no weight_map, expected one.", advice="Fetch the file again.")
    for name in found.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise InvalidInput(f"{path} names the shard {name!r}, expected a file beside it.")
    return found


def _no_config_advice(directory: Path) -> str:
    found = sorted(directory.glob("*.gguf"))
    if found:
        return f"To use the GGUF file in it, name the file: {found[0]}."
    if (directory / "adapter_config.json").is_file():
        return "It is an adapter: merge it into its base model and save that."
    return "Save the model with save_pretrained, or name another directory."


def _no_weights(directory: Path) -> InvalidInput:
    pickled = sorted(entry.name for entry in directory.iterdir() if entry.suffix in _PICKLE_SUFFIXES)
    if pickled:
        return InvalidInput(
            f"{directory} has weights only as pickle ({pickled[0]}), expected {WEIGHTS_NAME}: pickle can run code.",
            advice="Convert it where you trust it: AutoModel.from_pretrained(DIR).save_pretrained(NEW_DIR).",
        )
    others = sorted(entry.name for entry in directory.glob("*.safetensors"))
    advice = f"It has {', '.join(others[:3])}: is the index missing?" if others else "Fetch the weights."
    return InvalidInput(f"{directory} has neither {WEIGHTS_NAME} nor {INDEX_NAME}.", advice=advice)
