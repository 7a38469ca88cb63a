from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from personality.changing_model import ChangingModel
from personality.composition.composer import Composer
from personality.composition.opening import composer_of
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import Composition, Personality
from personality.manifests.repository import Repository
from personality.versions.changes import add
from personality.versions.history import History


@pytest.fixture
def repository(repository_copy: Path) -> Repository:
    """A playground of the test's own that uses all of its vectors."""
    found = Repository(repository_copy)
    for manifest in found.manifests():
        add(found, VectorLabel(manifest.behavior), 0.8)
    return found


def recipes(repository: Repository) -> Iterator[Personality]:
    """The head's behaviors one by one, together, at other scales, by another method, and none."""
    whole = History(repository).head().personality
    yield whole
    for use in whole.uses:
        yield whole.model_copy(update={"uses": (use,)})
    yield whole.with_use(whole.uses[0].model_copy(update={"scale": -0.4}))
    yield whole.model_copy(update={"composition": Composition(method="ties", density=0.1)})
    yield whole.model_copy(update={"uses": ()})
    yield whole


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def test_the_model_is_what_each_recipe_says(repository: Repository) -> None:
    changing = ChangingModel(repository)
    for personality in recipes(repository):
        composer = composer_of(repository, personality)
        with changing.taking(personality) as (model, _):
            for name, found in weights(model).items():
                assert torch.equal(found, composer.tensor(name).to(found.dtype)), (str(personality), name)


def test_only_what_changes_is_composed_again(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    changing = ChangingModel(repository)
    personality = next(recipes(repository))
    composed: list[str] = []
    original = Composer.tensor

    def counted(self: Composer, name: str) -> torch.Tensor:
        composed.append(name)
        return original(self, name)

    monkeypatch.setattr(Composer, "tensor", counted)
    with changing.taking(personality):
        assert composed
    composed.clear()
    with changing.taking(personality):
        assert composed == []


def test_an_interrupted_change_is_made_whole_by_the_next(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing = ChangingModel(repository)
    personality = next(recipes(repository))
    original, left = Composer.tensor, 3

    def interrupted(self: Composer, name: str) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return original(self, name)

    monkeypatch.setattr(Composer, "tensor", interrupted)
    with pytest.raises(KeyboardInterrupt), changing.taking(personality):
        pass
    monkeypatch.undo()
    composer = composer_of(repository, personality)
    with changing.taking(personality) as (model, _):
        assert all(torch.equal(found, composer.tensor(name).to(found.dtype)) for name, found in weights(model).items())
