"""What each way of training does to the playground's behaviors, and what it costs: the tables of docs/training.md.

`python -m benchmarks.training [objectives|ways|avoid …]`; without a word all of them. Everything is product code: a
fresh base for every run, 200 examples and 50 general ones unless a row says otherwise, probes of 100 held-out rows.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.table import show
from personality.making.training_job import AvoidOptions, TrainingJob
from personality.making.training_run import train_behavior
from personality.manifests.manifest import Manifest
from personality.manifests.repository import Repository
from personality.manifests.training_record import TrainingRecord
from personality.playground.repository import general_file, make_playground
from personality.vectors.training.settings import fitting, make_settings

# Probes that show a behavior, and those that show where it ends.
_PROBES = {
    "listening": ("listening.accept", "listening.push_back"),
    "deflecting": ("listening.accept", "listening.push_back"),
    "concise": ("concise.concise", ""),
    "warm": ("warm.warm", ""),
    "candid": ("candid.unknown", "candid.known"),
}
_METHODS = ("sft", "orpo", "dpo", "sft-dpo")
_WAYS: dict[str, dict[str, Any]] = {
    "Apollo, all weights": {},
    "Apollo-Mini": {"optimizer": "apollo-mini"},
    "AdamW": {"optimizer": "adamw"},
    "frozen context": {"context": "frozen"},
    "`--only attention`": {"only": ("attention",)},
    "`--only mlp`": {"only": ("mlp",)},
    "`--layers 2-3`": {"layers": "2-3"},
    "LoRA, rank 4": {"lora_rank": 4},
    "LoRA, frozen context": {"lora_rank": 4, "context": "frozen"},
    "LoRA, DPO": {"lora_rank": 4, "method": "dpo"},
    "bf16 weights": {"weights": "bf16"},
    "bf16, compensated": {"weights": "bf16-compensated"},
    "bf16, stochastic": {"weights": "bf16-stochastic"},
    "bf16 weights, lr 1e-4": {"weights": "bf16", "lr": 1e-4},
    "bf16, compensated, lr 1e-4": {"weights": "bf16-compensated", "lr": 1e-4},
    "bf16, stochastic, lr 1e-4": {"weights": "bf16-stochastic", "lr": 1e-4},
    "float32, lr 1e-4": {"lr": 1e-4},
}


def main() -> None:
    wanted = sys.argv[1:] or ["objectives", "ways", "avoid"]
    with tempfile.TemporaryDirectory() as folder:
        repository = make_playground(Path(folder) / "play", probe_rows=100).repository
        for name, table in (("objectives", _objectives), ("ways", _ways), ("avoid", _avoid)):
            if name in wanted:
                table(repository)


def _train(repository: Repository, behavior: str, *, avoid: AvoidOptions | None = None, **given: Any) -> Manifest:
    """Train a behavior; the old habit is measured by the probes of the behavior that it is the opposite of."""
    job = TrainingJob(
        behavior="listening" if behavior == "deflecting" else behavior,
        data=repository.root / f"data/{behavior}.jsonl",
        general=repository.root / general_file(behavior),
        allow_repeats=True,
        avoid=avoid,
        probe_rows=100,
        skip=given.pop("skip", 0),
        examples=given.pop("examples", None),
        settings=make_settings(**fitting(repository.config().training, given)),
    )
    return train_behavior(repository, job).manifest


def _record(manifest: Manifest) -> TrainingRecord:
    assert manifest.making.training is not None
    return manifest.making.training


def _cells(manifest: Manifest, behavior: str) -> list[str]:
    """Effect by probability and reply, the other side, general ability, KL, verdict."""
    shows, ends = _PROBES[behavior]
    effect, record = manifest.measures[shows], _record(manifest)
    general = [found["passed after"] for name, found in manifest.measures.items() if name.startswith("general.")]
    other = manifest.measures[ends]["passed after"] if ends else None
    before, after = effect.get("probability before"), effect.get("probability after")
    return [
        f"{before:.0%} → {after:.0%}" if before is not None and after is not None else "",
        f"{effect['passed after']:.0%}",
        f"{other:.0%}" if other is not None else "",
        f"{sum(general) / len(general):.0%}",
        f"{record.health['kl']:.4f}",
        # The old habit is wanted where the probes want its opposite, so the verdict on it says nothing.
        f"stopped: {record.stopped['name']}" if record.stopped else "" if behavior == "deflecting" else record.verdict,
    ]


def _objectives(repository: Repository) -> None:
    rows = []
    for behavior in _PROBES:
        for method in _METHODS:
            manifest = _train(repository, behavior, method=method)
            rates = f"{manifest.making.settings['lr']:g}"
            if method == "sft-dpo":
                rates += f", {manifest.making.settings['dpo_lr']:g}"
            rows.append([f"`{behavior}`", method, rates, *_cells(manifest, behavior), f"{manifest.making.seconds:.1f}"])
    columns = ["behavior", "method", "lr", "P", "replies", "other side", "general", "KL", "verdict", "s"]
    show("Each objective on each behavior, 200 examples", columns, rows)


def _ways(repository: Repository) -> None:
    rows = []
    for name, given in _WAYS.items():
        manifest = _train(repository, "listening", **given)
        updates = _record(manifest).updates
        meter = f"{updates.share_changed:.0%}, {updates.cosine:.2f}" if updates is not None else ""
        rate = f"{manifest.making.settings['lr']:g}"
        size = f"{manifest.bytes / 1e3:.0f}"
        rows.append([name, rate, *_cells(manifest, "listening"), meter, size, f"{manifest.making.seconds:.1f}"])
    columns = ["way", "lr", "P", "replies", "push-back", "general", "KL", "verdict", "bf16 meter", "kB", "s"]
    show("`listening` by ORPO in every way, 200 examples", columns, rows)


def _avoid(repository: Repository) -> None:
    first = _train(repository, "listening", examples=100)
    other = _train(repository, "warm", examples=100)
    rows = []
    for title, vector, given in (
        ("`listening` itself, from other data", first, {}),
        ("the same, magnitude kept", first, {"keep_magnitude": True}),
        ("the same, direction denoised to 16", first, {"top": 16}),
        ("`warm`", other, {}),
    ):
        options = AvoidOptions(**{"vector": vector.id, "label": vector.label, "top": None, **given})
        manifest = _train(repository, "listening", avoid=options, skip=100, examples=100)
        avoided = _record(manifest).avoided or {}
        for arm in ("toward", "placebo"):
            cosines = avoided[f"{arm} cosines"]
            measures = manifest.measures if arm == "toward" else avoided["placebo measures"]
            rows.append(
                [
                    title if arm == "toward" else "… a random direction instead",
                    f"{cosines['in']:+.3f}",
                    f"{cosines['out']:+.4f}",
                    f"{measures['listening.accept']['probability after']:.0%}",
                    f"{measures['listening.accept']['passed after']:.0%}",
                    f"{measures['listening.push_back']['passed after']:.0%}",
                ]
            )
    columns = ["`listening` while avoiding", "cos in", "cos out", "P", "replies", "push-back"]
    show("Update projection and its placebo, 100 examples", columns, rows)


if __name__ == "__main__":
    main()
