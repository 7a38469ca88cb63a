"""What the hand-editable files say, resolved to a personality; and how two personalities differ."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError, UsageError
from personality.manifests.manifest import Manifest
from personality.manifests.names import MIN_ID_PREFIX, VectorLabel, did_you_mean, near
from personality.manifests.personality_record import LayerRange, Personality, Use
from personality.manifests.record import explain
from personality.manifests.repository import Repository


def find_steering(repository: Repository, label: VectorLabel) -> Manifest:
    """The steering vector that a label means; without a number the behavior's newest of this kind.

    Raises:
        NotFoundError: when there is none, naming what is near.
        UsageError: when it is a task vector, or two branches both made that number.
    """
    found = find_vector(repository, label)
    if found.kind == "steering":
        return found
    others = [item for item in repository.manifests() if item.behavior == label.behavior and item.kind == "steering"]
    if label.number is None and others:
        number = max(item.number for item in others)
        return find_vector(repository, VectorLabel(label.behavior, number))
    raise _no_direction(found)


def own_steering(repository: Repository, label: VectorLabel | Manifest) -> Manifest:
    """A steering vector that was made for the repository's base.

    Args:
        repository: where.
        label: of the vector, as for `find_steering`; or its manifest, which is only checked.

    Raises:
        NotFoundError, UsageError: as `find_steering`.
        IncompatibleError: it was made for another base.
    """
    found = label if isinstance(label, Manifest) else find_steering(repository, label)
    if found.kind != "steering":
        raise _no_direction(found)
    base = repository.config().base
    if found.base.fingerprint != base.fingerprint:
        raise IncompatibleError(
            f"`{found.label}` was made for {found.base}, this repository uses {base}",
            f"make it for this base: `persona extract {found.behavior} …`",
        )
    return found


def _no_direction(found: Manifest) -> UsageError:
    return UsageError(
        f"`{found.label}` is a task vector: it changes weights and has no direction among activations",
        f"derive one: `persona extract {found.behavior} --from {found.label} …`",
    )


def find_vector(repository: Repository, label: VectorLabel) -> Manifest:
    """The manifest that a label means; without a number the newest of its behavior.

    Raises:
        NotFoundError: when there is none, naming what is near.
        UsageError: when two branches both made that number.
    """
    manifests = repository.manifests()
    of_behavior = [item for item in manifests if item.behavior == label.behavior]
    if not of_behavior:
        raise NotFoundError(
            f"there is no vector `{label.behavior}` in this repository",
            near(label.behavior, (item.behavior for item in manifests))
            or f"make one: `persona train {label.behavior} --data FILE --general FILE`, `persona extract` or "
            "`persona import`; `persona redo` if you have just undone it",
        )
    number = max(item.number for item in of_behavior) if label.number is None else label.number
    found = [item for item in of_behavior if item.number == number and item.id.startswith(label.id_prefix)]
    if not found:
        raise NotFoundError(f"there is no vector `{label}`", did_you_mean(str(label), (i.label for i in of_behavior)))
    if len(found) > 1:
        choices = " and ".join(f"`{item.label}:{item.id[:4]}`" for item in found)
        raise UsageError(f"`{label}` means two vectors, made on two branches", f"say which: {choices}")
    return found[0]


def usual_scale(manifest: Manifest) -> float:
    """The scale of a use for which none was typed: 1, or where a steering vector was proven."""
    steering = manifest.steering
    return steering.proof.scale if steering is not None and steering.proof is not None else 1.0


def manifest_of(repository: Repository, use: Use) -> Manifest:
    """The manifest of the vector that a use names by its id.

    Raises:
        NotFoundError: when it is gone.
    """
    return find_vector(repository, VectorLabel(use.behavior, use.number, use.vector))


def vector_label(repository: Repository, use: Use) -> str:
    """`listening@3`, or `listening@3:ab12` when two branches both made a number 3."""
    twins = [item for item in repository.manifests() if (item.behavior, item.number) == (use.behavior, use.number)]
    return use.label if len(twins) < 2 else f"{use.label}:{use.vector[:MIN_ID_PREFIX]}"


def use_vector(
    repository: Repository,
    label: VectorLabel,
    scale: float,
    layers: LayerRange | None = None,
    density: float | None = None,
) -> Use:
    """A use of the vector that a label means.

    Raises:
        NotFoundError, UsageError: as `find_vector`, and for a scale or density out of range or out of place.
    """
    manifest = find_vector(repository, label)
    if manifest.kind == "steering" and density is not None:
        raise UsageError(
            f"`{manifest.label}` is a steering vector and has no density",
            "leave `--density` out: it is for task vectors under `ties`",
        )
    try:
        return Use(
            behavior=manifest.behavior,
            number=manifest.number,
            vector=manifest.id,
            scale=scale,
            layers=layers,
            density=density,
        )
    except ValidationError as error:
        raise UsageError(
            f"cannot use `{manifest.label}` so: {explain(error)}",
            "a scale is any finite number, a density lies in (0, 1]",
        ) from error


def working_personality(repository: Repository) -> Personality:
    """The personality that `persona.toml` and `behaviors/*.toml` describe now, saved or not.

    Raises:
        CorruptError: when a file cannot be read.
        NotFoundError: when a file names a vector that does not exist.
    """
    config = repository.config()
    uses = []
    for name, behavior in repository.behaviors().items():
        entry = behavior.use
        if entry is None:
            continue
        label = VectorLabel.parse(entry.vector)
        if label.behavior != name:
            raise CorruptError(
                f"behaviors/{name}.toml uses `{entry.vector}`, a vector of another behavior",
                f"name a `{name}@N` there: `persona vectors` lists them",
            )
        layers = LayerRange.parse(entry.layers) if entry.layers else None
        uses.append(use_vector(repository, label, entry.scale, layers, entry.density))
    return Personality(base=config.base, composition=config.composition, uses=tuple(uses))


@dataclass(frozen=True)
class RecipeChange:
    """One thing in which two personalities differ.

    Attributes:
        what: a behavior's name, or `composition` or `base`.
        before, after: as text; None where it is absent.
    """

    what: str
    before: str | None
    after: str | None

    def as_json(self) -> dict[str, str | None]:
        """Plain JSON data."""
        return {"what": self.what, "before": self.before, "after": self.after}

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.after}"
        if self.after is None:
            return f"- {self.before}"
        return f"~ {self.before} → {self.after}"


def compare_recipes(before: Personality, after: Personality) -> list[RecipeChange]:
    """Everything that must change to get from one personality to the other; empty when they are the same."""
    changes = []
    if before.base.fingerprint != after.base.fingerprint:
        changes.append(RecipeChange("base", str(before.base), str(after.base)))
    if before.composition.effective() != after.composition.effective():
        changes.append(RecipeChange("composition", str(before.composition), str(after.composition)))
    names = sorted({use.behavior for use in (*before.uses, *after.uses)})
    for name in names:
        old, new = before.use_of(name), after.use_of(name)
        if old != new:
            old_text, new_text = (str(use) if use else None for use in (old, new))
            if old_text == new_text and old and new:  # the same label on two branches, another vector
                old_text, new_text = f"{old_text} ({old.vector[:4]})", f"{new_text} ({new.vector[:4]})"
            changes.append(RecipeChange(name, old_text, new_text))
    return changes
