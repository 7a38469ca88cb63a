"""Every change of a repository: each records a version, logs the operation, and can be undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from personality.composition.layering import layered_names
from personality.composition.opening import composer_of, steering_of
from personality.manifests import config
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.canonical import pretty_json
from personality.manifests.composition_methods import METHODS
from personality.manifests.config import Config
from personality.manifests.errors import IncompatibleError, NotFoundError, PersonaError
from personality.manifests.names import VectorLabel, check_tag_name, did_you_mean, near
from personality.manifests.personality_record import Composition, LayerRange, Personality, Use
from personality.manifests.repository import Repository
from personality.manifests.transaction import commit
from personality.manifests.version import Version
from personality.vectors.base import locate
from personality.vectors.checkpoint import Checkpoint
from personality.versions.history import History
from personality.versions.recipe import (
    RecipeChange,
    compare_recipes,
    find_vector,
    manifest_of,
    use_vector,
    usual_scale,
    working_personality,
)
from personality.versions.working_files import working_texts

_GREATEST = 1e6
"""Norm of a change beyond which no model of any dtype is left; what training gives is nearer 1."""


@dataclass(frozen=True)
class Recorded:
    """What a change did.

    Attributes:
        version: the version that holds now.
        label: its label.
        changes: how it differs from its parent.
        new: False when nothing had to be recorded.
    """

    version: Version
    label: str
    changes: list[RecipeChange]
    new: bool = True


def initialize(root: Path, base: BaseIdentity, composition: Composition, training: dict[str, object]) -> Repository:
    """Make a repository whose first version is the base alone.

    Raises:
        PersonaError: when there is a repository already, or the versions of one without its `persona.toml`.
    """
    repository = Repository.prepare(root)
    settings = Config(base=base, composition=composition, training=training)
    with repository.writing():
        personality = Personality(base=base, composition=composition)
        found = list(repository.versions().values())
        if len(found) == 1 and found[0].personality.id == personality.id:
            first = found[0]  # an earlier `init` was interrupted before it wrote persona.toml
        elif found:
            raise PersonaError(
                f"{root} has versions of another repository, whose persona.toml is missing",
                "restore that file (`git checkout -- persona.toml`), or give a new folder",
            )
        else:
            first = History(repository).next(personality, "the base", [])
        texts: dict[str, str | None] = {
            f"versions/{first.id}.json": first.to_bytes().decode(),
            config.FILE_NAME: settings.to_text(),
        }
        commit(repository, "init", texts)
    return repository


def add(
    repository: Repository,
    label: VectorLabel,
    scale: float | None = None,
    *,
    layers: LayerRange | None = None,
    density: float | None = None,
    message: str = "",
) -> Recorded:
    """Put a vector into use, or replace the behavior's vector, scale, layers and density.

    Args:
        repository: where.
        label: which vector; without a number the behavior's newest.
        scale: None for 1, or for the scale at which a steering vector was proven.
        layers: where it acts; None for everywhere, or for a steering vector's own layers.
        density: TIES density of this use.
        message: for the log.
    """
    with repository.writing():
        current = _clean(repository)
        if scale is None:
            scale = usual_scale(find_vector(repository, label))
        use = use_vector(repository, label, scale, layers, density)
        return _record(repository, current.with_use(use), f"add {use}", message)


def rescale(repository: Repository, behavior: str, scale: float, message: str = "") -> Recorded:
    """Change the scale of a behavior in use; layers and density stay."""
    with repository.writing():
        current = _clean(repository)
        old = _in_use(current, behavior)
        label = VectorLabel(old.behavior, old.number, old.vector)
        use = use_vector(repository, label, scale, old.layers, old.density)
        return _record(repository, current.with_use(use), f"scale {behavior} {scale:g}", message)


def remove(repository: Repository, behavior: str, message: str = "") -> Recorded:
    """Take a behavior out of use; its vector, description and probes stay."""
    with repository.writing():
        current = _clean(repository)
        _in_use(current, behavior)
        return _record(repository, current.without(behavior), f"rm {behavior}", message)


def compose_by(repository: Repository, composition: Composition, message: str = "") -> Recorded:
    """Change the method that composes the behaviors."""
    with repository.writing():
        current = _clean(repository)
        target = current.model_copy(update={"composition": composition})
        return _record(repository, target, f"method {composition}", message)


def adopt(
    repository: Repository,
    personality: Personality,
    command: str,
    message: str = "",
    attached: Callable[[Version], dict[str, str]] | None = None,
) -> Recorded:
    """Record a whole recipe at once, such as one that a search found.

    Args:
        repository: where.
        personality: the recipe.
        command: for the operation log, and the message where none is given.
        message: for the log.
        attached: files that belong to the version, by path relative to the root; they come and go with it.
    """
    with repository.writing():
        _clean(repository)
        return _record(repository, personality, command, message, attached=attached)


def save(repository: Repository, message: str = "") -> Recorded:
    """Record what the files say now: hand edits, or what a git merge brought together."""
    with repository.writing():
        history = History(repository)
        working = working_personality(repository)
        if len(history.tips) == 1 and not compare_recipes(history.tips[0].personality, working):
            return Recorded(history.tips[0], history.label(history.tips[0]), [], new=False)
        return _record(repository, working, "save", message, parents=history.tips)


def restore(repository: Repository, name: str, message: str = "") -> Recorded:
    """Make the files say what a version says. A new version records it; unsaved edits are dropped (`undo` brings
    them back).
    """
    with repository.writing():
        history = History(repository)
        target = history.find(name)
        if target.personality.base.fingerprint != repository.config().base.fingerprint:
            raise IncompatibleError(
                f"{history.label(target)} is for the base {target.personality.base}, this repository uses "
                f"{repository.config().base}",
                "vectors do not move to another base: make a repository for that base",
            )
        for use in target.personality.uses:
            manifest_of(repository, use)
        label = history.label(target)
        if len(history.tips) == 1 and not compare_recipes(history.tips[0].personality, target.personality):
            # The newest version says the same already: only the files may need setting back.
            done = commit(repository, f"restore {label}", working_texts(repository, target.personality))
            return Recorded(history.tips[0], history.label(history.tips[0]), [], new=done is not None)
        return _record(repository, target.personality, f"restore {label}", message, parents=history.tips)


def revert(repository: Repository, name: str, message: str = "") -> Recorded:
    """Take back what one version changed, and keep everything that came later.

    Raises:
        PersonaError: when something later changed the same thing again.
    """
    with repository.writing():
        current = _clean(repository)
        history = History(repository)
        version = history.find(name)
        if len(version.parents) != 1:
            raise PersonaError(
                f"{history.label(version)} has {len(version.parents)} parents: there is no one change to take back",
                "go back to a version instead: `persona restore VERSION`",
            )
        before = history.versions[version.parents[0]].personality
        target = current
        for change in compare_recipes(before, version.personality):
            target = _revert_one(target, before, version.personality, change, history.label(version))
        return _record(repository, target, f"revert {history.label(version)}", message)


def _revert_one(
    current: Personality, before: Personality, after: Personality, change: RecipeChange, label: str
) -> Personality:
    if change.what == "composition":
        holds = current.composition.effective() == after.composition.effective()
        target = current.model_copy(update={"composition": before.composition})
    else:
        old = before.use_of(change.what)
        holds = current.use_of(change.what) == after.use_of(change.what)
        target = current.with_use(old) if old else current.without(change.what)
    if not holds:
        raise PersonaError(
            f"`{change.what}` was changed again after {label}: reverting {label} would undo that as well",
            "set it by hand (`persona scale`, `persona rm`, `persona method`), or `persona restore` an older version",
        )
    return target


def tag(repository: Repository, name: str, version_name: str, *, force: bool = False) -> Version:
    """Give a version a name that stays.

    Raises:
        PersonaError: when the tag points elsewhere already and `force` is False.
    """
    check_tag_name(name)
    with repository.writing():
        history = History(repository)
        version = history.find(version_name)
        old = history.tags.get(name)
        if old not in (None, version.id) and not force:
            where = history.label(history.versions[old]) if old in history.versions else str(old)
            raise PersonaError(
                f"the tag `{name}` points at {where} already",
                f"move it: `persona tag {name} {version_name} --force`",
            )
        commit(repository, f"tag {name}", {f"tags/{name}.json": pretty_json({"version": version.id}).decode()})
        return version


def untag(repository: Repository, name: str) -> None:
    """Remove a tag."""
    with repository.writing():
        tags = repository.tags()
        if name not in tags:
            raise NotFoundError(f"there is no tag `{name}`", did_you_mean(name, tags))
        commit(repository, f"tag --delete {name}", {f"tags/{name}.json": None})


def _clean(repository: Repository) -> Personality:
    """The working personality, which must be the newest version's.

    Raises:
        PersonaError: when there are unsaved edits.
    """
    working = working_personality(repository)
    history = History(repository)
    head = history.head(working)
    changes = compare_recipes(head.personality, working)
    if changes:
        label = history.label(head)
        raise PersonaError(
            f"the files differ from {label}: {'; '.join(map(str, changes))}",
            f"`persona save -m …` records that as a version, `persona restore {label}` drops it",
        )
    return working


def _in_use(personality: Personality, behavior: str) -> Use:
    use = personality.use_of(behavior)
    if use is None:
        raise NotFoundError(
            f"`{behavior}` is not in use",
            near(behavior, (item.behavior for item in personality.uses))
            or f"`persona add {behavior}` puts it into use",
        )
    return use


def _check_buildable(repository: Repository, use: Use, personality: Personality) -> None:
    """A version that could never be built must not be recorded: is the vector here, for this base, and does it act?"""
    manifest = manifest_of(repository, use)
    if manifest.base.fingerprint != personality.base.fingerprint:
        verb = "extract" if manifest.kind == "steering" else "train"
        raise IncompatibleError(
            f"`{use.label}` was made for {manifest.base}, this repository uses {personality.base}",
            f"make it for this base: `persona {verb} {use.behavior} …`",
        )
    if abs(use.scale) * manifest.norm > _GREATEST:
        raise IncompatibleError(
            f"`{use.label}` × {use.scale:g} would change the model by {abs(use.scale) * manifest.norm:.3g} (its norm "
            f"is {manifest.norm:.4g}): nothing of it would be left",
            "choose a scale near 1",
        )
    path = repository.vector_path(use.vector)
    if not path.is_file():
        raise NotFoundError(
            f"the tensors of `{use.label}` are missing: there is no {path}",
            "vectors are not in git by default: copy the file from where it was made, or make the vector again",
        )
    if manifest.kind == "steering":
        steering_of(repository, personality)
    elif use.layers is not None:
        base = personality.base
        folder, _ = locate(base.source, base.revision, repository.root)
        layered_names(use, manifest.tensors, Checkpoint(folder).specs)


def _record(
    repository: Repository,
    personality: Personality,
    command: str,
    message: str,
    parents: list[Version] | None = None,
    attached: Callable[[Version], dict[str, str]] | None = None,
) -> Recorded:
    """Write a version and the files that describe it, in crash order."""
    history = History(repository)
    parents = parents or [history.head(working_personality(repository))]
    before = parents[0].personality
    changes = compare_recipes(before, personality)
    if not changes and len(parents) == 1:
        return Recorded(parents[0], history.label(parents[0]), [], new=False)
    if personality.base.fingerprint != before.base.fingerprint:
        raise IncompatibleError(
            f"{config.FILE_NAME} names the base {personality.base}, the versions are for {before.base}",
            "put the base back: vectors and versions do not move to another; `persona init` a repository for that base",
        )
    for use in personality.uses:
        if use != before.use_of(use.behavior):
            _check_buildable(repository, use, personality)
    if personality.composition.steering == "orthogonal":
        steering_of(repository, personality)  # refuses directions that cannot be made orthogonal
    if METHODS[personality.composition.method].most is not None:
        composer_of(repository, personality)  # refuses more vectors in a tensor than the method composes
    version = history.next(personality, message or command, parents)
    texts: dict[str, str | None] = {f"versions/{version.id}.json": version.to_bytes().decode()}
    texts.update(working_texts(repository, personality))
    texts.update(attached(version) if attached else {})
    commit(repository, command, texts)
    return Recorded(version, History(repository).label(version), changes)
