"""The pretrained model that all is relative to: where it lies, and its fingerprint."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from personality.manifests.base_identity import BaseIdentity, Fingerprint
from personality.manifests.canonical import canonical_json, digest, digest_bytes, short
from personality.manifests.digest_cache import remembered
from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError
from personality.vectors.checkpoint import Checkpoint

# Fields of config.json that name a place or a library version and not the model.
_VOLATILE = ("_name_or_path", "transformers_version", "_commit_hash")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
)
CHAT_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


def locate(source: str, revision: str, root: Path) -> tuple[Path, str]:
    """Find a base: a folder (relative paths start at the repository), or else a model id of the Hugging Face hub.

    Args:
        source: folder or model id.
        revision: branch, tag or commit of a model id; empty for the default.
        root: the repository's folder.

    Returns:
        The folder with the model's files, and the commit it is at (empty for a plain folder).

    Raises:
        NotFoundError: when it is neither a folder nor to be had from the hub or its local cache.
    """
    folder = (root / Path(source).expanduser()).resolve()
    if folder.is_dir():
        return folder, ""
    looks_like_path = source.startswith((".", "/", "~")) or source.count("/") != 1
    if looks_like_path:
        raise NotFoundError(
            f"the base `{source}` is not there: no folder {folder}",
            "give an existing model folder, or correct `source` under [base] in persona.toml",
        )
    return _from_hub(source, revision)


def _from_hub(source: str, revision: str) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if re.fullmatch(r"[0-9a-f]{40}", revision):
        # A commit never changes: what is in the cache needs no question to the hub.
        with contextlib.suppress(LocalEntryNotFoundError):
            return Path(snapshot_download(source, revision=revision, local_files_only=True)), revision
    patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "LICENSE*", "README.md"]
    try:
        path = Path(snapshot_download(source, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise NotFoundError(
            f"the base `{source}` is neither a folder here nor to be had from the Hugging Face hub: "
            f"{str(error).splitlines()[0]}",
            "check the name and your connection, run `hf auth login` for a gated model, or give a folder",
        ) from error
    return path, path.name


def fingerprint(checkpoint: Checkpoint, cache: Path | None = None) -> Fingerprint:
    """The base's fingerprint: a digest over every tensor's name, dtype, shape and content, plus config,
    tokenizer and chat template. How the weights are spread over files does not enter.

    Args:
        checkpoint: the base's weights.
        cache: file of remembered digests; None to read every byte.

    Raises:
        NotFoundError: when the folder has no config.json.
        CorruptError: when its JSON or template cannot be read.
    """
    folder = checkpoint.folder
    tokenizer = {
        name: digest_bytes((folder / name).read_bytes()) for name in TOKENIZER_FILES if (folder / name).is_file()
    }
    # Some configurations hold Infinity, which is no JSON; Python writes and reads it all the same.
    config = json.dumps(model_config(folder), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return Fingerprint(
        weights=weights_digest(checkpoint, cache),
        config=digest_bytes(config.encode()),
        tokenizer=digest(tokenizer),
        chat_template=digest_bytes(chat_template(folder).encode()),
    )


def model_config(folder: Path) -> dict[str, Any]:
    """A model folder's config.json without the fields that name a place or a library version.

    Raises:
        NotFoundError: when there is none.
        CorruptError: when it is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise NotFoundError(
            f"{folder} has no config.json: it is not a model folder", "give a Hugging Face model folder"
        )
    return {key: value for key, value in _json_object(path).items() if key not in _VOLATILE}


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptError(f"{path} is not readable JSON: {error}", "fetch the model again") from error
    if not isinstance(found, dict):
        raise CorruptError(f"{path} is not a JSON object", "fetch the model again")
    return found


def weights_digest(checkpoint: Checkpoint, cache: Path | None) -> str:
    """A digest over every tensor's name, dtype, shape and content; the fingerprint's part for the weights.

    Args:
        checkpoint: the weights.
        cache: file of remembered digests; None to read every byte.
    """

    def read() -> str:
        return digest(
            {
                name: [spec.dtype, list(spec.shape), checkpoint.digest_of(name)]
                for name, spec in checkpoint.specs.items()
            }
        )

    return remembered(cache, "weights", [file.path for file in checkpoint.files], read)


def chat_template(folder: Path) -> str:
    """The chat template's text, wherever the model keeps it; empty when it has none."""
    for name in CHAT_TEMPLATE_FILES:
        if (folder / name).is_file():
            try:
                return (folder / name).read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise CorruptError(f"{folder / name} is not UTF-8 text", "fetch the model again") from error
    path = folder / "tokenizer_config.json"
    if path.is_file():
        template = _json_object(path).get("chat_template") or ""
        return template if isinstance(template, str) else canonical_json(template).decode()
    return ""


def open_base(identity: BaseIdentity, root: Path, cache: Path | None) -> Checkpoint:
    """Open the base that records speak of, and make sure that it is that one.

    Args:
        identity: what `persona.toml` says.
        root: the repository's folder.
        cache: file of remembered digests; None to read every byte.

    Raises:
        NotFoundError: when it is not there.
        IncompatibleError: when what lies there is another model.
    """
    folder, _ = locate(identity.source, identity.revision, root)
    checkpoint = Checkpoint(folder)
    found = fingerprint(checkpoint, cache)
    if found.id != identity.fingerprint:
        raise IncompatibleError(
            f"the base at {folder} has the fingerprint {short(found.id)}, this repository is made for "
            f"{short(identity.fingerprint)}: weights, config, tokenizer or chat template differ",
            "put the original base back (or correct `source` under [base] in persona.toml); "
            "for another base, `persona init` a new repository",
        )
    return checkpoint
