"""The common ground of every JSON record: strict fields, a format number, errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from personality.manifests.canonical import pretty_json
from personality.manifests.errors import CorruptError, NotFoundError, SchemaError

FORMAT = 1


def explain(error: ValidationError) -> str:
    """The first few things that a record has wrong, in one line."""
    parts = []
    for item in error.errors()[:3]:
        where = ".".join(str(step) for step in item["loc"])
        what = item["msg"].removeprefix("Value error, ")
        # A whole record is no value to show, and that is what a missing field's is.
        shown = f" (got {item['input']!r:.80})" if item["type"] != "missing" else ""
        parts.append(f"{where}: {what}{shown}" if where else what)
    return "; ".join(parts)


def check_format(data: Any, source: str) -> None:
    """Refuse a record that another generation of the program wrote.

    Raises:
        SchemaError: when its `format` is missing or not the one that is read here.
    """
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise SchemaError(
            f"{source} has format {found!r}; this persona reads format {FORMAT}",
            "install the persona that wrote it: `pip install -U personality`",
        )


class Frozen(BaseModel):
    """An immutable value that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data with every field."""
        return self.model_dump(mode="json", by_alias=True)


class Record(Frozen):
    """A value that has a file of its own."""

    noun: ClassVar[str] = "record"
    mend: ClassVar[str] = "take it back: `git checkout -- FILE`, or copy it from where it was made"
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """The file's content: sorted keys, one field a line."""
        return pretty_json(self.as_json())

    @classmethod
    def from_bytes(cls, content: bytes, source: str) -> Self:
        """Read and check a record.

        Args:
            content: the file's bytes.
            source: what to call the file in an error.

        Raises:
            CorruptError: when it is not JSON or its fields are wrong.
            SchemaError: when another generation of the program wrote it.
        """
        try:
            data = json.loads(content)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CorruptError(f"{source} is not readable JSON: {error}", cls.mend.replace("FILE", source)) from error
        check_format(data, source)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise CorruptError(
                f"{source} is not a valid {cls.noun}: {explain(error)}",
                cls.mend.replace("FILE", source),
            ) from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record from its file.

        Raises:
            NotFoundError: when there is no such file.
            CorruptError, SchemaError: as `from_bytes`.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"there is no {cls.noun} at {path}") from None
        return cls.from_bytes(content, str(path))
