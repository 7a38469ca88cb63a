"""The composition methods by name: parameters, ranges, citations. docs/composition.md has the formulas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from personality.manifests.names import did_you_mean

Value = bool | int | float | str


@dataclass(frozen=True)
class Parameter:
    """One setting of a method.

    Attributes:
        name: what it is called in a recipe.
        default: used where it is not given; its type is the parameter's.
        meaning: in a few words.
        interval: of a number, such as `(0, 1]`.
        choices: of a word.
    """

    name: str
    default: Value
    meaning: str
    interval: str = ""
    choices: tuple[str, ...] = ()

    @property
    def values(self) -> str:
        """What it may be, as people read it."""
        if self.choices:
            return " or ".join(self.choices)
        if isinstance(self.default, bool):
            return "true or false"
        kind = "whole number" if isinstance(self.default, int) else "number"
        return f"any finite {kind}" if "-inf" in self.interval else f"a {kind} in {self.interval}"

    def read(self, given: object) -> Value:
        """A value as it is recorded, so that equal settings have equal digests: 1 becomes 1.0 where 0.5 may stand.

        Args:
            given: of the parameter's type, or its text.

        Raises:
            ValueError: when it is not one of `values`.
        """
        found = self._typed(given)
        if found is None:
            raise ValueError(f"{self.name} is {self.values}, got {given}")
        return found

    def _typed(self, given: object) -> Value | None:
        if self.choices:
            return given if isinstance(given, str) and given in self.choices else None
        if isinstance(self.default, bool):
            return given if isinstance(given, bool) else {"true": True, "false": False}.get(str(given).lower())
        if isinstance(given, bool) or not isinstance(given, int | float | str):
            return None
        try:
            number = float(given) + 0.0  # -0.0 becomes 0.0
        except ValueError:
            return None
        low, high = (float(end) for end in self.interval[1:-1].split(","))
        inside = (number > low or (number == low and self.interval[0] == "[")) and (
            number < high or (number == high and self.interval[-1] == "]")
        )
        if not inside or (isinstance(self.default, int) and number != int(number)):
            return None
        return int(number) if isinstance(self.default, int) else number


@dataclass(frozen=True)
class Method:
    """How vectors become one change of the weights.

    Attributes:
        name: in recipes and on the command line.
        summary: one line.
        citation: authors and paper, or where it comes from.
        parameters: its settings; empty for `linear` and `ties`, whose settings are fields of the composition.
        random: whether it draws at random, so that it has a seed.
        least: vectors that must change a tensor for the method to have a meaning there; fewer are added up.
        most: vectors that may change one tensor; None for any number.
    """

    name: str
    summary: str
    citation: str
    parameters: tuple[Parameter, ...] = ()
    random: bool = False
    least: int = 1
    most: int | None = None

    def complete(self, given: Mapping[str, object]) -> dict[str, Value]:
        """Every parameter's value, given or default, by name.

        Raises:
            ValueError: for a parameter that the method does not have, or a value that it cannot take.
        """
        known = {item.name: item for item in self.parameters}
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"`{self.name}` has no {', '.join(f'`{name}`' for name in unknown)}; {self.settings}")
        found = {name: item.read(given.get(name, item.default)) for name, item in known.items()}
        density, epsilon = found.get("density"), found.get("epsilon")
        if isinstance(density, float) and isinstance(epsilon, float):
            check_spread(density, epsilon)
        return found

    @property
    def settings(self) -> str:
        """What can be set, in one line."""
        if self.name == "ties":
            return "its settings stand beside `method`: density, normalize, trim_scope, lambda"
        if not self.parameters:
            return "it has no settings"
        return "it has " + "; ".join(f"`{item.name}`: {item.values}" for item in self.parameters)


def check_spread(density: float, epsilon: float) -> None:
    """DELLA keeps an element with a probability between density − ε and density + ε.

    Raises:
        ValueError: when that leaves (0, 1); density 1 keeps everything whatever ε is.
    """
    if density < 1 and not 0 < density - epsilon <= density + epsilon < 1:
        raise ValueError(f"density {density:g} ± epsilon {epsilon:g} leaves (0, 1)")


def _density(default: float, meaning: str = "share of each tensor's elements that is kept") -> Parameter:
    return Parameter("density", default, meaning, "(0, 1]")


_NORMALIZE = Parameter(
    "normalize", "sum", "divide by nothing, or by the |scale|s of what is added", choices=("sum", "weighted")
)
_LAMBDA = Parameter("lambda", 1.0, "factor on the result", "(-inf, inf)")
_EPSILON = Parameter("epsilon", 0.15, "half the spread of the probabilities", "[0, 0.5)")
_GAMMA = Parameter("gamma", 0.01, "share of the largest elements that is dropped", "[0, 1)")
_SHARED = Parameter("epsilon", 1e-5, "magnitude up to which an element counts as unchanged", "[0, inf)")


def _rescale(default: bool) -> Parameter:
    return Parameter("rescale", default, "give each tensor back the L1 norm that it had before")


_DARE = "Yu et al. 2023, arXiv 2311.03099"
_DELLA = "Deep et al. 2024, arXiv 2406.11617"
_BREADCRUMBS = "Davari & Belilovsky 2023, arXiv 2312.06795"
_RAM = "Reinforced Agent Merging, arXiv 2601.13572"

METHODS: Final[dict[str, Method]] = {
    item.name: item
    for item in (
        Method("linear", "the sum of the scaled vectors", "task arithmetic, Ilharco et al. 2022, arXiv 2212.04089"),
        Method("ties", "trim, elect a sign per element, add what agrees", "Yadav et al. 2023, arXiv 2306.01708"),
        Method(
            "dare_linear",
            "drop elements at random, then sum",
            _DARE,
            (_density(0.5), _rescale(True), _NORMALIZE, _LAMBDA),
            random=True,
        ),
        Method(
            "dare_ties",
            "drop elements at random, then elect signs as TIES does",
            _DARE,
            (_density(0.5), _rescale(True), _NORMALIZE, _LAMBDA),
            random=True,
        ),
        Method(
            "della",
            "drop elements at random, small ones rather, then elect signs",
            _DELLA,
            (_density(0.5), _EPSILON, _rescale(True), _NORMALIZE, _LAMBDA),
            random=True,
        ),
        Method(
            "della_linear",
            "drop elements at random, small ones rather, then sum",
            _DELLA,
            (_density(0.5), _EPSILON, _rescale(True), _NORMALIZE, _LAMBDA),
            random=True,
        ),
        Method(
            "breadcrumbs",
            "drop the largest and the smallest elements, then sum",
            _BREADCRUMBS,
            (_density(0.9), _GAMMA, _rescale(False), _NORMALIZE, _LAMBDA),
        ),
        Method(
            "breadcrumbs_ties",
            "drop the largest and the smallest elements, then elect signs",
            _BREADCRUMBS,
            (_density(0.9), _GAMMA, _rescale(False), _NORMALIZE, _LAMBDA),
        ),
        Method(
            "sce",
            "select where vectors vary, weigh by their energy, erase what opposes",
            "Wan et al. 2024, arXiv 2408.07990",
            (Parameter("select_topk", 1.0, "share of the varying elements that is kept", "(0, 1]"),),
            least=2,
        ),
        Method("ram", "add what one vector changes, average what several change", _RAM, (_SHARED,)),
        Method(
            "ramplus_tl",
            "as ram, and strengthen what only one vector changes",
            _RAM,
            (
                Parameter("r", 0.1, "how much it is strengthened", "[0, inf)"),
                Parameter("alpha", 0.2, "limit of the ratio of shared to own elements", "[0, inf)"),
                _SHARED,
            ),
        ),
        Method(
            "model_stock",
            "the mean, drawn towards the base the less vectors agree",
            "Jang et al. 2024, arXiv 2403.19522",
            (Parameter("filter_wise", False, "one ratio per row rather than per tensor"),),
            least=2,
        ),
        Method(
            "slerp",
            "from the base to one fine-tune on the sphere",
            "Shoemake 1985, doi 10.1145/325334.325242",
            most=1,
        ),
        Method(
            "nuslerp",
            "between two vectors on the sphere",
            "mergekit's NuSLERP, after Shoemake 1985",
            (
                _NORMALIZE,
                Parameter("flatten", True, "turn each tensor as a whole rather than by rows or columns"),
                Parameter("row_wise", False, "where not flattened: turn a matrix's columns rather than its rows"),
            ),
            least=2,
            most=2,
        ),
        Method(
            "multislerp",
            "the mean direction of the vectors at their mean length",
            "goddard.blog/posts/multislerp-wow-what-a-cool-idea",
            (_NORMALIZE,),
            least=2,
        ),
        Method(
            "karcher",
            "the mean on the sphere of the base and the fine-tunes",
            "Karcher 1977; for models arXiv 2603.04972",
            (
                Parameter("max_iter", 10, "most steps", "[1, 1000]"),
                Parameter("tol", 1e-5, "angle at which steps end", "(0, 1)"),
            ),
        ),
        Method(
            "arcee_fusion",
            "keep the changes of one vector that matter most",
            "Arcee Fusion, arcee.ai",
            random=True,
            most=1,
        ),
        Method(
            "nearswap",
            "one vector, no element changed by more than t",
            "alchemonaut, QuartetAnemoi-70B-t0.0001 (model card)",
            (Parameter("t", 0.0001, "largest change of an element", "(0, inf)"),),
            most=1,
        ),
        Method(
            "tsv_merge",
            "each matrix's leading singular vectors, made orthogonal to each other",
            "Gargiulo et al. 2024, arXiv 2412.00081",
            (_LAMBDA,),
        ),
        Method(
            "iso_c",
            "the sum with all singular values made equal",
            "Marczak et al. 2025, arXiv 2502.04959",
            (_LAMBDA,),
        ),
    )
}
"""All methods by name, in the order of the documentation."""

NATIVE: Final = ("linear", "ties")
"""Composed block by block; their settings are fields of the composition."""

REFUSED: Final[dict[str, str]] = {
    "task_arithmetic": "it is called `linear` here",
    "passthrough": "it copies one model's tensors and composes nothing: the base with one vector at scale 1 is that",
}
"""Methods of mergekit's that have no place here, with the reason."""


def method_of(name: str) -> Method:
    """A method by its name.

    Raises:
        ValueError: when there is none, with the nearest name or the reason.
    """
    if name in METHODS:
        return METHODS[name]
    if name in REFUSED:
        raise ValueError(f"there is no method `{name}`: {REFUSED[name]}")
    raise ValueError(f"there is no method `{name}`; {did_you_mean(name, METHODS)}")
