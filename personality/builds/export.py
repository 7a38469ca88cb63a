"""`export`: a version as a model folder for transformers or vLLM, reloaded and compared before it gets its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from personality.baking.bake import bake, check_proven
from personality.baking.baked_comparison import TOLERANCE, BakedComparison, compare_baked
from personality.baking.baked_weights import BakedWeights
from personality.builds.build import BuildRecord, write_build
from personality.builds.built_steering import BuiltSteering, built_steering
from personality.builds.comparison import Agreement, agreement, log_probabilities, probe_tokens
from personality.builds.model_card import model_card
from personality.builds.writer import DEFAULT_SHARD_BYTES, Progress
from personality.composition.composer import Composer
from personality.composition.opening import composer_of
from personality.evaluation.scores import check_finite
from personality.manifests.atomic import write_bytes
from personality.manifests.errors import CorruptError, IncompatibleError, PersonaError
from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.model import load_composed, load_model
from personality.vectors.base import chat_template, model_config

TARGETS = ("hf", "vllm")
CARD = "README.md"


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        path: the folder.
        agreement: of the reloaded folder with the version composed in memory.
        notes: what a user should know before serving it.
        steering: what became of the version's steering vectors; None when it has none.
        baked: the folder beside the model that hooks steer; None when nothing was baked.
    """

    path: Path
    agreement: Agreement
    notes: tuple[str, ...]
    steering: BuiltSteering | None = None
    baked: BakedComparison | None = None


def export(
    repository: Repository,
    version: Version,
    target: str,
    path: Path,
    *,
    force: bool = False,
    without_steering: bool = False,
    bake_unproven: bool = False,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    on_progress: Callable[[Progress], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Exported:
    """Write a version as a model folder, reload it, and compare its predictions with the version in memory.

    Args:
        repository: where.
        version: what to export.
        target: `hf` or `vllm`; the folder is the same, `vllm` also checks what vLLM needs.
        path: the folder to make.
        force: replace an earlier export at that path.
        without_steering: leave steering vectors out and write the weights alone, which is not how the version answers.
        bake_unproven: bake steering vectors too that nobody proved.
        shard_bytes: greatest size of a weights file.
        on_progress: told of every tensor.
        on_stage: told what is being done.

    Raises:
        PersonaError: when the folder is in the way, or the reloaded model disagrees; then nothing is kept.
        IncompatibleError: when the target cannot take the model, or what steers it.
    """
    told = on_stage or (lambda stage: None)
    _check_free(path, force=force)
    composer = composer_of(repository, version.personality)
    notes = _check_target(composer.folder, target)
    baked = None
    if composer.steering and not without_steering:
        baked = bake(composer, composer.steering, composer.layer_dtype)
        if not bake_unproven:
            check_proven(repository, version.personality)
        notes += _check_baked(baked, target)
    steering = built_steering(composer.steering, baked.plan if baked else None)
    found: list[tuple[Agreement, BakedComparison | None]] = []

    def finish(folder: Path) -> None:
        write_bytes(folder / CARD, model_card(repository, version, steering).encode())
        told("reloading and comparing")
        found.append(_compare(composer, folder, baked))

    told("composing")
    write_build(
        repository,
        version,
        path.absolute(),
        shard_bytes=shard_bytes,
        on_progress=on_progress,
        finish=finish,
        composer=composer,
        baked=baked,
    )
    same, compared = found[0]
    return Exported(path, same, notes, steering, compared)


def _check_free(path: Path, *, force: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / BuildRecord.file_name).is_file():
        raise PersonaError(
            f"{path} exists and is no export of this program", "choose a new folder; nothing was touched"
        )
    record = BuildRecord.read(path / BuildRecord.file_name)
    foreign = sorted({item.name for item in path.iterdir()} - {*record.files, CARD, BuildRecord.file_name})
    if foreign:
        raise PersonaError(
            f"{path} holds an earlier export and things of yours, such as {foreign[0]}",
            "take them out of there, or choose a new folder; nothing was touched",
        )
    if not force:
        raise PersonaError(f"{path} holds an earlier export", "replace it with `--force`, or choose a new folder")


def _check_target(folder: Path, target: str) -> tuple[str, ...]:
    if target not in TARGETS:
        raise PersonaError(f"there is no export target `{target}`", f"targets: {', '.join(TARGETS)}")
    if target == "hf":
        return ()
    if not model_config(folder).get("architectures"):
        raise IncompatibleError(
            f"the base's config.json in {folder} names no `architectures`, by which vLLM chooses the model",
            "add it to the base's config.json before `persona init`, or export with `--to hf`",
        )
    notes = ["vLLM itself was not started: the folder was loaded with transformers and compared"]
    if not chat_template(folder):
        notes.append("the base has no chat template: vLLM's chat route needs `--chat-template FILE`")
    return tuple(notes)


def _check_baked(baked: BakedWeights, target: str) -> tuple[str, ...]:
    plan = baked.plan
    if target in plan.dropped_by:
        raise IncompatibleError(
            f"{target} would leave the baked vectors out without a word: its class for this architecture has no biases "
            f"where the route `{plan.route}` puts them",
            "export with `--to hf`, train the behavior into the weights (`persona promote`), or `--without-steering`",
        )
    return plan.notes


def _compare(composer: Composer, folder: Path, baked: BakedWeights | None) -> tuple[Agreement, BakedComparison | None]:
    model = load_model(folder)
    ids = probe_tokens(model.get_input_embeddings().num_embeddings)
    from_disk = log_probabilities(model, ids)
    del model  # one model in memory at a time
    in_memory = load_composed(composer.without_steering())
    if baked is not None:
        return _compare_baked(composer, from_disk, in_memory, ids, baked)
    wanted = log_probabilities(in_memory, ids)
    result = agreement(from_disk, wanted)
    check_finite(wanted)
    if result.greatest_difference > TOLERANCE:
        raise CorruptError(
            f"the exported folder, reloaded, is not the version: log-probabilities differ by up to "
            f"{result.greatest_difference:.2g} nats, greedy tokens agree at {result.greedy:.1%}",
            "nothing was kept; check the disk, then `persona verify`",
        )
    return result, None


def _compare_baked(
    composer: Composer, from_disk: Tensor, in_memory: Any, ids: Tensor, baked: BakedWeights
) -> tuple[Agreement, BakedComparison]:
    compared = compare_baked(
        from_disk, in_memory, composer.steering, ids, tolerance=baked.plan.tolerance, rounding=composer.layer_dtype
    )
    if not compared.same:
        same = compared.agreement
        raise CorruptError(
            f"the exported folder, reloaded, does not do what the hooks do: log-probabilities differ by up to "
            f"{same.greatest_difference:.2g} nats (allowed: {compared.allowed:.2g}; steering itself changes up to "
            f"{compared.effect:.2g}), greedy tokens agree at {same.greedy:.1%}",
            f"nothing was kept. Either a tensor of the route `{baked.plan.route}` was not loaded, or the vectors are "
            "so weak beside what they are added to that rounding loses them: `persona promote`, `--without-steering`",
        )
    return compared.agreement, compared


def as_json(result: Exported) -> dict[str, object]:
    """The export's facts as JSON data."""
    return {
        "path": str(result.path),
        "agreement": asdict(result.agreement),
        "notes": list(result.notes),
        "steering": result.steering.as_json() if result.steering else None,
        "steering_effect": result.baked.effect if result.baked else None,
    }
