"""Reading hand-edited TOML with errors that name the file."""

from __future__ import annotations

import tomllib
from typing import Any, TypeVar

import tomlkit
from pydantic import BaseModel, ValidationError

from personality.manifests.errors import CorruptError
from personality.manifests.record import explain

Model = TypeVar("Model", bound=BaseModel)


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        CorruptError: naming the file and the line, when it is not TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CorruptError(
            f"{source} is not valid TOML: {error}",
            "mend that line; for a behavior's file `persona restore head` takes its last readable text",
        ) from error


def set_table(document: tomlkit.TOMLDocument, name: str, entries: dict[str, Any]) -> None:
    """Give a table exactly these entries; one that is there keeps its place and the comments on what stays."""
    table = document.get(name)
    if not isinstance(table, dict):
        document[name] = entries
        return
    for key in [key for key in table if key not in entries]:
        del table[key]
    for key, value in entries.items():
        if key not in table or table[key] != value:
            table[key] = value


def validate(model: type[Model], data: Any, source: str) -> Model:
    """Check parsed data against a schema.

    Raises:
        CorruptError: naming the file, the field and its value.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise CorruptError(f"{source}: {explain(error)}", f"edit {source} and run `persona status`") from error
