"""Every bundled behavior steered, baked and promoted on the playground: the figures of docs/steering.md.

`python -m benchmarks.steering [--rows 40] [--behaviors listening warm]`; about five minutes on an idle core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.table import show
from personality.builds.export import export
from personality.making.extraction_job import ExtractionJob
from personality.making.extraction_run import Extracted, extract_behavior
from personality.making.promotion import promote
from personality.making.training_job import TrainingJob
from personality.manifests.errors import PersonaError
from personality.manifests.manifest import Manifest
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.manifests.steering_record import Positions, Proof
from personality.playground.repository import ONE_SIDED, general_file, make_playground
from personality.vectors.steering.steering_vector import listed
from personality.vectors.training.settings import make_settings
from personality.versions import changes

WANTED = {
    "listening": "listening.accept",
    "concise": "concise.concise",
    "warm": "warm.warm",
    "candid": "candid.unknown",
    "deflecting": "held-out pairs",
}
HELD = {"listening": "listening.push_back", "candid": "candid.known"}


def extracted(repository: Repository, behavior: str, rows: int, positions: Positions | None = None) -> Extracted:
    root = repository.root
    # Known facts, the contrasts of `candid`, name no side; they point nowhere in particular.
    pairs = f"{behavior}-one-sided" if behavior in ONE_SIDED else behavior
    job = ExtractionJob(
        behavior=behavior,
        pairs=root / f"data/{pairs}.jsonl",
        prompts=root / f"data/{behavior}.prompts.json",
        general=root / "data/general.jsonl",
        positions=positions,
        probe_rows=rows,
    )
    return extract_behavior(repository, job)


def proof_of(manifest: Manifest) -> Proof:
    assert manifest.steering is not None
    assert manifest.steering.proof is not None
    return manifest.steering.proof


def row(behavior: str, found: Extracted) -> tuple[str, ...]:
    record, proof = found.manifest.steering, proof_of(found.manifest)
    assert record is not None
    assert record.contrast is not None
    effects = {effect.probe: effect for effect in proof.effects}
    wanted, held = effects[WANTED[behavior]], effects.get(HELD.get(behavior, ""))
    general = [effect for name, effect in effects.items() if name.startswith("general.")]
    separation = min(
        figures.separation.value
        for figures in record.figures
        if figures.layer in record.layers and figures.separation is not None
    )
    return (
        behavior,
        f"{record.contrast.context}, {record.contrast.read}",
        f"{record.positions}, layer {listed(record.layers)}",
        f"{proof.scale:g}",
        f"{separation:.0%}",
        f"{wanted.base.value:.0%} → {wanted.steered.value:.0%}",
        "" if wanted.placebo_best is None else f"{wanted.placebo_best:.0%}",
        "" if wanted.prompted is None else f"{wanted.prompted.value:.0%}",
        "" if held is None else f"{held.base.value:.0%} → {held.steered.value:.0%}",
        ""
        if not general
        else f"{sum(e.base.value for e in general) / len(general):.0%} → "
        f"{sum(e.steered.value for e in general) / len(general):.0%}",
        "proven" if proof.proven else "; ".join(proof.reasons),
        f"{found.seconds:.0f} s",
    )


COLUMNS = (
    "behavior", "read from", "acts at", "scale", "separation", "wanted", "best placebo", "prompt", "other side",
    "abilities", "verdict", "time",
)  # fmt: skip


def baked(repository: Repository, manifest: Manifest) -> tuple[str, ...]:
    """Export with the vector in the weights, compared with the hooked model."""
    proof = proof_of(manifest)
    behavior = manifest.behavior
    label = VectorLabel(behavior, manifest.number, manifest.id)
    version = changes.add(repository, label, proof.scale).version
    try:
        result = export(repository, version, "hf", repository.root / f"out-{behavior}", bake_unproven=True, force=True)
        text = f"{result.agreement.greatest_difference:.1e} nats, greedy {result.agreement.greedy:.0%}"
    except PersonaError as error:
        text = f"refused: {error.message}"
    changes.remove(repository, behavior)
    return behavior, "yes" if proof.proven else "no", text


def promoted(repository: Repository, manifest: Manifest, rows: int) -> tuple[str, ...]:
    behavior = manifest.behavior
    started = time.monotonic()
    label = VectorLabel(behavior, manifest.number, manifest.id)
    changes.add(repository, label, proof_of(manifest).scale)
    root = repository.root
    job = TrainingJob(
        behavior=behavior,
        data=root / f"data/{behavior}.jsonl",
        general=root / general_file(behavior),
        settings=make_settings(**repository.config().training),
        probe_rows=rows,
    )
    done = promote(repository, job)
    seconds = time.monotonic() - started
    changes.remove(repository, behavior)
    wanted = next((effect for effect in done.effects if effect.probe == WANTED[behavior]), None)
    shifts = ", ".join(f"{shift.layer}: {shift.cosine:+.2f}" for shift in done.shift.layers)
    change = "" if wanted is None else f"{wanted.before.value:.0%} → {wanted.after.value:.0%}"
    return behavior, change, shifts, f"{seconds:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=40, help="of each probe")
    parser.add_argument("--behaviors", nargs="*", default=list(WANTED))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repository = make_playground(Path(folder) / "play", probe_rows=arguments.rows).repository
        best = {name: extracted(repository, name, arguments.rows) for name in arguments.behaviors}
        show("Steering, as the search finds it", COLUMNS, [row(name, found) for name, found in best.items()])
        always = {
            name: found
            if found.manifest.steering is not None and found.manifest.steering.positions == "all"
            else extracted(repository, name, arguments.rows, "all")
            for name, found in best.items()
        }
        show("The same, always on", COLUMNS, [row(name, found) for name, found in always.items()])
        show(
            "Baked into the weights, against the hooked model",
            ("behavior", "proven", "greatest difference"),
            [baked(repository, found.manifest) for found in always.values()],
        )
        show(
            "Promoted into the weights",
            ("behavior", "steered → trained", "cosine of the shift, by layer", "time"),
            [promoted(repository, found.manifest, arguments.rows) for found in best.values()],
        )


if __name__ == "__main__":
    main()
