from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality.manifests.base_identity import BaseIdentity
from personality.manifests.config import Config, with_composition
from personality.manifests.errors import CorruptError, SchemaError
from personality.manifests.personality_record import Composition

BASE = BaseIdentity(source="base", revision="main", fingerprint="b" * 64)


@st.composite
def compositions(draw: st.DrawFn) -> Composition:
    method: Literal["linear", "ties"] = draw(st.sampled_from(["linear", "ties"]))
    if method == "linear":
        return Composition()
    return Composition.model_validate(
        {
            "method": method,
            "density": draw(st.floats(0, 1, exclude_min=True)),
            "normalize": draw(st.sampled_from(["sum", "mean", "weighted"])),
            "trim_scope": draw(st.sampled_from(["vector", "tensor"])),
            "lambda": draw(st.floats(allow_nan=False, allow_infinity=False)),
        }
    )


@given(compositions(), compositions())
def test_round_trip(first: Composition, second: Composition) -> None:
    config = Config(base=BASE, composition=first, training={"lr": 1e-05, "rank": 8, "method": "orpo"})
    text = config.to_text()
    assert Config.from_text(text) == config
    changed = Config.from_text(with_composition(text, second))
    assert changed.composition == second
    assert changed.base == config.base
    assert changed.training == config.training


def test_comments_stay() -> None:
    text = Config(base=BASE).to_text() + "# the end\n"
    text = text.replace('method = "linear"', 'method = "linear"  # simple\n# more').replace("[base]", "# ours\n[base]")
    changed = with_composition(text, Composition(method="ties", density=0.3))
    for comment in ("# ours", "# simple", "# more", "# the end", "# Edit by hand"):
        assert comment in changed
    assert Config.from_text(changed).composition.density == 0.3
    assert with_composition(changed, Config.from_text(changed).composition) == changed


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        ("format = 1", "format = 2", SchemaError, "persona.toml has format 2"),
        ("format = 1\n", "", SchemaError, "format None"),
        ('method = "linear"', 'method = "magic"', CorruptError, "composition.method"),
        ("b" * 64, "xyz", CorruptError, "base.fingerprint"),
        ("[composition]", "[mood]\nx = 1\n[composition]", CorruptError, "mood"),
        ("[base]", "[base", CorruptError, "not valid TOML"),
    ],
)
def test_what_a_hand_can_get_wrong(old: str, new: str, error: type[Exception], words: str) -> None:
    text = Config(base=BASE).to_text()
    assert old in text
    with pytest.raises(error, match=words):
        Config.from_text(text.replace(old, new, 1))
