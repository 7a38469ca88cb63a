"""`export`: a version as a model folder for transformers or vLLM, reloaded and compared before it gets its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from personality.builds.build import BuildRecord, write_build
from personality.builds.comparison import Agreement, agreement, log_probabilities, probe_tokens
from personality.builds.writer import DEFAULT_SHARD_BYTES, Progress
from personality.composition.opening import base_of, composer_of
from personality.evaluation.scores import check_finite
from personality.manifests.atomic import write_bytes
from personality.manifests.canonical import short
from personality.manifests.errors import CorruptError, IncompatibleError, PersonaError
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.model import load_composed, load_model
from personality.vectors.base import chat_template, model_config
from personality.versions.history import History
from personality.versions.recipe import manifest_of

TARGETS = ("hf", "vllm")
CARD = "README.md"
TOLERANCE = 1e-4
"""Greatest |Δ log-probability| (nats, float32) at which a reloaded export counts as the version."""


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        path: the folder.
        agreement: of the reloaded folder with the version composed in memory.
        notes: what a user should know before serving it.
    """

    path: Path
    agreement: Agreement
    notes: tuple[str, ...]


def export(
    repository: Repository,
    version: Version,
    target: str,
    path: Path,
    *,
    force: bool = False,
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
        shard_bytes: greatest size of a weights file.
        on_progress: told of every tensor.
        on_stage: told what is being done.

    Raises:
        PersonaError: when the folder is in the way, or the reloaded model disagrees; then nothing is kept.
        IncompatibleError: when the target cannot take the model.
    """
    told = on_stage or (lambda stage: None)
    _check_free(path, force=force)
    notes = _check_target(base_of(repository).folder, target)
    found: list[Agreement] = []

    def finish(folder: Path) -> None:
        write_bytes(folder / CARD, model_card(repository, version).encode())
        told("reloading and comparing")
        found.append(_compare(repository, version.personality, folder))

    told("composing")
    write_build(repository, version, path.absolute(), shard_bytes=shard_bytes, on_progress=on_progress, finish=finish)
    return Exported(path, found[0], notes)


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


def _compare(repository: Repository, personality: Personality, folder: Path) -> Agreement:
    model = load_model(folder)
    ids = probe_tokens(model.get_input_embeddings().num_embeddings)
    from_disk = log_probabilities(model, ids)
    del model  # one model in memory at a time
    in_memory = log_probabilities(load_composed(composer_of(repository, personality)), ids)
    result = agreement(from_disk, in_memory)
    check_finite(in_memory)
    if result.greatest_difference > TOLERANCE:
        raise CorruptError(
            f"the exported folder, reloaded, is not the version: log-probabilities differ by up to "
            f"{result.greatest_difference:.2g} nats, greedy tokens agree at {result.greedy:.1%}",
            "nothing was kept; check the disk, then `persona verify`",
        )
    return result


def model_card(repository: Repository, version: Version) -> str:
    """The export's README.md: what it is, of what it was made, and how it was measured."""
    history = History(repository)
    personality = version.personality
    source = personality.base.source
    # A folder of this machine says nothing elsewhere; its name does.
    name = source if source.count("/") == 1 and not source.startswith((".", "/", "~")) else Path(source).name
    lines = ["---", f"base_model: {name}"]
    license_name = _base_license(base_of(repository).folder)
    if license_name:
        lines.append(f"license: {license_name}")
    lines += ["tags: [persona]", "---", "", f"# {history.label(version)} of {repository.root.name}", ""]
    lines += [version.message, "", "| | |", "|---|---|"]
    lines += [
        f"| base | {name} ({short(personality.base.fingerprint)}) |",
        f"| version | {version.id} |",
        f"| composition | {personality.composition} |",
    ]
    lines += ["", "## Behaviors", "", "| vector | scale | layers | how | id |", "|---|---|---|---|---|"]
    for use in personality.uses:
        manifest = manifest_of(repository, use)
        where = str(use.layers) if use.layers else "all"
        lines.append(f"| {use.label} | {use.scale:g} | {where} | {manifest.making.how} | {short(use.vector)} |")
    if not personality.uses:
        lines.append("| none: the base alone | | | | |")
    evaluations = repository.evaluations(version.id)
    if evaluations:
        lines += ["", "## Measured", "", "| probe | passed | 95% interval | n |", "|---|---|---|---|"]
        for result in evaluations[-1].results:
            figure = result.passed
            lines.append(f"| {result.probe} | {figure.value:.1%} | {figure.low:.1%}–{figure.high:.1%} | {figure.n} |")
    lines += [
        "",
        f"The license of the base applies to these weights{f' ({license_name})' if license_name else ''}.",
        "",
    ]
    return "\n".join(lines)


def _base_license(folder: Path) -> str:
    """The `license:` field of the base's own model card; empty when it says nothing."""
    card = folder / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:40]:
            if line.startswith("license:"):
                return line.removeprefix("license:").strip()
    return ""


def as_json(result: Exported) -> dict[str, object]:
    """The export's facts as JSON data."""
    return {"path": str(result.path), "agreement": asdict(result.agreement), "notes": list(result.notes)}
