from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from personality.manifests import config
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.canonical import digest
from personality.manifests.composition_methods import METHODS, NATIVE, REFUSED, Parameter, check_spread, method_of
from personality.manifests.config import Config
from personality.manifests.personality_record import Composition

BASE = BaseIdentity(source="base", fingerprint="b" * 64)
OTHERS = [name for name in METHODS if name not in NATIVE]

# Digests of what was recorded before there were other methods: JSON as written, and what enters a personality's id.
RECORDED: list[tuple[dict[str, Any], str, str]] = [
    (
        {},
        "888511ba259d8782d59d34c2a3349b029d91af86671e8651952d875a7f2279fb",
        "69a1816c283cb73e2011d154ca9bc268341235e6e1c626e529015ea464ed059a",
    ),
    (
        {"method": "ties"},
        "4af4bcdd7abed821120f1b835500679fabc0be5642d92db3755d9ea40b48f30f",
        "4af4bcdd7abed821120f1b835500679fabc0be5642d92db3755d9ea40b48f30f",
    ),
    (
        {
            "method": "ties",
            "density": 0.1,
            "normalize": "mean",
            "trim_scope": "tensor",
            "lambda": 0.5,
            "steering": "orthogonal",
        },
        "201d928affde839ccb19fcc16f050f00ca5b923aef755d75e8a4c73a659a5fbb",
        "201d928affde839ccb19fcc16f050f00ca5b923aef755d75e8a4c73a659a5fbb",
    ),
]


@pytest.mark.parametrize(("fields", "whole", "effective"), RECORDED)
def test_what_was_recorded_keeps_its_digests(fields: dict[str, Any], whole: str, effective: str) -> None:
    composition = Composition.model_validate(fields)
    assert digest(composition.as_json()) == whole
    assert digest(composition.effective()) == effective
    # A copy that comes from another method carries nothing of it.
    former = Composition(method="dare_ties", seed=4).model_copy(update={"method": composition.method})
    assert former.as_json().keys() <= composition.as_json().keys() | {"steering"}


def test_mergekit_has_no_method_that_is_neither_here_nor_refused() -> None:
    from mergekit.merge_methods import registered_methods

    names = {method.spec.name for method in registered_methods()}
    assert names <= METHODS.keys() | REFUSED.keys()
    assert METHODS.keys() - names == {"tsv_merge", "iso_c"}


@pytest.mark.parametrize("method", OTHERS)
def test_every_setting_is_recorded_and_comes_back(method: str) -> None:
    composition = Composition(method=method)
    data = composition.as_json()
    assert data.get("parameters", {}) == {item.name: item.default for item in METHODS[method].parameters}
    assert ("seed" in data) == METHODS[method].random
    assert data.keys() <= {"method", "parameters", "seed"}
    assert composition.effective() == data
    assert Composition.model_validate(data) == composition
    assert hash(Composition.model_validate(data)) == hash(composition)
    assert str(composition).startswith(method)


def settings() -> st.SearchStrategy[Composition]:
    """Any composition that can be recorded."""

    def value(parameter: Parameter) -> st.SearchStrategy[Any]:
        if parameter.choices:
            return st.sampled_from(parameter.choices)
        if isinstance(parameter.default, bool):
            return st.booleans()
        if parameter.name == "epsilon":
            return st.floats(0, 0.2)
        if parameter.name == "density":
            return st.floats(0.3, 0.7)
        if isinstance(parameter.default, int):
            return st.integers(1, 1000)
        return st.floats(0.001, 0.999)

    def of(name: str) -> st.SearchStrategy[Composition]:
        method = METHODS[name]
        fields: dict[str, Any] = {"method": st.just(name), "steering": st.sampled_from(["sum", "orthogonal"])}
        if name not in NATIVE:
            table = {item.name: value(item) for item in method.parameters}
            fields["parameters"] = st.fixed_dictionaries({}, optional=table)
        if method.random:
            fields["seed"] = st.integers(0, 2**53)
        return st.fixed_dictionaries(fields).map(Composition.model_validate)

    return st.sampled_from(sorted(METHODS)).flatmap(of)


@given(st.lists(settings(), min_size=1, max_size=4))
def test_toml_gives_back_what_was_written(compositions: list[Composition]) -> None:
    """One after the other into the same file, as `persona method` does."""
    text = Config(base=BASE).to_text() + "\n[training]\nsteps = 3\n"
    for composition in compositions:
        text = config.with_composition(text, composition)
        read = Config.from_text(text)
        assert read.composition.effective() == composition.effective()
        assert digest(read.composition.effective()) == digest(composition.effective())
        assert read.training == {"steps": 3}
    assert Config.from_text(Config(base=BASE, composition=compositions[-1]).to_text()).composition.effective() == (
        compositions[-1].effective()
    )


def test_equal_settings_have_equal_digests() -> None:
    """1, 1.0 and their texts are one value, and a default is the same given or not."""
    plain = Composition(method="dare_ties", parameters={"density": 1, "rescale": "true", "lambda": "-0"})
    other = Composition(method="dare_ties", parameters={"density": "1.0", "lambda": 0.0})
    assert digest(plain.as_json()) == digest(other.as_json())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"method": "dareties"}, "did you mean `dare_ties`"),
    ({"method": "passthrough"}, "copies one model"),
    ({"method": "task_arithmetic"}, "called `linear` here"),
    ({"method": 3}, "valid string"),
    ({"method": []}, "valid string"),
    ({"method": "slerp", "seed": 3}, "draws nothing at random"),
    ({"method": "ties", "seed": 3}, "draws nothing at random"),
    ({"method": "dare_ties", "seed": -1}, "greater than or equal to 0"),
    ({"method": "dare_ties", "density": 0.3}, "belongs under `parameters`"),
    ({"method": "dare_ties", "parameters": {"densty": 1}}, "`density`: a number in \\(0, 1\\]; `rescale`: true or"),
    ({"method": "dare_ties", "parameters": {"density": 0}}, "density is a number in \\(0, 1\\], got 0"),
    ({"method": "dare_ties", "parameters": {"density": True}}, "density is a number"),
    ({"method": "dare_ties", "parameters": {"rescale": 1}}, "rescale is true or false, got 1"),
    ({"method": "dare_ties", "parameters": {"normalize": "mean"}}, "normalize is sum or weighted"),
    ({"method": "della", "parameters": {"density": 0.1}}, "density 0.1 ± epsilon 0.15 leaves \\(0, 1\\)"),
    ({"method": "iso_c", "parameters": {"lambda": float("nan")}}, "lambda is any finite number"),
    ({"method": "iso_c", "parameters": {"lambda": float("inf")}}, "lambda is any finite number"),
    ({"method": "karcher", "parameters": {"max_iter": 1.5}}, "max_iter is a whole number in \\[1, 1000\\]"),
    ({"method": "slerp", "parameters": {"t": 1}}, "`slerp` has no `t`; it has no settings"),
    ({"method": "ties", "parameters": {"density": 0.3}}, "stand beside `method`"),
    ({"method": "iso_c", "parameters": 3}, "valid dictionary"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_what_a_method_does_not_have_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Composition.model_validate(fields)


def test_density_one_goes_with_any_epsilon() -> None:
    check_spread(1.0, 0.4)
    for density, epsilon in ((0.4, 0.4), (0.6, 0.4), (0.1, 0.2)):
        with pytest.raises(ValueError, match="leaves"):
            check_spread(density, epsilon)


def test_every_default_is_a_value_and_every_citation_there() -> None:
    for method in METHODS.values():
        assert method_of(method.name) is method
        assert method.summary and method.citation
        for parameter in method.parameters:
            assert parameter.read(parameter.default) == parameter.default
            assert parameter.read(str(parameter.default)) == parameter.default


def test_the_documentation_has_every_method_with_its_settings_and_paper() -> None:
    page = (Path(__file__).parents[2] / "docs/composition.md").read_text(encoding="utf-8")
    for method in METHODS.values():
        assert f"`{method.name}`" in page
        assert all(f"`{item.name}`" in page for item in method.parameters)
        for paper in re.findall(r"arXiv ([\d.]+)", method.citation):
            assert f"https://arxiv.org/abs/{paper}" in page
    assert all(f"`{name}`" in page for name in REFUSED)
