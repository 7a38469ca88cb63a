"""The one kind of error that users see: what is wrong, why, and the command that mends it."""

from __future__ import annotations


class PersonaError(Exception):
    """An expected failure (exit code 1).

    Args:
        message: what is wrong, with the actual values.
        hint: the way out, best as a command in backticks; empty when there is none.
    """

    exit_code = 1
    kind = "error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(PersonaError):
    """The command line itself is wrong (exit code 2)."""

    exit_code = 2
    kind = "usage"


class CorruptError(PersonaError):
    """Something on disk is not what its name or its record says."""

    kind = "corrupt"


class IncompatibleError(PersonaError):
    """Two things that do not fit together: wrong base, wrong keys, shapes or dtypes."""

    kind = "incompatible"


class NotFoundError(PersonaError):
    """A name that nothing in the repository bears."""

    kind = "not-found"


class DataError(PersonaError):
    """Training or probe data that cannot be used as it stands."""

    kind = "data"


class SchemaError(PersonaError):
    """A record that this version of the program cannot read."""

    kind = "schema"


class FallenApartError(PersonaError):
    """A model that predicts nothing any more: NaN or infinite weights or probabilities."""

    kind = "fallen-apart"
