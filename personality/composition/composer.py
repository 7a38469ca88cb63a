"""The weights of a personality, tensor by tensor: never the whole model in memory."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personality.composition import kernels
from personality.composition.compiled import Signature
from personality.composition.engine import Engine
from personality.composition.kernels import Formula
from personality.composition.layering import layered_names
from personality.composition.methods import whole_tensor
from personality.composition.methods.operand import Operand
from personality.composition.threshold import Thresholds
from personality.manifests.canonical import digest
from personality.manifests.errors import FallenApartError, IncompatibleError
from personality.manifests.personality_record import Composition, Personality, Use
from personality.manifests.tensor_file import TensorSpec
from personality.vectors.checkpoint import Checkpoint, listing
from personality.vectors.delta import DeltaVector
from personality.vectors.dtypes import COMPOSABLE, DTYPE_NAMES, TORCH_DTYPES, compute_dtype
from personality.vectors.exact import ExactVector
from personality.vectors.layers import layer_of
from personality.vectors.low_rank import LowRankVector
from personality.vectors.steering.injection import Injection
from personality.vectors.task_vector import TaskVector
from personality.vectors.tensors import matrix_shape, row_blocks, tensor_bytes


@dataclass
class _Source:
    """One use with its vector, the base tensors it touches, where it is trimmed, and what says all of the use."""

    use: Use
    vector: TaskVector
    names: list[str]
    thresholds: Thresholds
    recipe: str


class Composer:
    """Composes the weights of a personality on its base.

    Before any weight is read, every tensor of the base and of every vector is accounted for: it is composed, copied,
    or the personality is refused.

    Args:
        base: the base's weights.
        personality: what to compose. Uses at scale 0 do not take part, so the base's bits stay.
        vectors: the task vector of each use that changes weights, by vector id.
        steering: what the other uses do to a model in memory; no part of the weights.
        engine: how blocks are composed; None for the usual way.
        cache: file that remembers trimming thresholds; None to find them each time.

    Raises:
        IncompatibleError: when a vector changes tensors that the base lacks, or with another shape, or that are not
            floating point, or when a layer range lies outside the model; when more vectors change a tensor than the
            method composes.
    """

    def __init__(
        self,
        base: Checkpoint,
        personality: Personality,
        vectors: dict[str, TaskVector],
        steering: tuple[Injection, ...] = (),
        *,
        engine: Engine | None = None,
        cache: Path | None = None,
    ) -> None:
        self.base = base
        self.engine = engine or Engine()
        self.composition: Composition = personality.composition
        self._composition_digest = digest(self.composition.effective())
        self.steering = steering
        steered = {item.label for item in steering}
        active = [use for use in personality.uses if use.scale != 0 and use.label not in steered]
        # Sums run in order of vector id: addition of floats does not commute over three terms.
        self._sources = []
        for use in sorted(active, key=lambda use: use.vector):
            vector = vectors[use.vector]
            names = self._account(use, vector)
            self._sources.append(_Source(use, vector, names, Thresholds(vector, names, cache), use.model_dump_json()))
        self._touching: dict[str, list[_Source]] = {}
        for source in self._sources:
            for name in source.names:
                self._touching.setdefault(name, []).append(source)
        touching = {name: [source.use for source in sources] for name, sources in self._touching.items()}
        whole_tensor.check(self.composition, touching)

    def _account(self, use: Use, vector: TaskVector) -> list[str]:
        missing = [name for name in vector.shapes if name not in self.base.specs]
        if missing:
            raise IncompatibleError(
                f"`{use.label}` changes {listing(missing)} that the base does not have",
                f"it was made for another base: `persona show {use.label}` says for which",
            )
        for name, shape in vector.shapes.items():
            spec = self.base.specs[name]
            if spec.shape != shape or spec.dtype not in COMPOSABLE:
                raise IncompatibleError(
                    f"`{use.label}` changes `{name}` as {list(shape)}, the base has {spec}",
                    "only floating-point tensors of the same shape can be changed",
                )
        return layered_names(use, vector.shapes, self.base.specs)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Dtype and shape of every tensor: the base's."""
        return self.base.specs

    @property
    def folder(self) -> Path:
        """The base's: where configuration and tokenizer lie."""
        return self.base.folder

    def without_steering(self) -> Composer:
        """The same weights, and nothing that steers the model in memory."""
        plain = copy.copy(self)
        plain.steering = ()
        return plain

    def keeping(self, acts: Callable[[str, int | None], bool]) -> Composer:
        """The same composition with parts of the uses left out; what TIES trims stays what it was for whole vectors.

        Args:
            acts: whether a use, by its label, acts in a layer; the layer is None for tensors outside of all layers.
        """
        kept = copy.copy(self)
        kept._touching = {}
        for name, sources in self._touching.items():
            if found := [source for source in sources if acts(source.use.label, layer_of(name))]:
                kept._touching[name] = found
        kept.steering = tuple(item for item in self.steering if acts(item.label, item.layer))
        return kept

    @property
    def acting(self) -> dict[str, set[int | None]]:
        """The layers in which each use acts, by its label; None stands for tensors outside of all layers."""
        found: dict[str, set[int | None]] = {item.label: set() for item in self.steering}
        for item in self.steering:
            found[item.label].add(item.layer)
        for name, sources in self._touching.items():
            for source in sources:
                found.setdefault(source.use.label, set()).add(layer_of(name))
        return found

    @property
    def layer_dtype(self) -> torch.dtype:
        """Of the base's layers: what is added after one is rounded to it, as a bias in a checkpoint would be."""
        layered = (spec for name, spec in self.base.specs.items() if layer_of(name) is not None and len(spec.shape) > 1)
        return next((TORCH_DTYPES[spec.dtype] for spec in layered if spec.dtype in COMPOSABLE), torch.float32)

    @property
    def touched(self) -> list[str]:
        """Names of the tensors that differ from the base's, in the base's order; all others are copied."""
        return [name for name in self.base.specs if name in self._touching]

    def tensor(self, name: str) -> Tensor:
        """The composed tensor, in the base's dtype and shape; a mapped one when it is the base's own.

        Raises:
            FallenApartError: when the result overflows the base's dtype.
        """
        if name not in self._touching:
            return self.base.tensor(name)
        spec = self.base.specs[name]
        composed = torch.empty(matrix_shape(spec.shape), dtype=TORCH_DTYPES[spec.dtype])
        with self.engine.running():
            for start, stop, block in self._composed_blocks(name):
                composed[start:stop] = block
        return composed.reshape(spec.shape)

    def blocks_of(self, name: str) -> Iterator[memoryview]:
        """The composed tensor's bytes, piece by piece; the base's own, whatever their dtype, where nothing touches it.

        Raises:
            FallenApartError: when the result overflows the base's dtype.
        """
        if name in self._touching:
            return (tensor_bytes(block) for _, _, block in self._composed_blocks(name))
        return self.base.blocks_of(name)

    def recipe_of(self, name: str) -> tuple[Any, ...]:
        """All that a tensor's bits depend on besides the base: equal recipes of two composers mean equal bits."""
        acting = tuple(source.recipe for source in self._touching.get(name, []))
        return (self._composition_digest, *acting) if acting else ()

    def delta(self, name: str) -> Tensor:
        """Δ of one tensor before rounding, compute dtype, the base's shape; zeros where nothing touches it."""
        spec = self.base.specs[name]
        total = torch.zeros(matrix_shape(spec.shape), dtype=compute_dtype(spec.dtype))
        if name in self._touching:
            for start, stop, delta in self._delta_blocks(name):
                total[start:stop] = delta
            if not bool(torch.isfinite(total).all()):
                raise _overflow(name)
        return total.reshape(spec.shape)

    def factors(self, name: str) -> list[tuple[Tensor, Tensor]] | None:
        """Δ of one tensor as a sum of products, where it is one: `linear`, of low-rank vectors only.

        Returns:
            Left (rows, rank), scale included, and right (rank, columns), float32, of each vector, in order of its id;
            None where Δ is no such sum.
        """
        if self.composition.method != "linear":
            return None
        found = []
        for source in self._touching.get(name, []):
            if not isinstance(source.vector, LowRankVector) or not source.vector.has_factors(name):
                return None
            left, right = source.vector.factors(name)
            left = left * (source.use.scale * source.vector.scaling(name))
            if not bool(torch.isfinite(left).all()):
                raise _overflow(name)
            found.append((left, right))
        return found

    def _composed_blocks(self, name: str) -> Iterator[tuple[int, int, Tensor]]:
        spec = self.base.specs[name]
        base = self.base.tensor(name).reshape(matrix_shape(spec.shape))
        for start, stop, (block, finite) in self._finished_blocks(name, base):
            if not finite:
                raise FallenApartError(
                    f"composing `{name}` gives NaN or infinite values in {spec.dtype}",
                    "the scales are too large for these vectors, or the base itself is damaged: `persona verify`",
                )
            yield start, stop, block

    def _finished_blocks(self, name: str, base: Tensor) -> Iterator[tuple[int, int, tuple[Tensor, bool]]]:
        """The composed rows, and whether they are finite."""
        if whole_tensor.is_whole(self.composition):
            block = kernels.add_to_base(base, self._whole_delta(name))
            yield 0, base.shape[0], (block, bool(torch.isfinite(block).all()))
            return
        spec = self.base.specs[name]
        scales, limits = self._numbers(name)
        if (alone := self._alone(name)) is not None:
            for start, stop in row_blocks(spec, self.engine.block_elements):
                block = alone.restored_rows(name, start, stop)
                yield start, stop, (block, bool(torch.isfinite(block).all()))
            return
        for start, stop, stored in self._rows(name):
            deltas, dtype = _of_one_dtype(stored, compute_dtype(spec.dtype))
            signature = Signature(self._formula, len(deltas), spec.dtype, dtype)
            lam = self.composition.lam
            yield start, stop, self.engine.compose(signature, base[start:stop], deltas, scales, limits, lam)

    def _alone(self, name: str) -> ExactVector | None:
        """The vector whose fine-tuned tensor comes out as it was imported: no other acts here, and its scale is 1.

        W_base + Δ could miss it by what rounding loses; the vector holds the bits themselves.
        """
        (source, *others) = self._touching[name]
        if others or source.use.scale != 1 or not isinstance(source.vector, ExactVector):
            return None
        untrimmed = self.composition.lam == 1 and self._density(source) == 1
        return source.vector if self.composition.method == "linear" or untrimmed else None

    def _delta_blocks(self, name: str) -> Iterator[tuple[int, int, Tensor]]:
        spec = self.base.specs[name]
        if whole_tensor.is_whole(self.composition):
            yield 0, matrix_shape(spec.shape)[0], self._whole_delta(name)
            return
        scales, limits = self._numbers(name)
        for start, stop, deltas in self._rows(name):
            lam, dtype = self.composition.lam, compute_dtype(spec.dtype)
            yield start, stop, kernels.change(self._formula, deltas, scales, limits, lam, dtype)

    def _rows(self, name: str) -> Iterator[tuple[int, int, list[Tensor]]]:
        """The vectors' rows, block by block. What has to be decoded is, by other threads, one block ahead."""
        blocks = row_blocks(self.base.specs[name], self.engine.block_elements)
        vectors = [source.vector for source in self._touching[name]]
        if all(isinstance(vector, DeltaVector) for vector in vectors) or len(blocks) == len(vectors) == 1:
            for start, stop in blocks:
                yield start, stop, [vector.rows(name, start, stop) for vector in vectors]
            return

        def decode(start: int, stop: int) -> tuple[int, int, list[Tensor]]:
            tasks = [functools.partial(vector.rows, name, start, stop) for vector in vectors]
            return start, stop, self.engine.at_once(tasks)

        yield from self.engine.ahead(functools.partial(decode, start, stop) for start, stop in blocks)

    def _whole_delta(self, name: str) -> Tensor:
        """Δ seen as a matrix, by a method that looks at whole tensors; always made on the processor."""
        spec = self.base.specs[name]
        rows, columns = matrix_shape(spec.shape)
        operands = [
            Operand(
                source.use.vector,
                source.vector.rows(name, 0, rows).to(compute_dtype(spec.dtype)).reshape(spec.shape),
                source.use.scale,
                source.use.density,
            )
            for source in self._touching[name]
        ]
        return whole_tensor.delta(self.composition, name, self.base.tensor(name), operands).reshape(rows, columns)

    @property
    def _formula(self) -> Formula:
        return Formula.of(self.composition)

    def _numbers(self, name: str) -> tuple[list[float], list[float]]:
        """Scale and trimming threshold of each vector that touches a tensor."""
        sources = self._touching[name]
        scales = [source.use.scale for source in sources]
        return scales, [self._limit(source, name) for source in sources]

    def _limit(self, source: _Source, name: str) -> float:
        """The magnitude from which a source's elements are kept."""
        if self.composition.method != "ties":
            return 0.0
        density = self._density(source)
        if self.composition.trim_scope == "vector":
            return source.thresholds.of_vector(density)
        return source.thresholds.of_tensor(name, density)

    def _density(self, source: _Source) -> float:
        return source.use.density if source.use.density is not None else self.composition.density


def _of_one_dtype(deltas: list[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], str]:
    """Vectors of a dtype that they share, and its name: as stored, or else all of them in the compute dtype."""
    stored = {delta.dtype for delta in deltas}
    if len(stored) == 1:
        return deltas, DTYPE_NAMES[stored.pop()]
    return [delta.to(dtype) for delta in deltas], DTYPE_NAMES[dtype]


def _overflow(name: str) -> FallenApartError:
    return FallenApartError(f"the change of `{name}` overflows", "the scales are too large for these vectors")
