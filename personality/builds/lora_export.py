"""`export --to lora`: a version as one adapter in PEFT's format, for vLLM's dynamic LoRA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from personality.builds.adapter_check import (
    AdapterAgreement,
    LayerLoss,
    TensorLoss,
    compare_adapter,
    layer_losses,
    whole,
)
from personality.builds.adapter_targets import adapter_targets
from personality.builds.export_folder import ExportRecord, check_free, digests_of, write_record
from personality.builds.model_card import model_card
from personality.builds.new_folder import new_folder
from personality.builds.writer import Progress
from personality.composition.composer import Composer
from personality.composition.low_rank_sum import truncate_sum
from personality.composition.opening import composer_of
from personality.manifests.atomic import write_bytes, writing
from personality.manifests.canonical import pretty_json
from personality.manifests.errors import IncompatibleError, UsageError
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import TensorSpec, TensorWriter
from personality.manifests.version import Version
from personality.serving.vllm_environment import VllmEnvironment
from personality.vectors.adapter import CONFIG, WEIGHTS
from personality.vectors.tensors import matrix_shape, tensor_bytes
from personality.vectors.truncation import Truncated, truncate_matrix
from personality.versions.history import History

TARGET = "lora"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for `--max-lora-rank` (`MaxLoRARanks` in its config/lora.py; 1 besides, which nobody trains)."""
DENSE_RANK = 64
_EXACT = 1e-6
"""Relative error up to which a product counts as exact: float32 factors cost 1e-7."""
_PREFIX = "base_model.model."
CARD = "README.md"


@dataclass(frozen=True)
class LoraExport:
    """A finished adapter.

    Attributes:
        path: its folder.
        rank: of every product in it; smaller ones are filled up with zeros.
        max_lora_rank: the smallest that vLLM can be started with to serve it.
        losses: what each tensor's product leaves out of its change, in the base's order.
        agreement: of the base with the adapter and the version.
        left_out: steering uses that it has nothing of, as text.
        notes: what a user should know before serving it.
        serve: the command that serves it with vLLM.
    """

    path: Path
    rank: int
    max_lora_rank: int
    losses: tuple[TensorLoss, ...]
    agreement: AdapterAgreement
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    serve: str

    @property
    def relative(self) -> float:
        """‖ΔW − B A‖ / ‖ΔW‖ over the whole version."""
        return whole(self.losses)

    @property
    def exact(self) -> bool:
        """Whether nothing is lost but the last bits of float32."""
        return all(loss.relative <= _EXACT for loss in self.losses)

    @property
    def layers(self) -> list[LayerLoss]:
        """The losses by layer."""
        return layer_losses(self.losses)

    def as_json(self) -> dict[str, object]:
        """The export's facts as JSON data."""
        return {
            "path": str(self.path),
            "rank": self.rank,
            "max_lora_rank": self.max_lora_rank,
            "residual": self.relative,
            "exact": self.exact,
            "layers": [asdict(layer) for layer in self.layers],
            "tensors": [{**asdict(loss), "relative": loss.relative} for loss in self.losses],
            "agreement": asdict(self.agreement),
            "left_out": list(self.left_out),
            "notes": list(self.notes),
            "serve": self.serve,
        }


def export_lora(
    repository: Repository,
    version: Version,
    path: Path,
    *,
    rank: int | None = None,
    force: bool = False,
    without_steering: bool = False,
    verify: VllmEnvironment | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> LoraExport:
    """Write a version as one low-rank adapter, read it back with PEFT, and compare it with the version.

    Low-rank vectors under `linear` add up to a product whose rank is at most the sum of theirs; they are composed in
    the space of their factors, exactly, and truncated optimally. Every other change (dense vectors, `ties`) is composed
    tensor by tensor and cut down to its largest singular values. Factors are float32: the engine rounds them to what it
    computes in, and rounding twice would gain nothing but a smaller file.

    Args:
        repository: where.
        version: what to export.
        path: the folder to make.
        rank: greatest rank of a product, 1 to 512; None for what low-rank vectors need (at most 512), and at least 64
            where something is dense.
        force: replace an earlier adapter at that path.
        without_steering: leave steering vectors out, which is not how the version answers.
        verify: the vLLM to check the adapter with.
        on_progress: told of every tensor.
        on_stage: told what is being done.

    Raises:
        UsageError: for a rank that vLLM cannot serve.
        IncompatibleError: when the version changes what an adapter cannot carry, or steers.
        CorruptError, PersonaError: when what was written is read as something else; then nothing is kept.
    """
    told = on_stage or (lambda stage: None)
    if rank is not None and not 1 <= rank <= RANKS[-1]:
        raise UsageError(f"vLLM serves adapters of rank 1 to {RANKS[-1]}, not {rank}", "give `--rank 64`, say")
    check_free(path, TARGET, force=force)
    label = History(repository).label(version)
    composer = composer_of(repository, version.personality)
    left_out = tuple(sorted({item.label for item in composer.steering}))
    if left_out and not without_steering:
        raise IncompatibleError(
            f"an adapter changes weights, and {label} also steers ({', '.join(left_out)})",
            "export with `--to vllm`, train the behavior into the weights (`persona promote`), or leave it out: "
            "`--without-steering`",
        )
    composer = composer.without_steering()
    names = adapter_targets(composer, label)
    bounds = {name: _bound(composer, name) for name in names}
    wanted = rank or _usual_rank(composer, bounds)
    used = min(wanted, max(bounds.values()))
    max_rank = next(item for item in RANKS if item >= used)
    base = version.personality.base
    where = base.source if base.revision else composer.folder
    serve = f"vllm serve {where} --enable-lora --max-lora-rank {max_rank} --lora-modules {label}={path}"
    with new_folder(path) as folder:
        told("composing")
        losses = _write_weights(composer, folder, names, used, on_progress)
        _write_config(folder, names, used, base.source)
        told("reading back and comparing")
        found = compare_adapter(composer, folder, losses, max_rank=max_rank, verify=verify)
        result = LoraExport(path, used, max_rank, tuple(losses), found, left_out, _notes(composer, verify), serve)
        card = model_card(repository, version, None) + _card_section(result)
        write_bytes(folder / CARD, card.encode())
        record = ExportRecord(
            target=TARGET,
            version=version.id,
            personality=version.personality.id,
            base=base.fingerprint,
            facts={"rank": used, "max_lora_rank": max_rank, "residual": result.relative},
            files=digests_of(folder),
        )
        write_record(folder, record)
    return result


def _bound(composer: Composer, name: str) -> int:
    """The greatest rank that the change of a tensor can have."""
    products = composer.factors(name)
    smaller = min(matrix_shape(composer.specs[name].shape))
    return smaller if products is None else min(smaller, sum(right.shape[0] for _, right in products))


def _usual_rank(composer: Composer, bounds: dict[str, int]) -> int:
    """What low-rank changes need to be exact, as far as vLLM serves it; at least 64 where something is dense."""
    sums = [bound for name, bound in bounds.items() if composer.factors(name) is not None]
    exact = min(RANKS[-1], max(sums, default=1))
    return exact if len(sums) == len(bounds) else max(DENSE_RANK, exact)


def _truncated(composer: Composer, name: str, rank: int) -> Truncated:
    products = composer.factors(name)
    if products is not None:
        return truncate_sum(products, rank)
    return truncate_matrix(composer.delta(name), rank)


def _write_weights(
    composer: Composer,
    folder: Path,
    names: Sequence[str],
    rank: int,
    on_progress: Callable[[Progress], None] | None,
) -> list[TensorLoss]:
    """Write A (rank, in) and B (out, rank) of each tensor as it is made; memory holds one at a time."""
    specs, losses, done = [], [], 0
    for name in names:
        rows, columns = matrix_shape(composer.specs[name].shape)
        module = _PREFIX + name.removesuffix(".weight")
        specs.append(TensorSpec(f"{module}.lora_A.weight", "F32", (rank, columns)))
        specs.append(TensorSpec(f"{module}.lora_B.weight", "F32", (rows, rank)))
    total = sum(spec.nbytes for spec in specs)
    with writing(folder / WEIGHTS) as file:
        writer = TensorWriter(file, specs)
        for name, first, second in zip(names, specs[::2], specs[1::2], strict=True):
            found = _truncated(composer, name, rank)
            losses.append(TensorLoss.of(name, found))
            writer.write(first.name, tensor_bytes(_filled(found.a, first.shape)))
            writer.write(second.name, tensor_bytes(_filled(found.b, second.shape)))
            done += first.nbytes + second.nbytes
            if on_progress:
                on_progress(Progress(done, total, name))
    return losses


def _filled(factor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A factor with zeros for the ranks that it does not need: engines read one rank for all."""
    whole_factor = torch.zeros(shape)
    whole_factor[: factor.shape[0], : factor.shape[1]] = factor
    return whole_factor


def _write_config(folder: Path, names: Sequence[str], rank: int, source: str) -> None:
    """PEFT's own configuration: scaling alpha / rank = 1, and every module by its whole name."""
    from peft import LoraConfig

    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=[name.removesuffix(".weight") for name in names],
        task_type="CAUSAL_LM",
        base_model_name_or_path=source,
        inference_mode=True,
    )
    fields = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    write_bytes(folder / CONFIG, pretty_json(fields))


def _notes(composer: Composer, verify: VllmEnvironment | None) -> tuple[str, ...]:
    notes = []
    method = composer.composition.method
    if method != "linear":
        notes.append(
            f"`{method}` has no low rank: each tensor was composed whole, then cut down to its largest singular values"
        )
    notes.append("adapters are added while serving and not rounded into the base's dtype, as a build's weights are")
    if verify is None:
        notes.append("vLLM itself was not started: the adapter was read back with PEFT and compared")
    return tuple(notes)


def _card_section(result: LoraExport) -> str:
    return (
        "\n## Adapter\n\n"
        f"One LoRA adapter of rank {result.rank}; vLLM serves it with `--enable-lora --max-lora-rank "
        f"{result.max_lora_rank}`. Relative error of the change of the weights: {result.relative:.2g} "
        f"(Frobenius norm). The weights are the base's own: fetch them from there.\n"
    )
