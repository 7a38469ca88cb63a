"""Who causes what, on a real history of the playground."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from personality.composition.opening import composer_of
from personality.manifests.errors import DataError, UsageError
from personality.manifests.personality_record import Composition, LayerRange, Personality
from personality.manifests.repository import Repository
from personality.searching.ablation import ablate
from personality.searching.players import PartialModel, PartialPersonality, coalition, players_of
from personality.versions.history import History


def _whole(repository: Repository, name: str = "v9") -> Personality:
    return History(repository).find(name).personality


def test_names_the_planted_vector(history_repository: Repository) -> None:
    version = History(history_repository).find("v9")
    found = ablate(history_repository, version, goals=["listening", "push_back"], rows=6)
    assert [str(player) for player in found.players] == ["listening@1", "obeying@1"]
    assert [account.goal.name for account in found.accounts] == ["listening", "push_back"]
    assert found.exact
    assert found.coalitions == 4
    back = found.accounts[1]
    by_name = {str(item.player): item for item in back.contributions}
    assert by_name["obeying@1"].effect == "lowers"
    assert by_name["obeying@1"].left_out.value < -0.3
    assert by_name["obeying@1"].sampling_error == 0
    for account in found.accounts:
        total = sum(item.shapley.value for item in account.contributions)
        assert total == pytest.approx(account.change.value)
        assert account.change.value == pytest.approx(account.version.value - account.base.value)


def test_by_layers_the_parts_add_up_to_the_version(history_repository: Repository) -> None:
    version = History(history_repository).find("v9")
    found = ablate(history_repository, version, goals=["push_back"], ranges=[LayerRange.parse("0-1")], rows=3)
    names = [str(player) for player in found.players]
    assert names[:2] == ["listening@1, layers 0-1", "listening@1, the rest"]
    (account,) = found.accounts
    assert sum(item.shapley.value for item in account.contributions) == pytest.approx(account.change.value)


@pytest.mark.parametrize("composition", [Composition(), Composition(method="ties", density=0.3)])
def test_a_part_acts_in_its_layers_as_the_whole_does(history_repository: Repository, composition: Composition) -> None:
    whole = _whole(history_repository).model_copy(update={"composition": composition})
    composer = composer_of(history_repository, whole)
    players = players_of(composer, whole, [LayerRange.parse("0-1")])
    alone = coalition(whole, players, frozenset({0}))
    assert isinstance(alone, PartialPersonality)
    assert alone.id != whole.id
    model = PartialModel(history_repository)
    part = model._composer(alone)
    only = composer_of(history_repository, whole.without("obeying"))
    assert {name for name in part.touched if ".layers.0." not in name and ".layers.1." not in name} == set()
    for name in part.touched:  # with the thresholds that TIES finds for the whole vector
        assert torch.equal(part.tensor(name), only.tensor(name))
    everyone = frozenset(range(len(players)))
    assert coalition(whole, players, everyone) == whole
    assert coalition(whole, players, frozenset()).uses == ()
    all_but_none = model._composer(alone.model_copy(update={"absent": ()}))
    for name in composer.touched[::7]:
        assert np.array_equal(all_but_none.tensor(name).float().numpy(), composer.tensor(name).float().numpy())


def test_what_cannot_be_taken_apart(history_repository: Repository) -> None:
    history = History(history_repository)
    with pytest.raises(DataError, match="v1 uses no vector"):
        ablate(history_repository, history.find("v1"))
    with pytest.raises(UsageError, match="the layers 0-2 and 2-3 overlap"):
        ablate(
            history_repository, history.find("v9"), ranges=[LayerRange(first=0, last=2), LayerRange(first=2, last=3)]
        )
    with pytest.raises(UsageError, match="nothing acts in the layers 90"):
        ablate(history_repository, history.find("v9"), ranges=[LayerRange(first=90, last=91)])
    with pytest.raises(UsageError, match="nothing to measure called `obeying`"):
        ablate(history_repository, history.find("v9"), goals=["obeying"])
