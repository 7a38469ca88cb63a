"""What changes a repository: what each records, and everything that is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from personality.composition.opening import composer_of
from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError, PersonaError, UsageError
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import Composition, LayerRange
from personality.manifests.repository import Repository
from personality.vectors.tensors import tensor_bytes
from personality.versions.changes import (
    Recorded,
    add,
    compose_by,
    remove,
    rescale,
    restore,
    revert,
    save,
    tag,
    untag,
)
from personality.versions.history import History
from personality.versions.recipe import working_personality
from personality.versions.undoing import redo, undo

LISTENING = VectorLabel("listening")
CONCISE = VectorLabel("concise")


@pytest.fixture
def repository(repository_copy: Path) -> Repository:
    return Repository(repository_copy)


def hand_files(repository: Repository) -> dict[str, bytes]:
    """The hand-editable files, byte for byte."""
    paths = [repository.root / "persona.toml", *sorted((repository.root / "behaviors").glob("*.toml"))]
    return {path.name: path.read_bytes() for path in paths}


def use_line(repository: Repository) -> str:
    return str(working_personality(repository))


def edit(repository: Repository, name: str, old: str, new: str) -> None:
    path = repository.root / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_each_change_records_a_version(repository: Repository) -> None:
    done: list[Recorded] = [
        add(repository, LISTENING, 0.8),
        add(repository, CONCISE, -0.5, layers=LayerRange(first=0, last=1), density=0.3, message="shorter"),
        rescale(repository, "listening", 0.4),
        compose_by(repository, Composition(method="ties")),
        remove(repository, "concise"),
    ]
    assert [item.label for item in done] == ["v2", "v3", "v4", "v5", "v6"]
    assert [item.version.message for item in done] == [
        "add listening@1 × 0.8",
        "shorter",
        "scale listening 0.4",
        "method ties (density 0.2, sum, per vector)",
        "rm concise",
    ]
    assert [str(change) for item in done for change in item.changes] == [
        "+ listening@1 × 0.8",
        "+ concise@1 × -0.5, layers 0-1, density 0.3",
        "~ listening@1 × 0.8 → listening@1 × 0.4",
        "~ linear → ties (density 0.2, sum, per vector)",
        "- concise@1 × -0.5, layers 0-1, density 0.3",
    ]
    history = History(repository)
    assert history.head().id == done[-1].version.id
    assert working_personality(repository) == done[-1].version.personality
    chain = [version.parents for version in list(history.versions.values())[1:]]
    assert chain == [(version.id,) for version in list(history.versions.values())[:-1]]


def test_adding_again_replaces_the_use_and_scaling_keeps_the_rest(repository: Repository) -> None:
    add(repository, LISTENING, 0.8, layers=LayerRange(first=1, last=1), density=0.5)
    rescale(repository, "listening", 2)
    assert use_line(repository) == "listening@1 × 2, layers 1-1, density 0.5"
    add(repository, LISTENING, 0.1)
    assert use_line(repository) == "listening@1 × 0.1"


def test_nothing_to_change_records_nothing(repository: Repository) -> None:
    add(repository, LISTENING, 0.8)
    before = len(repository.operations())
    for done in (
        add(repository, LISTENING, 0.8),
        rescale(repository, "listening", 0.8),
        compose_by(repository, Composition(density=0.7)),
        save(repository),
        restore(repository, "v2"),
    ):
        assert not done.new
        assert done.label == "v2"
    assert len(repository.operations()) == before


def test_equal_recipes_are_equal_personalities_whatever_the_way(repository: Repository) -> None:
    one = add(repository, LISTENING, 0.8).version
    two = add(repository, CONCISE, 0.5).version
    remove(repository, "listening")
    remove(repository, "concise")
    add(repository, CONCISE, 0.5)
    other_way = add(repository, LISTENING, 0.8).version
    assert other_way.personality.id == two.personality.id
    assert other_way.id != two.id
    assert one.personality.id != two.personality.id


def test_removing_everything_is_the_base(repository: Repository) -> None:
    base = History(repository).find("base")
    add(repository, LISTENING, 0.8)
    add(repository, CONCISE, -1)
    remove(repository, "listening")
    last = remove(repository, "concise").version
    assert last.personality.id == base.personality.id
    composer = composer_of(repository, last.personality)
    for name in composer.base.specs:
        assert bytes(tensor_bytes(composer.tensor(name))) == bytes(composer.base.bytes_of(name))


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_scales_that_are_no_numbers(repository: Repository, scale: float) -> None:
    with pytest.raises(UsageError, match="scale") as caught:
        add(repository, LISTENING, scale)
    assert "finite" in caught.value.hint
    add(repository, LISTENING, 1)
    with pytest.raises(UsageError):
        rescale(repository, "listening", scale)
    assert len(repository.versions()) == 2


def test_density_out_of_range(repository: Repository) -> None:
    for density in (0, -1, 1.5, math.nan):
        with pytest.raises(UsageError, match="density"):
            add(repository, LISTENING, 1, density=density)


def test_unknown_names_are_told_what_was_meant(repository: Repository) -> None:
    actions: list[Callable[[], object]] = [
        lambda: add(repository, VectorLabel("lisening"), 1),
        lambda: add(repository, VectorLabel("listening", 7), 1),
    ]
    for action in actions:
        with pytest.raises(NotFoundError) as caught:
            action()
        assert "did you mean `listening" in caught.value.hint
    with pytest.raises(NotFoundError, match="`listening` is not in use") as caught:
        rescale(repository, "listening", 1)
    assert "persona add listening" in caught.value.hint
    add(repository, LISTENING, 1)
    with pytest.raises(NotFoundError) as caught:
        remove(repository, "listning")
    assert caught.value.hint == "did you mean `listening`?"
    for act in (restore, revert):
        with pytest.raises(NotFoundError, match="there is no version `v9`"):
            act(repository, "v9")
    assert len(repository.versions()) == 2


def test_layers_that_the_base_does_not_have(repository: Repository) -> None:
    before = hand_files(repository)
    with pytest.raises(IncompatibleError, match="layers 2-99, the base has layers 0-"):
        add(repository, LISTENING, 1, layers=LayerRange(first=2, last=99))
    assert hand_files(repository) == before
    assert len(repository.versions()) == 1


def test_a_vector_whose_file_is_missing(repository: Repository) -> None:
    manifest = next(item for item in repository.manifests() if item.behavior == "listening")
    add(repository, LISTENING, 1)
    repository.vector_path(manifest.id).unlink()
    with pytest.raises(NotFoundError, match="the tensors of `listening@1` are missing"):
        rescale(repository, "listening", 0.5)
    remove(repository, "listening")  # what takes it away needs no tensors
    with pytest.raises(NotFoundError, match="the tensors of `listening@1` are missing"):
        restore(repository, "v2")


def test_a_vector_of_another_base(repository: Repository) -> None:
    (path,) = [
        repository.root / "manifests" / f"{item.id}.json"
        for item in repository.manifests()
        if item.behavior == "listening"
    ]
    data = json.loads(path.read_bytes())
    data["base"]["fingerprint"] = "c" * 64
    path.write_text(json.dumps(data))
    with pytest.raises(IncompatibleError, match=r"was made for base \(cccccccccccc\), this repository uses") as caught:
        add(repository, LISTENING, 1)
    assert "`persona train listening" in caught.value.hint


def test_another_base_is_never_recorded(repository: Repository) -> None:
    add(repository, LISTENING, 1)
    fingerprint = repository.config().base.fingerprint
    edit(repository, "persona.toml", fingerprint, "d" * 64)
    with pytest.raises(IncompatibleError, match="the versions are for"):
        save(repository)
    with pytest.raises(IncompatibleError, match="is for the base"):
        restore(repository, "v2")
    with pytest.raises(PersonaError, match="the files differ from v2"):
        add(repository, CONCISE, 1)
    edit(repository, "persona.toml", "d" * 64, fingerprint)
    assert not save(repository).new


def test_hand_edits_block_what_would_lose_them(repository: Repository) -> None:
    add(repository, LISTENING, 0.8)
    edit(repository, "behaviors/listening.toml", "scale = 0.8", "scale = 0.3 # softer")
    actions: list[Callable[[], object]] = [
        lambda: add(repository, CONCISE, 1),
        lambda: rescale(repository, "listening", 1),
        lambda: remove(repository, "listening"),
        lambda: compose_by(repository, Composition(method="ties")),
        lambda: revert(repository, "v2"),
    ]
    for action in actions:
        with pytest.raises(PersonaError, match=r"the files differ from v2: ~ listening@1 × 0.8 → listening@1 × 0.3"):
            action()
    done = save(repository, "softer")
    assert done.label == "v3"
    assert done.version.message == "softer"
    assert "# softer" in (repository.root / "behaviors/listening.toml").read_text()
    assert add(repository, CONCISE, 1).label == "v4"


def test_a_hand_edit_that_cannot_be_built_is_not_saved(repository: Repository) -> None:
    add(repository, LISTENING, 0.8)
    edit(repository, "behaviors/listening.toml", "scale = 0.8", 'scale = 0.8\nlayers = "0-99"')
    with pytest.raises(IncompatibleError, match="layers 0-99"):
        save(repository)
    edit(repository, "behaviors/listening.toml", "listening@1", "listening@5")
    with pytest.raises(NotFoundError, match="there is no vector `listening@5`"):
        save(repository)


def test_restore_is_exact(repository: Repository) -> None:
    files = [hand_files(repository)]
    personalities = [working_personality(repository)]
    actions: list[Callable[[], object]] = [
        lambda: add(repository, LISTENING, 0.8),
        lambda: compose_by(repository, Composition(method="ties", density=0.4)),
        lambda: add(repository, CONCISE, 0.5, layers=LayerRange(first=0, last=1)),
        lambda: remove(repository, "listening"),
    ]
    for action in actions:
        action()
        files.append(hand_files(repository))
        personalities.append(working_personality(repository))
    for number in (3, 1, 5, 4, 2):
        done = restore(repository, f"v{number}")
        assert done.version.message == f"restore v{number}"
        assert working_personality(repository) == personalities[number - 1]
        assert working_personality(repository).id == personalities[number - 1].id
    assert restore(repository, "v3", "back").version.message == "back"


def test_restore_drops_edits_and_undo_brings_them_back(repository: Repository) -> None:
    add(repository, LISTENING, 0.8)
    saved = hand_files(repository)
    edit(repository, "behaviors/listening.toml", "scale = 0.8", "scale = 0.3 # by hand")
    edited = hand_files(repository)
    done = restore(repository, "v2")
    assert done.new
    assert not done.changes
    assert len(repository.versions()) == 2
    assert use_line(repository) == "listening@1 × 0.8"
    undo(repository)
    assert hand_files(repository) == edited
    restore(repository, "v1")
    assert use_line(repository) == "the base alone"
    undo(repository)
    assert hand_files(repository) == edited
    assert saved != edited


def test_revert_takes_one_change_back_and_keeps_the_rest(repository: Repository) -> None:
    add(repository, LISTENING, 0.8)
    add(repository, CONCISE, 0.5)
    compose_by(repository, Composition(method="ties"))
    done = revert(repository, "v2")
    assert [str(change) for change in done.changes] == ["- listening@1 × 0.8"]
    assert done.version.message == "revert v2"
    revert(repository, "v4")
    assert str(working_personality(repository).composition) == "linear"
    assert use_line(repository) == "concise@1 × 0.5"
    again = revert(repository, "v5")  # the revert of a revert
    assert [str(change) for change in again.changes] == ["+ listening@1 × 0.8"]


def test_revert_refuses_what_was_changed_again(repository: Repository) -> None:
    add(repository, LISTENING, 0.8)
    rescale(repository, "listening", 0.4)
    compose_by(repository, Composition(method="ties"))
    compose_by(repository, Composition(method="ties", density=0.5))
    for version, what in (("v2", "listening"), ("v4", "composition")):
        with pytest.raises(PersonaError, match=f"`{what}` was changed again after {version}"):
            revert(repository, version)
    with pytest.raises(PersonaError, match="v1 has 0 parents"):
        revert(repository, "v1")
    assert len(repository.versions()) == 5


def test_tags(repository: Repository) -> None:
    add(repository, LISTENING, 0.8)
    tag(repository, "stable", "v1")
    tag(repository, "stable", "v1")
    with pytest.raises(PersonaError, match="the tag `stable` points at v1 already") as caught:
        tag(repository, "stable", "v2")
    assert caught.value.hint == "move it: `persona tag stable v2 --force`"
    tag(repository, "stable", "head", force=True)
    assert History(repository).find("stable").number == 2
    with pytest.raises(NotFoundError) as missing:
        untag(repository, "stabel")
    assert missing.value.hint == "did you mean `stable`?"
    untag(repository, "stable")
    assert repository.tags() == {}
    undo(repository)
    assert list(repository.tags()) == ["stable"]
    for name in ("v3", "head", "base", "abcdef"):
        with pytest.raises(UsageError, match="cannot be a tag"):
            tag(repository, name, "v1")


def test_undo_and_redo_walk_back_and_forth(repository: Repository) -> None:
    states = [hand_files(repository)]
    actions: list[Callable[[], object]] = [
        lambda: add(repository, LISTENING, 0.8),
        lambda: compose_by(repository, Composition(method="ties")),
        lambda: rescale(repository, "listening", 0.4),
    ]
    for action in actions:
        action()
        states.append(hand_files(repository))
    for before in reversed(states[:-1]):
        undo(repository)
        assert hand_files(repository) == before
    assert len(repository.versions()) == 1
    for after in states[1:]:
        redo(repository)
        assert hand_files(repository) == after
    assert len(repository.versions()) == 4
    with pytest.raises(PersonaError, match="there is nothing to redo"):
        redo(repository)
    undo(repository)
    add(repository, CONCISE, 1)
    with pytest.raises(PersonaError, match="there is nothing to redo"):
        redo(repository)


def test_undo_stops_at_the_beginning(repository: Repository) -> None:
    # two vectors were trained in this repository: their manifests go and come back
    labels = [item.label for item in repository.manifests()]
    undo(repository)
    undo(repository)
    assert repository.manifests() == []
    with pytest.raises(PersonaError, match="there is nothing to undo"):
        undo(repository)
    assert len(repository.versions()) == 1
    redo(repository)
    redo(repository)
    assert [item.label for item in repository.manifests()] == labels
    assert all(repository.vector_path(item.id).is_file() for item in repository.manifests())


def forget_last(repository: Repository) -> None:
    """Remove the newest entry of the log, as when the command was killed just before it wrote that."""
    (repository.local / "ops" / f"{repository.operations()[-1].number:08d}.json").unlink()


def test_undo_refuses_to_take_away_what_has_a_tag(repository: Repository) -> None:
    version = add(repository, LISTENING, 0.8).version
    tag(repository, "stable", "v2")
    forget_last(repository)
    with pytest.raises(PersonaError, match="cannot be undone: tag stable was made from it"):
        undo(repository)
    assert version.id in repository.versions()


def test_undo_refuses_to_take_away_what_has_a_child(repository: Repository) -> None:
    version = add(repository, CONCISE, 0.8).version
    add(repository, LISTENING, 0.8)
    forget_last(repository)
    with pytest.raises(PersonaError, match="cannot be undone: v3 was made from it") as caught:
        undo(repository)
    assert "`persona restore VERSION`" in caught.value.hint
    assert version.id in repository.versions()


def test_undo_of_training_refuses_while_the_vector_is_in_use(repository: Repository) -> None:
    operation = repository.operations()[-1]
    assert operation.command.startswith("train concise")
    path = repository.root / "behaviors/concise.toml"
    path.write_text(path.read_text() + '\n[use]\nvector = "concise@1"\nscale = 1.0\n')
    with pytest.raises(PersonaError, match=r"cannot be undone: behaviors/concise\.toml was made from it"):
        undo(repository)
    save(repository)
    forget_last(repository)
    with pytest.raises(PersonaError, match="cannot be undone: v2"):
        undo(repository)


def test_undo_refuses_to_lose_an_edit(repository: Repository) -> None:
    add(repository, LISTENING, 0.8)
    edit(repository, "behaviors/listening.toml", "scale = 0.8", "scale = 0.3")
    with pytest.raises(PersonaError, match=r"behaviors/listening\.toml was changed since `add"):
        undo(repository)
    assert use_line(repository) == "listening@1 × 0.3"


def test_undo_keeps_the_line_ends_and_comments_of_the_user(repository: Repository) -> None:
    path = repository.root / "behaviors/listening.toml"
    path.write_bytes(b"# mine\r\n" + path.read_bytes().replace(b"\n", b"\r\n"))
    before = path.read_bytes()
    add(repository, LISTENING, 0.8)
    assert b"# mine\r\n" in path.read_bytes()
    undo(repository)
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_read_is_set_back(repository: Repository) -> None:
    """Its description and probes come from the last text that could be read, and `undo` brings the broken text back."""
    add(repository, VectorLabel("listening"), 0.5)
    path = repository.root / "behaviors/listening.toml"
    good = path.read_text()
    assert "probes" in good
    path.write_text(good + "garbage = [")
    with pytest.raises(CorruptError, match=r"behaviors/listening\.toml is not valid TOML"):
        rescale(repository, "listening", 0.7)
    restore(repository, "head")
    assert path.read_text() == good
    undo(repository)
    assert path.read_text() == good + "garbage = ["
