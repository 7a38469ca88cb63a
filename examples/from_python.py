"""The whole job from Python: what `persona playground`, `train`, `add`, `diff` and `export` do.

Run it with `.venv/bin/python examples/from_python.py [DIR]`; it makes DIR (`from-python`) and takes half a minute.
"""

from __future__ import annotations

import sys
from pathlib import Path

from personality.builds.export import export
from personality.composition.opening import composer_of
from personality.composition.weight_diff import weight_diff
from personality.making.training_job import TrainingJob
from personality.making.training_run import train_behavior
from personality.manifests.names import VectorLabel
from personality.playground.repository import general_file, make_playground
from personality.vectors.training.settings import make_settings
from personality.versions import changes
from personality.versions.history import History
from personality.versions.recipe import compare_recipes


def main(root: Path) -> None:
    repository = make_playground(root).repository
    settings = make_settings(**repository.config().training)
    for behavior in ("listening", "concise"):
        job = TrainingJob(
            behavior=behavior,
            data=root / f"data/{behavior}.jsonl",
            general=root / general_file(behavior),
            settings=settings,
            examples=50,
            probe_rows=20,
        )
        trained = train_behavior(repository, job)
        for probe, figures in trained.manifest.measures.items():
            print(f"{probe:22} {figures['passed before']:.0%} -> {figures['passed after']:.0%}")
        recorded = changes.add(repository, VectorLabel(behavior), scale=0.8)
        print(f"{recorded.label}: {recorded.version.personality}")

    history = History(repository)
    before, after = history.find("v2"), history.find("v3")
    print(*compare_recipes(before.personality, after.personality), sep="\n")
    for layer in weight_diff(*(composer_of(repository, version.personality) for version in (before, after))):
        print(f"layer {layer.layer}: change of norm {layer.norm_change:.3f}")

    result = export(repository, after, "vllm", root / "out")
    print(f"{result.path}: greatest difference {result.agreement.greatest_difference:.2g} nats")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "from-python"))
