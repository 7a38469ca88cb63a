"""One direction for each layer, from the negative texts to the positive ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from personality.manifests.errors import DataError, UsageError
from personality.vectors.extraction.capture import OnBatch
from personality.vectors.extraction.denoising import output_subspaces
from personality.vectors.extraction.probe import logistic_direction
from personality.vectors.extraction.reading import ReadPair
from personality.vectors.extraction.statistics import SAMPLES, DifferenceStatistics, gather_statistics

Method = Literal["mean", "pca", "pca-centered", "logistic"]
"""How a direction is drawn from pairs.

mean: mean difference (Turner et al. 2023, arXiv 2308.10248; Rimsky et al. 2023, arXiv 2312.06681). pca: first principal
component of the differences about zero (Zou et al. 2023, arXiv 2310.01405; `pca_center` of repeng). pca-centered: about
their mean, so that what all pairs share is taken out (`pca_diff` of repeng). logistic: weights of a logistic probe.
"""

METHODS: Final[tuple[Method, ...]] = get_args(Method)

_SPECTRUM = 8


@dataclass(frozen=True)
class Extraction:
    """Directions of L layers of width d, and what the pairs say about each.

    Attributes:
        method: of extraction.
        denoise: components of the layer's output weight that directions were projected onto; None: not.
        pairs: how many were used.
        directions: float32 (L, d), of norm 1; zero in a layer in which nothing differs.
        strength: float32 (L,), norm of the mean difference.
        gap: float32 (L,), mean projection of the positive texts minus that of the negative ones; ≥ 0.
        midpoint: float32 (L,), projection half-way between these two means.
        consistency: float32 (L,), mean cosine between two pairs' differences.
        spectrum: float32 (L, 8), shares of the differences' sum of squares along their leading components.
        activation_norm: float32 (L,), mean norm of the texts' activations.
        kept: float32 (L,), what denoising left of the unit direction's norm; 1 without.
    """

    method: Method
    denoise: int | None
    pairs: int
    directions: Tensor
    strength: Tensor
    gap: Tensor
    midpoint: Tensor
    consistency: Tensor
    spectrum: Tensor
    activation_norm: Tensor
    kept: Tensor


def extract_directions(
    model: nn.Module,
    pairs: Sequence[ReadPair],
    *,
    method: Method = "mean",
    denoise: int | None = None,
    batch_tokens: int | None = None,
    on_batch: OnBatch | None = None,
) -> Extraction:
    """Directions of all layers in one pass over the pairs.

    Args:
        model: causal language model of transformers.
        pairs: at least two.
        method: see `Method`; `logistic` sees at most `SAMPLES` of the pairs.
        denoise: project onto so many leading components of each layer's output weight.
        batch_tokens: most tokens of one forward pass; None for what suits the device.
        on_batch: called after each forward pass with the numbers of texts done and of all texts.

    Raises:
        DataError: fewer than two pairs, or pairs that do not differ anywhere.
        PersonaError: an activation is NaN or infinite.
        UsageError, IncompatibleError: a number of components, or a model, that denoising cannot do.
    """
    _check(method)
    # First, so that what cannot be done is refused before the forward passes.
    subspaces = None if denoise is None else list(output_subspaces(model, denoise))
    samples = SAMPLES if method == "logistic" else 0
    statistics = gather_statistics(model, pairs, samples=samples, batch_tokens=batch_tokens, on_batch=on_batch)
    return fit_directions(statistics, method, subspaces=subspaces)


def fit_directions(
    statistics: DifferenceStatistics, method: Method = "mean", *, subspaces: Iterable[Tensor] | None = None
) -> Extraction:
    """Directions from sums that were gathered before.

    Args:
        statistics: of at least two pairs, with samples for `logistic`.
        method: see `Method`.
        subspaces: for each layer orthonormal columns (d, m) onto which its direction is projected.

    Raises:
        DataError: the pairs do not differ in any layer.
        UsageError: an unknown method, or `logistic` without samples.
    """
    _check(method)
    mean = statistics.mean_difference
    bases = list(subspaces) if subspaces is not None else None
    directions, kept = torch.zeros_like(mean), torch.ones(len(mean), dtype=torch.float64)
    for layer, difference in enumerate(mean):
        if not bool(difference.any()):
            continue
        found = _DIRECTIONS[method](statistics, layer)
        unit = found / found.norm().clamp_min(torch.finfo(torch.float64).tiny)
        if bases is not None:
            inside = bases[layer] @ (bases[layer].T @ unit)
            kept[layer] = inside.norm()
            unit = inside / kept[layer].clamp_min(torch.finfo(torch.float64).tiny)
        directions[layer] = unit if float(unit @ difference) >= 0 else -unit
    if not bool(directions.any()):
        raise DataError(
            f"{statistics.pairs} pairs, and their activations are alike in every layer where they are read",
            "read where the texts differ: another position (`--read`), or pairs that part earlier",
        )
    positive = (directions * statistics.mean_positive).sum(-1)
    negative = (directions * statistics.mean_negative).sum(-1)
    return Extraction(
        method=method,
        denoise=bases[0].shape[1] if bases else None,
        pairs=statistics.pairs,
        directions=directions.float(),
        strength=mean.norm(dim=-1).float(),
        gap=(positive - negative).clamp_min(0).float(),
        midpoint=((positive + negative) / 2).float(),
        consistency=statistics.consistency.float(),
        spectrum=statistics.spectrum(_SPECTRUM).float(),
        activation_norm=statistics.activation_norm.float(),
        kept=kept.float(),
    )


def _check(method: str) -> None:
    if method not in METHODS:
        raise UsageError(f"no method `{method}`", f"methods are {', '.join(METHODS)}")


def _mean(statistics: DifferenceStatistics, layer: int) -> Tensor:
    return statistics.mean_difference[layer]


def _first(statistics: DifferenceStatistics, layer: int) -> Tensor:
    return _leading(statistics, layer, centered=False)


def _first_centered(statistics: DifferenceStatistics, layer: int) -> Tensor:
    return _leading(statistics, layer, centered=True)


def _leading(statistics: DifferenceStatistics, layer: int, *, centered: bool) -> Tensor:
    _, vectors = statistics.sketches[layer].principal(centered=centered)
    # All differences the same: there is no variation to have a component.
    return vectors[0] if len(vectors) else torch.zeros_like(statistics.mean_difference[layer])


def _logistic(statistics: DifferenceStatistics, layer: int) -> Tensor:
    if not len(statistics.sample):
        raise UsageError("a logistic probe needs differences one by one", "gather the statistics with `samples`")
    return logistic_direction(statistics.sample[:, layer])


_DIRECTIONS: dict[Method, Callable[[DifferenceStatistics, int], Tensor]] = {
    "mean": _mean,
    "pca": _first,
    "pca-centered": _first_centered,
    "logistic": _logistic,
}
