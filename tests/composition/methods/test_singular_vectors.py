"""TSV-Merge and Iso-C against the numbers of their authors' programs, and against formulas in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from personality.composition.methods import whole_tensor
from personality.composition.methods.operand import Operand
from personality.manifests.errors import FallenApartError
from personality.manifests.personality_record import Composition
from tests.composition.conftest import random_tensor


def operands(taus: Sequence[Tensor], scales: Sequence[float] = (1, 1, 1)) -> list[Operand]:
    return [Operand(letter * 64, tau, scale) for letter, tau, scale in zip("abc", taus, scales, strict=False)]


def delta(method: str, taus: Sequence[Tensor], scales: Sequence[float] = (1, 1, 1), lam: float = 1.0) -> Tensor:
    composition = Composition(method=method, parameters={"lambda": lam})
    return whole_tensor.delta(composition, "w", torch.zeros_like(taus[0]), operands(taus, scales))


def task_matrix(number: int, rows: int = 6, columns: int = 7) -> Tensor:
    """A small matrix of hundredths without chance: both programs can be given it again."""
    r, c = torch.arange(rows).reshape(-1, 1), torch.arange(columns).reshape(1, -1)
    return ((r * 31 + c * 17 + number * 13 + r * c * 7 * number) % 23 - 11).double() / 100


# What the authors' published programs print for task_matrix(1), (2) and (3) in float64; 8 decimals.
AUTHORS = {
    "iso_c": """
 0.01764658  0.12037428 -0.06150978  0.14410113 -0.07659421 -0.00294606 -0.15906644
 0.00057923  0.10110616 -0.13997995 -0.13736341 -0.01202480 -0.14655645  0.01477062
 0.00075920  0.17082081  0.06800698  0.07398322  0.14384613 -0.01805742  0.10114779
 0.06481458 -0.01790514  0.05400779  0.08766108 -0.15574794 -0.12002347  0.12938918
 0.01696127  0.05962369  0.19753175 -0.10822210 -0.03997954 -0.05355573 -0.10717920
 0.04984523  0.10885316 -0.01357475 -0.07695719 -0.11406364  0.17731343  0.07507754""",
    "tsv_merge": """
-0.07189594 -0.00029590 -0.11661234  0.04738481 -0.16585008  0.04603188 -0.06618238
-0.02190893  0.08536479 -0.10769050 -0.13582064 -0.01680164 -0.17940886 -0.02895323
-0.16226124 -0.03344940 -0.04291030 -0.11572458  0.08534670  0.05620043  0.13803011
-0.08700693  0.08143765  0.09812461  0.13160293  0.07614647 -0.05832151  0.08158004
-0.05669107 -0.07120520  0.15194367 -0.11770244 -0.12955581 -0.02118791  0.07700287
 0.06593274  0.16420851  0.06577956 -0.02966215 -0.03671147  0.15338411  0.02025575""",
}


@pytest.mark.parametrize("method", sorted(AUTHORS))
def test_the_numbers_of_the_authors(method: str) -> None:
    rows = [[float(x) for x in line.split()] for line in AUTHORS[method].split("\n") if line]
    expected = torch.tensor(rows, dtype=torch.float64)
    taus = [task_matrix(number) for number in (1, 2, 3)]
    torch.testing.assert_close(delta(method, taus), expected, rtol=0, atol=6e-9)
    torch.testing.assert_close(delta(method, [tau.float() for tau in taus]), expected.float(), rtol=0, atol=5e-7)
    # Both programs average what is no matrix.
    biases = [task_matrix(number, 1)[0] for number in (1, 2, 3)]
    torch.testing.assert_close(delta(method, biases), torch.stack(biases).mean(0), rtol=1e-12, atol=1e-15)


def whitened(vectors: Tensor) -> Tensor:
    """X (XᵀX)^(−1/2), the paper's other form of the orthogonal Procrustes solution."""
    values, basis = torch.linalg.eigh(vectors.T @ vectors)
    found: Tensor = vectors @ basis @ torch.diag(values**-0.5) @ basis.T
    return found


def tsv(taus: Sequence[Tensor]) -> Tensor:
    keep = min(taus[0].shape) // len(taus)
    left, values, right = [], [], []
    for tau in taus:
        u, s, v = torch.linalg.svd(tau.double(), full_matrices=False)
        left.append(u[:, :keep])
        values.append(s[:keep])
        right.append(v[:keep].T)
    return whitened(torch.cat(left, 1)) @ torch.diag(torch.cat(values)) @ whitened(torch.cat(right, 1)).T


def iso(taus: Sequence[Tensor]) -> Tensor:
    """σ̄ times the orthogonal factor of the polar decomposition."""
    total = torch.stack(list(taus)).sum(0).double()
    flip = total.shape[0] < total.shape[1]
    total = total.T if flip else total
    found = whitened(total) * torch.linalg.matrix_norm(total, "nuc") / min(total.shape)
    result: Tensor = found.T if flip else found
    return result


@pytest.mark.parametrize("shape", [(20, 20), (30, 12), (12, 30)])
@pytest.mark.parametrize("scales", [(1, 1, 1), (0.8, -0.5, 1.2)])
@pytest.mark.parametrize("count", [2, 3])
def test_formulas(shape: tuple[int, int], scales: tuple[float, ...], count: int) -> None:
    taus = [random_tensor(shape, seed, 0.01) for seed in range(1, count + 1)]
    scaled = [tau.double() * scale for tau, scale in zip(taus, scales, strict=False)]
    for method, formula in (("tsv_merge", tsv), ("iso_c", iso)):
        found = delta(method, taus, scales, lam=1.5)
        torch.testing.assert_close(found.double(), 1.5 * formula(scaled), rtol=1e-4, atol=1e-7)


def test_experts_fused_into_one_tensor_are_matrices_of_their_own() -> None:
    taus = [random_tensor((4, 12, 10), seed, 0.01) for seed in (1, 2)]
    for method in ("tsv_merge", "iso_c"):
        found = delta(method, taus)
        for expert in range(4):
            assert torch.equal(found[expert], delta(method, [tau[expert] for tau in taus]))
        kernels = [random_tensor((12, 1, 4), seed, 0.01) for seed in (1, 2)]
        torch.testing.assert_close(delta(method, kernels), (kernels[0] + kernels[1]) / 2)


def test_a_common_scale_is_the_factor_of_the_papers() -> None:
    taus = [random_tensor((20, 12), seed, 0.01) for seed in (1, 2)]
    for method in ("tsv_merge", "iso_c"):
        torch.testing.assert_close(delta(method, taus, (0.7, 0.7)), delta(method, taus, lam=0.7), rtol=1e-5, atol=1e-9)


def test_directions_that_a_low_rank_vector_lacks_do_not_arise() -> None:
    """LAPACK completes the basis of a rank-2 matrix arbitrarily; none of that may reach the weights."""
    taus = [random_tensor((40, 2), seed, 0.1) @ random_tensor((2, 30), seed + 10, 0.1) for seed in (1, 2)]
    for method, rank in (("tsv_merge", 4), ("iso_c", 4)):
        values = torch.linalg.svdvals(delta(method, taus).double())
        assert float(values[rank - 1]) > 0.01
        assert float(values[rank]) < 1e-7
    # Left and right spaces of both are what remains, so columns of Δ lie in what the vectors span.
    span = torch.linalg.svd(torch.cat(taus, dim=1).double(), full_matrices=False)[0][:, :4]
    for method in ("tsv_merge", "iso_c"):
        found = delta(method, taus).double()
        torch.testing.assert_close(span @ (span.T @ found), found, rtol=0, atol=1e-8)


def test_the_same_vector_twice_is_that_vector_in_tsv_merge() -> None:
    """Singular vectors that coincide are one direction: it is not counted twice, nor filled up with another."""
    tau = random_tensor((40, 6), 1, 0.1) @ random_tensor((6, 30), 2, 0.1)
    torch.testing.assert_close(delta("tsv_merge", [tau, tau.clone()]), tau, rtol=1e-4, atol=1e-6)


def test_what_is_too_small_to_cut_is_averaged() -> None:
    taus = [random_tensor((2, 8), seed) for seed in (1, 2, 3)]
    torch.testing.assert_close(delta("tsv_merge", taus), torch.stack(taus).mean(0))


def test_overflow_is_refused_before_it_is_decomposed() -> None:
    with pytest.raises(FallenApartError, match="overflows"):
        delta("iso_c", [torch.full((4, 4), 10.0)], (3e38,))
