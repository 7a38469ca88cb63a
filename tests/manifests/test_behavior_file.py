from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality.manifests.behavior_file import BehaviorFile, with_use, without_use
from personality.manifests.errors import CorruptError
from personality.manifests.personality_record import LayerRange, Use

BY_HAND = """\
# Written by Ada.
description = "Follows clear directions."  # the main one

[[probes]]
# what is asked most
name = "accept"
file = "listening.accept.jsonl"
side = "accept"
yes = [
    "Okay",  # plain
]
no = ["Instead"]
"""
COMMENTS = ["# Written by Ada.", "# the main one", "# what is asked most", "# plain"]


@st.composite
def uses(draw: st.DrawFn) -> Use:
    first = draw(st.integers(0, 50))
    layers = draw(st.none() | st.integers(first, 99).map(lambda last: LayerRange(first=first, last=last)))
    return Use(
        behavior="listening",
        number=draw(st.integers(1, 999)),
        vector="a" * 64,
        scale=draw(st.floats(allow_nan=False, allow_infinity=False)),
        layers=layers,
        density=draw(st.none() | st.floats(0, 1, exclude_min=True)),
    )


def entry_of(text: str) -> dict[str, Any]:
    found = BehaviorFile.from_text(text, "x.toml").use
    return found.model_dump() if found else {}


def expected(use: Use) -> dict[str, Any]:
    layers = str(use.layers) if use.layers else None
    return {"vector": use.label, "scale": use.scale, "layers": layers, "density": use.density}


@given(uses(), uses())
def test_a_use_round_trips_and_everything_else_stays(one: Use, other: Use) -> None:
    text = with_use(BY_HAND, one)
    assert entry_of(text) == expected(one)
    changed = with_use(text, other)
    assert entry_of(changed) == expected(other)
    for comment in COMMENTS:
        assert comment in changed
    back = without_use(changed)
    assert back is not None
    assert BehaviorFile.from_text(back, "x") == BehaviorFile.from_text(BY_HAND, "x")
    assert back.rstrip() == BY_HAND.rstrip()


@given(uses(), uses())
def test_a_file_of_its_own_goes_with_its_use(one: Use, other: Use) -> None:
    assert entry_of(with_use(None, one)) == expected(one)
    assert entry_of(with_use("", one)) == expected(one)
    assert without_use(with_use(with_use(None, one), other)) is None


def test_comments_inside_the_use_stay() -> None:
    text = "# top\n[use] # in use\n# softer for support\nvector = 'listening@1'\nscale = 0.5 # was 0.8\ndensity = 0.1\n"
    use = Use(behavior="listening", number=2, vector="a" * 64, scale=0.25)
    changed = with_use(text, use)
    for comment in ("# top", "# in use", "# softer for support", "# was 0.8"):
        assert comment in changed
    assert entry_of(changed) == expected(use)
    assert without_use(changed) == "# top\n"


@pytest.mark.parametrize(
    "text",
    ['use = {vector = "listening@1", scale = 1.0}\n', 'use.vector = "listening@1"\nuse.scale = 1\n'],
)
def test_other_spellings_of_the_table(text: str) -> None:
    use = Use(behavior="listening", number=3, vector="a" * 64, scale=-0.5, layers=LayerRange(first=1, last=2))
    assert entry_of(with_use(text, use)) == expected(use)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[use]\nvector = 'listening@1'\nscale = ", "not valid TOML"),
        ("[use]\nvector = 'listening@1'\n", "use.scale: Field required"),
        ("[use]\nvector = 'listening'\nscale = 1\n", "`listening` needs a number"),
        ("[use]\nvector = 'Listening@1'\nscale = 1\n", "cannot be a behavior's name"),
        ("[use]\nvector = 'listening@1'\nscale = nan\n", "use.scale: Input should be a finite number"),
        ("[use]\nvector = 'listening@1'\nscale = -inf\n", "use.scale: Input should be a finite number"),
        ("[use]\nvector = 'listening@1'\nscale = 'much'\n", "use.scale"),
        ("[use]\nvector = 'listening@1'\nscale = 1\nlayers = '9-3'\n", "not a range of layers"),
        ("[use]\nvector = 'listening@1'\nscale = 1\ndensity = 0\n", "use.density"),
        ("[use]\nvector = 'listening@1'\nscale = 1\nscael = 2\n", "use.scael: Extra inputs"),
        ("[[probes]]\nname = 'x'\n", "probes.0.file: Field required"),
        ("[[probes]]\nname = 'x'\nfile = 'f'\nside = 'left'\n", "probes.0.side"),
    ],
)
def test_what_a_hand_can_get_wrong(text: str, words: str) -> None:
    with pytest.raises(CorruptError) as caught:
        BehaviorFile.from_text(text, "behaviors/listening.toml")
    assert "behaviors/listening.toml" in caught.value.message
    assert words in caught.value.message
    assert caught.value.hint
