"""Steering from Python: what `persona extract`, `add`, `ask`, `export` and `promote` do.

Run it with `.venv/bin/python examples/steering.py [DIR]`; it makes DIR (`steering`) and takes about a minute.
"""

from __future__ import annotations

import sys
from pathlib import Path

from personality.ask import ask
from personality.builds.export import export
from personality.composition.opening import base_of
from personality.making.extraction_job import ExtractionJob
from personality.making.extraction_run import extract_behavior
from personality.making.promotion import promote
from personality.making.training_job import TrainingJob
from personality.manifests.names import VectorLabel
from personality.model import load_model, load_tokenizer
from personality.playground.repository import make_playground
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import injections
from personality.vectors.steering.steering_file import open_steering
from personality.vectors.training.settings import make_settings
from personality.versions import changes

PROMPT = "Please paint the ladder red."


def main(root: Path) -> None:
    repository = make_playground(root).repository
    pairs, general = root / "data/listening.jsonl", root / "data/general.jsonl"

    # Find the direction, prove it, and calibrate its scale.
    prompts = root / "data/listening.prompts.json"
    job = ExtractionJob(behavior="listening", pairs=pairs, prompts=prompts, general=general)
    manifest = extract_behavior(repository, job).manifest
    assert manifest.steering is not None and manifest.steering.proof is not None
    scale = manifest.steering.proof.scale
    print(manifest.label, "proven" if manifest.steering.proven else manifest.steering.proof.reasons)

    # On any model in memory, without a repository around it: outside of the block nothing is left of it.
    folder = base_of(repository).folder
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    vector = open_steering(repository, manifest.id, manifest.label)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(chat, return_tensors="pt", add_special_tokens=False)
    with steered(model, injections(vector, scale)):
        answer = model.generate(**inputs, max_new_tokens=30)
    print("steered:", tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    # In a version, beside anything else.
    version = changes.add(repository, VectorLabel("listening"), scale).version
    print("version:", ask(repository, version, PROMPT))
    if vector.positions == "all":
        baked = export(repository, version, "hf", root / "baked")
        print(f"baked: greatest difference to the hooks {baked.agreement.greatest_difference:.2g} nats")

    # Into the weights, and the vector out again.
    settings = make_settings(**repository.config().training)
    training = TrainingJob(behavior="listening", data=pairs, general=general, settings=settings, examples=50)
    promoted = promote(repository, training)
    assert promoted.recorded is not None  # None when the guard stopped the training
    print(f"{promoted.recorded.label}: {promoted.recorded.version.personality}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "steering"))
