"""`persona.toml`: the base, the composition method and the defaults of training. Hand-editable."""

from __future__ import annotations

from typing import Any

import tomlkit

from personality.manifests.base_identity import BaseIdentity
from personality.manifests.personality_record import Composition
from personality.manifests.record import FORMAT, Frozen, check_format
from personality.manifests.scorer_entry import JudgeEndpoint
from personality.manifests.toml_text import parse_toml, set_table, validate

FILE_NAME = "persona.toml"


class Config(Frozen):
    """What `persona.toml` says.

    Attributes:
        base: what everything is relative to; `source` may be a path relative to the repository.
        composition: the method that composes the behaviors in use.
        training: defaults for the options of `persona train`, by the option's name.
        judge: the model that judges replies, for probes that ask for one.
    """

    format: int = FORMAT
    base: BaseIdentity
    composition: Composition = Composition()
    training: dict[str, Any] = {}
    judge: JudgeEndpoint = JudgeEndpoint()

    @classmethod
    def from_text(cls, text: str) -> Config:
        """Read the file's text.

        Raises:
            CorruptError, SchemaError: when it cannot be read.
        """
        data = parse_toml(text, FILE_NAME)
        check_format(data, FILE_NAME)
        return validate(cls, data, FILE_NAME)

    def to_text(self) -> str:
        """The text of a new file."""
        document = tomlkit.document()
        document.add(tomlkit.comment("What this repository is relative to, and how its behaviors are composed."))
        document.add(
            tomlkit.comment(
                "Edit by hand if you like: `persona status` shows the difference, `persona save` records it."
            )
        )
        document["format"] = FORMAT
        document["base"] = self.base.as_json()
        document["composition"] = self.composition.effective()
        if self.training:
            document["training"] = self.training
        return tomlkit.dumps(document)


def with_composition(text: str, composition: Composition) -> str:
    """The text of `persona.toml` with another composition; everything else, comments too, stays."""
    document = tomlkit.parse(text)
    set_table(document, "composition", composition.effective())
    return tomlkit.dumps(document)
