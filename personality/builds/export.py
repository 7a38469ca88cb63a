"""`export`: a version as a model folder for transformers or vLLM, reloaded and compared before it gets its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from personality.baking.baked_comparison import BakedComparison
from personality.builds.build import BuildRecord, write_build
from personality.builds.built_steering import BuiltSteering
from personality.builds.certificate import Certificate, Check
from personality.builds.certifying import certify
from personality.builds.comparison import Agreement
from personality.builds.model_card import model_card
from personality.builds.reloaded import Reloaded, reload_and_compare
from personality.builds.steering_part import Choice, steering_part
from personality.builds.writer import CERTIFICATE, DEFAULT_SHARD_BYTES, Progress
from personality.composition.engine import Engine
from personality.composition.opening import composer_of
from personality.manifests.atomic import write_bytes
from personality.manifests.errors import IncompatibleError, PersonaError
from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.serving.steering_table import STEERING_FILE, save
from personality.serving.vllm_environment import VllmEnvironment
from personality.vectors.base import chat_template, model_config

TARGETS = ("hf", "vllm")
CARD = "README.md"
_BESIDE = (CARD, BuildRecord.file_name, CERTIFICATE, STEERING_FILE)


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        path: the folder.
        agreement: of the reloaded folder with the version composed in memory; None where transformers cannot read it.
        notes: what a user should know before serving it.
        certificate: as the folder has it.
        steering: what became of the version's steering vectors; None when it has none.
        baked: the folder beside the model that hooks steer; None when nothing was baked.
        positional: whether the plugin must tell a reply's tokens from a prompt's.
    """

    path: Path
    agreement: Agreement | None
    notes: tuple[str, ...]
    certificate: Certificate
    steering: BuiltSteering | None = None
    baked: BakedComparison | None = None
    positional: bool = False

    @property
    def verified(self) -> tuple[Check, ...]:
        """What vLLM itself was asked."""
        return tuple(check for check in self.certificate.checks if check.engine.startswith("vLLM"))


def export(
    repository: Repository,
    version: Version,
    target: str,
    path: Path,
    *,
    force: bool = False,
    steering: Choice = "bake",
    route: str | None = None,
    bake_unproven: bool = False,
    vllm: VllmEnvironment | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    engine: Engine | None = None,
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
        steering: bake steering vectors into the weights, leave them to the plugin, or leave them out, which is not how
            the version answers.
        route: of baking, by name; None for the first that fits.
        bake_unproven: bake steering vectors too that nobody proved.
        vllm: where vLLM is, to run it on the folder; None not to.
        shard_bytes: greatest size of a weights file.
        engine: how blocks are composed; None for the usual way.
        on_progress: told of every tensor.
        on_stage: told what is being done.

    Raises:
        PersonaError: when the folder is in the way, or the reloaded model disagrees; then nothing is kept.
        UsageError: for options that do not go together.
        IncompatibleError: when the target cannot take the model, or what steers it.
        CorruptError: when transformers or vLLM answers from the folder otherwise than the version does.
    """
    told = on_stage or (lambda stage: None)
    _check_free(path, force=force)
    composer = composer_of(repository, version.personality, engine)
    notes = _check_target(composer.folder, target)
    part = steering_part(repository, version, composer, target, steering, route=route, bake_unproven=bake_unproven)
    if part.baked and not part.baked.plan.readable_by_transformers and vllm is None:
        raise IncompatibleError(
            f"transformers would read a folder of the route `{part.baked.plan.route}` without the vectors and without "
            "a word, so that only vLLM can tell whether they are in it",
            "let it: `--verify`, with `--vllm ENV` when it is not on the PATH; or take another way with `--route`",
        )
    found: list[tuple[Reloaded, Certificate]] = []

    def finish(folder: Path) -> None:
        write_bytes(folder / CARD, model_card(repository, version, part.summary).encode())
        if part.table is not None:
            save(part.table, folder / STEERING_FILE)
        told("reloading and comparing")
        reloaded = reload_and_compare(composer, folder, part)
        found.append((reloaded, certify(repository, version, folder, part, reloaded, vllm=vllm, on_stage=told)))

    told("composing")
    write_build(
        repository,
        version,
        path.absolute(),
        shard_bytes=shard_bytes,
        on_progress=on_progress,
        finish=finish,
        composer=composer,
        baked=part.baked,
        steering_file=STEERING_FILE if part.table else "",
    )
    reloaded, certificate = found[0]
    if target == "vllm":
        notes += certificate.not_verified
    return Exported(
        path,
        reloaded.agreement,
        notes + part.notes,
        certificate,
        part.summary,
        reloaded.compared,
        positional=part.table is not None and part.table.positional,
    )


def _check_free(path: Path, *, force: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / BuildRecord.file_name).is_file():
        raise PersonaError(
            f"{path} exists and is no export of this program", "choose a new folder; nothing was touched"
        )
    record = BuildRecord.read(path / BuildRecord.file_name)
    foreign = sorted({item.name for item in path.iterdir()} - {*record.files, *_BESIDE})
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
    if not chat_template(folder):
        return ("the base has no chat template: vLLM's chat route needs `--chat-template FILE`",)
    return ()


def serve_command(result: Exported) -> str:
    """How to serve an export with vLLM alone."""
    certificate = result.certificate
    words = ["vllm", "serve", str(result.path), *certificate.serve_with]
    if certificate.steering_file:
        words.insert(0, "VLLM_PLUGINS=persona")
        if result.positional:
            words.insert(0, "PERSONA_STEERING=positions")
    return " ".join(words)


def as_json(result: Exported) -> dict[str, object]:
    """The export's facts as JSON data."""
    return {
        "path": str(result.path),
        "agreement": asdict(result.agreement) if result.agreement else None,
        "notes": list(result.notes),
        "checks": [check.as_json() for check in result.certificate.checks],
        "in_weights": list(result.certificate.in_weights),
        "needs_plugin": list(result.certificate.needs_plugin),
        "left_out": list(result.certificate.left_out),
        "steering": result.steering.as_json() if result.steering else None,
        "steering_effect": result.baked.effect if result.baked else None,
    }
