"""The export's README.md."""

from __future__ import annotations

from pathlib import Path

from personality.builds.built_steering import BuiltSteering
from personality.composition.opening import base_of
from personality.manifests.canonical import short
from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.versions.history import History
from personality.versions.recipe import manifest_of


def model_card(repository: Repository, version: Version, steering: BuiltSteering | None) -> str:
    """The export's README.md: what it is, of what it was made, and how it was measured.

    Args:
        repository: where.
        version: what was exported.
        steering: what became of its steering vectors; None when it has none.
    """
    history = History(repository)
    personality = version.personality
    source = personality.base.source
    # A folder of this machine says nothing elsewhere; its name does.
    name = source if source.count("/") == 1 and not source.startswith((".", "/", "~")) else Path(source).name
    lines = ["---", f"base_model: {name}"]
    license_lines = _base_license(base_of(repository).folder)
    lines += license_lines
    license_name = ", ".join(line.partition(":")[2].strip() for line in license_lines)
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
    if steering is not None:
        lines += ["", "## Steering", "", _steering_text(steering)]
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


def _steering_text(steering: BuiltSteering) -> str:
    uses = "; ".join(steering.uses)
    if steering.baked:
        return (
            f"Baked into these weights by the route `{steering.route}`, always on, at every position: {uses}. "
            f"It costs {steering.cost}. The folder was reloaded and compared with the model that hooks steer."
        )
    if steering.file:
        return (
            f"**Left to the plugin for vLLM: {uses}.** It reads `{steering.file}` when the server starts with "
            "`VLLM_PLUGINS=persona`; without it this folder answers by its weights alone, not as the version does."
        )
    return (
        f"**Left out: {uses}.** A plain checkpoint does not hold them here, so this folder answers by its weights "
        "alone, not as the version does."
    )


def _base_license(folder: Path) -> list[str]:
    """The lines of the base's own model card that tell its license; empty when it says nothing.

    A license without a name on the hub is `license: other`, with `license_name` and `license_link`.
    """
    card = folder / "README.md"
    if not card.is_file():
        return []
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return []
    front = lines[1 : next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), len(lines))]
    return [line.rstrip() for line in front if line.startswith(("license:", "license_name:", "license_link:"))]
