"""`persona export --to lora` and `--to mergekit`: a version in other forms than a model folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from personality.cli.output import Output, megabytes_per_second, percent

if TYPE_CHECKING:
    from personality.builds.adapter_check import LayerLoss
    from personality.manifests.repository import Repository
    from personality.manifests.version import Version
    from personality.serving.vllm_environment import VllmEnvironment


def export_adapter(
    out: Output,
    repository: Repository,
    version: Version,
    path: Path,
    *,
    label: str,
    rank: int | None,
    force: bool,
    without_steering: bool,
    vllm: VllmEnvironment | None,
) -> None:
    """Write a version as one adapter, and tell what it loses, layer by layer."""
    from personality.builds.lora_export import export_lora

    started = time.monotonic()
    with out.progress("export") as advance:
        result = export_lora(
            repository,
            version,
            path,
            rank=rank,
            force=force,
            without_steering=without_steering,
            verify=vllm,
            on_progress=lambda p: advance(p.done, p.total, megabytes_per_second(started, p.done)),
            on_stage=lambda stage: advance(0, 1, stage),
        )

    def human() -> None:
        out.line(f"{label} → {path}", "bold")
        lost = "exact" if result.exact else f"{result.relative:.2%} of the change of the weights is lost"
        out.line(f"  one adapter of rank {result.rank}, {lost}; it needs --max-lora-rank {result.max_lora_rank}")
        same = result.agreement
        out.line(
            f"  beside the version composed in memory: greatest |Δ log-probability| "
            f"{same.agreement.greatest_difference:.2g} nats, greedy tokens {percent(same.agreement.greedy)}, "
            f"divergence {same.divergence:.2g} nats; the base alone: {same.effect_divergence:.2g} nats"
        )
        if same.vllm is not None:
            out.line(
                f"  vLLM {same.vllm_version}, float32, beside PEFT: greatest |Δ log-probability| "
                f"{same.vllm.greatest_difference:.2g} nats, greedy tokens {percent(same.vllm.greedy)}"
            )
        if not result.exact:
            out.table((">layer", ">tensors", ">lost", ">at most", "in"), [_loss_row(layer) for layer in result.layers])
        for use in result.left_out:
            out.warn(f"{use} steers and is left out: the adapter does not answer as {label} does")
        for note in result.notes:
            out.line(f"  {note}")
        out.note(f"next: {result.serve}")

    out.result({"version": version.id, "target": "lora", **result.as_json()}, human)


def export_recipe(
    out: Output,
    repository: Repository,
    version: Version,
    path: Path,
    *,
    label: str,
    force: bool,
    without_steering: bool,
    shard_bytes: int,
) -> None:
    """Write a recipe for mergekit, and tell how its merge compares with the version."""
    from personality.builds.mergekit_export import export_mergekit

    started = time.monotonic()
    with out.progress("export") as advance:
        result = export_mergekit(
            repository,
            version,
            path,
            force=force,
            without_steering=without_steering,
            shard_bytes=shard_bytes,
            on_progress=lambda p: advance(p.done, p.total, megabytes_per_second(started, p.done)),
            on_stage=lambda stage: advance(0, 1, stage),
        )

    def human() -> None:
        out.line(f"{label} → {path}", "bold")
        same = result.agreement
        for use, folder in result.models.items():
            out.line(f"  {use}: {folder}")
        out.line(
            f"  mergekit {same.mergekit} was run on it: {percent(same.equal)} of {same.elements} elements have the "
            f"bits of the version, {same.outside:.2%} are apart by more than rounding (greatest difference "
            f"{same.greatest_difference:.2g})"
        )
        if same.outside:
            out.line("  magnitudes that equal the k-th: mergekit keeps exactly k elements, this program all of them")
        for use in result.left_out:
            out.warn(f"{use} steers and is left out: the merge does not answer as {label} does")
        out.note(f"next: {result.run}")

    out.result({"version": version.id, "target": "mergekit", **result.as_json()}, human)


def _loss_row(layer: LayerLoss) -> tuple[str, ...]:
    where = "head" if layer.layer is None else str(layer.layer)
    tensor = layer.worst.removesuffix(".weight").rpartition(".")[-1]
    return where, str(layer.tensors), f"{layer.relative:.2%}", f"{layer.worst_relative:.2%}", tensor
