"""What an ablation takes out: whole uses, or what a use does in some layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from personality.changing_model import ChangingModel
from personality.composition.composer import Composer
from personality.composition.opening import composer_of
from personality.manifests.canonical import digest
from personality.manifests.errors import UsageError
from personality.manifests.personality_record import LayerRange, Personality


@dataclass(frozen=True)
class Player:
    """A use, or a part of one.

    Attributes:
        label: of the use, such as `listening@1`.
        behavior: whose it is.
        part: its layers as typed, `the rest` for all others, or empty for the whole use.
        layers: where the part acts; None among them for tensors outside of all layers. Empty for the whole use.
    """

    label: str
    behavior: str
    part: str = ""
    layers: frozenset[int | None] = frozenset()

    def __str__(self) -> str:
        if not self.part:
            return self.label
        return f"{self.label}, {self.part if self.part == REST else f'layers {self.part}'}"


REST = "the rest"


class PartialPersonality(Personality):
    """A personality of which some uses act in a part of their layers only. It is measured, never recorded.

    Attributes:
        absent: the label of a use and a layer where it does not act, sorted; −1 for tensors outside of all layers.
    """

    absent: tuple[tuple[str, int], ...] = ()

    @property
    def id(self) -> str:
        """Digest of what determines the weights."""
        return digest({"personality": super().id, "absent": [list(item) for item in self.absent]})


class PartialModel(ChangingModel):
    """A model that takes on partial personalities too."""

    _whole: tuple[str, Composer] | None = None

    def _composer(self, personality: Personality) -> Composer:
        if not isinstance(personality, PartialPersonality):
            return super()._composer(personality)
        whole = Personality(base=personality.base, composition=personality.composition, uses=personality.uses)
        if self._whole is None or self._whole[0] != whole.id:  # kept, since it knows what TIES trims
            self._whole = whole.id, composer_of(self.repository, whole)
        absent = set(personality.absent)
        return self._whole[1].keeping(lambda label, layer: (label, -1 if layer is None else layer) not in absent)


def players_of(composer: Composer, personality: Personality, ranges: Sequence[LayerRange] = ()) -> list[Player]:
    """The uses that act; with ranges of layers, the parts of them that act there, and what remains of each.

    Args:
        composer: of the personality.
        personality: what is taken apart.
        ranges: that do not overlap.

    Raises:
        UsageError: when two ranges overlap, or nothing acts in one of them.
    """
    acting = composer.acting
    uses = [use for use in personality.uses if acting.get(use.label)]
    if not ranges:
        return [Player(use.label, use.behavior) for use in uses]
    for index, first in enumerate(ranges):
        for second in ranges[index + 1 :]:
            if first.first <= second.last and second.first <= first.last:
                raise UsageError(f"the layers {first} and {second} overlap", "such as `--by-layers 0-1,2-3`")
        if not any(_inside(acting[use.label], first) for use in uses):
            raise UsageError(f"nothing acts in the layers {first}", "such as `--by-layers 0-1,2-3`")
    players = []
    for use in uses:
        left = acting[use.label]
        for item in ranges:
            if found := _inside(left, item):
                players.append(Player(use.label, use.behavior, str(item), found))
                left = left - found
        if left:
            players.append(Player(use.label, use.behavior, REST, frozenset(left)))
    return players


def _inside(layers: set[int | None], wanted: LayerRange) -> frozenset[int | None]:
    return frozenset(layer for layer in layers if layer is not None and layer in wanted)


def coalition(personality: Personality, players: Sequence[Player], present: frozenset[int]) -> Personality:
    """The personality with some of the players only, by their places in the list."""
    away = [player for place, player in enumerate(players) if place not in present]
    staying = {player.label for place, player in enumerate(players) if place in present}
    if any(player.label in staying for player in away):
        gone = sorted((player.label, -1 if layer is None else layer) for player in away for layer in player.layers)
        return PartialPersonality(
            base=personality.base, composition=personality.composition, uses=personality.uses, absent=tuple(gone)
        )
    for player in away:
        personality = personality.without(player.behavior)
    return personality
