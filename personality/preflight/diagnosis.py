"""`persona preflight`: the repository's base with files of data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from personality.composition.opening import composer_of
from personality.evaluation.suite import read_suite
from personality.manifests.errors import DataError
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.model import load_composed, load_tokenizer
from personality.preflight.findings import Preflight
from personality.preflight.preflight import run_preflight
from personality.vectors.training.examples import read_examples
from personality.vectors.training.presets import needs_rejected
from personality.vectors.training.settings import TrainSettings


def diagnose(
    repository: Repository,
    data: Path,
    general: Path | None,
    settings: TrainSettings,
    *,
    behavior: str | None = None,
    examples: int | None = None,
    seed: int = 0,
    on_stage: Callable[[str], None] | None = None,
) -> Preflight:
    """Run a preflight on the repository's base; nothing is written.

    Args:
        repository: where.
        data: JSONL of examples, with `rejected` answers for the objectives that need them.
        general: JSONL of general examples, or None.
        settings: of the run to come.
        behavior: whose probes the data must not repeat, beside those of general ability; None for every behavior's.
        examples: look only at so many from the beginning of `data`.
        seed: of sampling and draws.
        on_stage: told what is being done.

    Raises:
        DataError: data that cannot be read or tokenized, naming file and line.
        PersonaError: the base cannot be loaded, or does not predict anything.
    """
    wanted = read_examples(data, need_rejected=needs_rejected(settings.method))
    if examples is not None:
        if examples > len(wanted):
            raise DataError(f"{data} has {len(wanted)} examples, not {examples}", "ask for fewer, or write more")
        wanted = wanted[:examples]
    others = read_examples(general, need_rejected=False) if general else []
    known = repository.behaviors()
    probes = read_suite(repository, None if behavior is None else [behavior] if behavior in known else [])
    if on_stage:
        on_stage("loading the base")
    composer = composer_of(repository, Personality(base=repository.config().base))
    model, tokenizer = load_composed(composer), load_tokenizer(composer.base.folder)
    return run_preflight(model, tokenizer, wanted, others, settings, probes=probes, seed=seed, on_stage=on_stage)
