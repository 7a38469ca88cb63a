"""`extract`: from pairs to a steering vector that is proven, calibrated and recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from personality.composition.opening import composer_of
from personality.evaluation.suite import Probe, read_suite
from personality.making.contrasts import RawPairs, read_raw_pairs
from personality.making.extraction_job import ExtractionJob
from personality.making.extraction_record import Choice, Found, layer_figures, other_vectors, steering_record
from personality.making.extraction_store import Extracted, store_extraction
from personality.making.found_directions import found_directions, load_for_reading, longest_text
from personality.manifests.errors import DataError, IncompatibleError
from personality.manifests.names import check_behavior_name
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.manifests.steering_record import (
    Condition,
    Proof,
)
from personality.model import load_tokenizer, threads_for
from personality.proving.calibration import calibrate
from personality.proving.candidates import Source
from personality.proving.condition import fit_condition
from personality.proving.dose_response import DOSES
from personality.proving.general_text import GeneralText, encode_general
from personality.proving.layer_effects import layer_effects
from personality.proving.proof import OnStep, prove
from personality.proving.roles import roles
from personality.proving.search import halves, search
from personality.vectors.steering.steering_vector import Gate, SteeringVector, listed
from personality.vectors.training.examples import Example, read_examples

_GENERAL_PAIRS = 200
_REACHED = 0.9  # nats


def extract_behavior(
    repository: Repository,
    job: ExtractionJob,
    *,
    on_stage: Callable[[str], None] | None = None,
    on_step: OnStep | None = None,
) -> Extracted:
    """Find a behavior's direction in the base's activations, prove it, calibrate it, and store it.

    The repository's lock is held only while the result is stored; an interruption before leaves nothing.

    Args:
        repository: where.
        job: what to do.
        on_stage: told what is being done.
        on_step: told of each step of a longer stage: its number, how many there are, what it is.

    Raises:
        DataError, NotFoundError: for files that cannot be used, naming file and line.
        UsageError, IncompatibleError: for a context, position, layer or mode that does not suit pairs or base.
    """
    told = on_stage or (lambda stage: None)
    check_behavior_name(job.behavior)
    started = time.monotonic()
    told("loading the base")
    base = Personality(base=repository.config().base)
    composer = composer_of(repository, base)
    tokenizer = load_tokenizer(composer.base.folder)
    raw = read_raw_pairs(job, chat=bool(tokenizer.chat_template))
    others = other_vectors(repository, job.behavior)
    model = load_for_reading(composer)
    probes = _probes(repository, job)
    notes: list[str] = []
    general = _general(job, raw, tokenizer, model, notes)
    with threads_for(model):
        told("reading activations")
        found = found_directions(repository, job, raw, model, tokenizer)
        choice = _choose(job, found, model, tokenizer, probes, general, told, on_step, notes)
        gate, condition = _condition(job, choice, model, tokenizer, told, notes)
        told("finding what scale 1 means")
        calibrated = calibrate(
            model,
            tokenizer,
            general,
            _by_layer(choice.found.extraction.directions),
            positions=choice.positions,
            mode=job.mode,
            layers=choice.layers,
            activations=dict(enumerate(choice.found.extraction.activation_norm.tolist())),
            gate=gate,
            probes=probes if job.prove else (),
            scales=sorted({*DOSES, choice.scale}),
            on_step=on_step,
        )
        if calibrated.calibration.kl_95 < _REACHED:
            notes.append(
                f"1 nat is out of reach: at scale 1 the vector moves 95% of the tokens by at most "
                f"{calibrated.calibration.kl_95:.3g} nats, and more of it does not move them further"
            )
        proof, effects = None, dict[int, float]()
        if job.prove:
            told("proving it")
            # What a search has chosen by proves nothing.
            fresh = halves(probes)[1] if choice.rows else probes
            proof = _prove(repository, job, raw, choice, calibrated.vector, model, tokenizer, general, fresh, on_step)
            base_shares = {item.probe: item.base.value for item in proof.effects}
            if probes and base_shares:  # without figures where the model gives no numbers
                wanted = roles(job.behavior, probes, base_shares).wanted
                raised = [probe for probe in probes if probe.name in wanted]
                effects = layer_effects(model, tokenizer, raised, calibrated.vector, choice.scale)
    told("storing the vector")
    figures = layer_figures(choice.found, others, calibrated, effects)
    record = steering_record(job, raw, choice, figures, condition, calibrated.calibration, proof)
    return store_extraction(repository, job, raw, calibrated.vector, record, choice, started, notes)


def _probes(repository: Repository, job: ExtractionJob) -> list[Probe]:
    """The behavior's own probes and the general suite; none where the behavior has none."""
    behavior = repository.behaviors().get(job.behavior)
    if behavior is None or not behavior.probes:
        return []
    return read_suite(repository, [job.behavior], job.probe_rows)


def _general(job: ExtractionJob, raw: RawPairs, tokenizer: Any, model: Any, notes: list[str]) -> GeneralText:
    most = longest_text(job, model)
    if job.general is not None:
        return encode_general(tokenizer, read_examples(job.general, need_rejected=False), max_length=most)
    examples = [
        Example(pair.negative.prompt, pair.negative.response, where=pair.where)
        for pair in raw.file.pairs[:_GENERAL_PAIRS]
        if pair.negative.response is not None
    ]
    if not examples:
        raise DataError(
            f"{job.pairs} has no replies by which scale 1 could be found",
            "give general examples, a prompt and a reply a line: `--general FILE`",
        )
    notes.append(
        "scale 1 was found, and side effects were looked for, on the pairs' own texts: with `--general FILE` scales "
        "compare between vectors, and side effects are seen on other text"
    )
    return encode_general(tokenizer, examples, max_length=most)


def _choose(
    job: ExtractionJob,
    found: Sequence[Found],
    model: Any,
    tokenizer: Any,
    probes: Sequence[Probe],
    general: GeneralText,
    told: Callable[[str], None],
    on_step: OnStep | None,
    notes: list[str],
) -> Choice:
    """What to keep: by search, or the first contrast in the layers and at the positions that are usual for it."""
    layers = _layers(job, found[0])
    if job.auto and probes:
        told("searching")
        best = search(
            model,
            tokenizer,
            job.behavior,
            probes,
            [
                Source(
                    item.name,
                    item.extraction.directions,
                    item.extraction.activation_norm,
                    item.merit,
                    item.apart,
                )
                for item in found
            ],
            general,
            mode=job.mode,
            positions=(job.positions,) if job.positions else ("all", "response", "decision"),
            layers=layers or None,
            on_step=on_step,
        )
        everywhere = best.by_positions.get("all")
        if everywhere is not None and best.best.positions != "all":
            where = f"{everywhere.source}, layer {listed(everywhere.layers)}, scale {everywhere.scale:g}"
            points = 100 * (best.scores["all"] - best.scores[best.best.positions])
            notes.append(
                f"the best that acts everywhere, as what is baked must, scores {points:+.0f} points: {where} "
                "(`--positions all`)"
            )
        chosen = next(item for item in found if item.name == best.best.source)
        return Choice(chosen, best.best.positions, best.best.layers, best.best.scale, best.rows)
    chosen = max(found, key=lambda item: float(item.merit.max()))
    positions = job.positions or ("decision" if chosen.read == "decision" else "response")
    if not layers:
        # Layers that tell texts apart alike well: the later one, whose shift less of the model can undo.
        merit = chosen.merit
        layers = (int((merit >= 0.98 * merit.max()).nonzero()[-1]),)
        notes.append(f"layer {layers[0]} was chosen by separation and consistency, not by what it does")
    return Choice(chosen, positions, layers, 1.0, ())


def _layers(job: ExtractionJob, found: Found) -> tuple[int, ...]:
    if job.layers is None:
        return ()
    count = len(found.extraction.directions)
    if job.layers.last >= count:
        raise IncompatibleError(
            f"--layers {job.layers}: the base has layers 0-{count - 1}", f"choose layers within 0-{count - 1}"
        )
    return tuple(range(job.layers.first, job.layers.last + 1))


def _condition(
    job: ExtractionJob,
    choice: Choice,
    model: Any,
    tokenizer: Any,
    told: Callable[[str], None],
    notes: list[str],
) -> tuple[Gate | None, Condition | None]:
    if job.when is None or job.unless is None:
        return None, None
    told("finding the condition")
    prompts = [[item.prompt for item in read_examples(path, need_rejected=False)] for path in (job.when, job.unless)]
    gate, condition = fit_condition(
        model,
        tokenizer,
        *prompts,
        last_layer=min(choice.layers),
        max_length=longest_text(job, model),
        seed=job.seed,
    )
    if condition.accuracy is not None and condition.accuracy.low <= 0.5:
        notes.append(
            f"the condition is right for {condition.accuracy.value:.0%} of {condition.accuracy.n} held-out prompts: no "
            "better than chance was shown"
        )
    return gate, condition


def _by_layer(directions: Tensor) -> dict[int, Tensor]:
    """Directions float32 (L, d) by layer, without layers in which nothing differs."""
    return {layer: direction for layer, direction in enumerate(directions) if bool(direction.any())}


def _prove(
    repository: Repository,
    job: ExtractionJob,
    raw: RawPairs,
    choice: Choice,
    vector: SteeringVector,
    model: Any,
    tokenizer: Any,
    general: GeneralText,
    probes: Sequence[Probe],
    on_step: OnStep | None,
) -> Proof:
    triplets = raw.file.form == "triplets"
    known = repository.behaviors().get(job.behavior)
    return prove(
        model,
        tokenizer,
        job.behavior,
        vector,
        general,
        probes,
        scale=choice.scale,
        separation={layer: choice.found.separated(layer) for layer in choice.layers},
        held_out=raw.test if triplets else (),
        pairs=raw.learn if triplets else (),
        systems=list(dict.fromkeys(positive for positive, _ in raw.prompts if positive is not None)),
        description=known.description if known else "",
        count=job.placebos,
        seed=job.seed,
        on_step=on_step,
    )
