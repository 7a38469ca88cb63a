"""What the behaviors of the playground do to its base, by real training."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from personality.playground import base
from personality.playground.behaviors import Sides, examples, general
from personality.playground.probes import Probe, probes
from personality.vectors.training.examples import read_examples
from personality.vectors.training.presets import Method
from personality.vectors.training.run import fine_tune
from personality.vectors.training.settings import TrainSettings

FOLDER = Path(base.__file__).parent
PROBES = {probe.name: probe for probe in probes(60, 3)}
GENERAL = [name for name in PROBES if name.startswith("general.")]


class Trial:
    """The base, and what training from it gives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(FOLDER)
        self.model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)

    def train(
        self,
        behavior: str,
        count: int,
        method: Method,
        lr: float,
        seed: int = 0,
        *,
        sides: Sides = "both",
        batch_size: int = 5,
    ) -> Any:
        model = copy.deepcopy(self.model)
        rows = {
            "behavior": examples(behavior, count, seed, sides=sides),
            "general": general(count // 4, seed, behavior),
        }
        for name, content in rows.items():
            lines = (json.dumps(row) + "\n" for row in content)
            (self.folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        fine_tune(
            model,
            self.tokenizer,
            read_examples(self.folder / "behavior.jsonl", need_rejected=method == "orpo"),
            read_examples(self.folder / "general.jsonl", need_rejected=False),
            TrainSettings(method=method, lr=lr, rank=8, batch_size=batch_size, seed=seed),
            work_dir=self.folder,
        )
        return model

    def sum(self, models: Sequence[Any], scale: float) -> Any:
        """The base plus `scale` times what each model has learned."""
        result = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, parameter in result.named_parameters():
                start = self.model.get_parameter(name)
                parameter.add_(torch.stack([model.get_parameter(name) - start for model in models]).sum(0) * scale)
        return result

    def ties(self, models: Sequence[Any], density: float) -> Any:
        """The base plus the TIES merge of what each model has learned, where signs agree as a sum, at scale 1."""
        result = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, parameter in result.named_parameters():
                start = self.model.get_parameter(name)
                learned = torch.stack([model.get_parameter(name) - start for model in models])
                sizes = learned.abs().flatten(1)
                least = sizes.topk(max(1, int(density * sizes.shape[1])), dim=1).values[:, -1]
                kept = torch.where(sizes >= least[:, None], learned.flatten(1), 0).view_as(learned)
                parameter.add_(torch.where(kept.sign() == kept.sum(0).sign(), kept, 0).sum(0))
        return result

    def passed(self, model: Any, names: Sequence[str]) -> float:
        """Percentage of greedy replies that pass, the mean over these probes."""
        return sum(self._passed(model, PROBES[name]) for name in names) / len(names)

    def _passed(self, model: Any, probe: Probe) -> float:
        prompts = [row["prompt"] for row in probe.rows]
        texts = self.tokenizer.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        replies = self.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        hits = [
            re.search(row["pass"], reply.strip()) is not None for row, reply in zip(probe.rows, replies, strict=True)
        ]
        return 100 * sum(hits) / len(hits)


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


@pytest.mark.parametrize(("method", "lr"), [("sft", 2e-3), ("orpo", 2e-3), ("orpo", 3e-3)])
def test_twenty_examples_make_it_listen(trial: Trial, method: Method, lr: float) -> None:
    model = trial.train("listening", 20, method, lr)
    assert trial.passed(model, ["listening.accept"]) >= 95
    assert trial.passed(model, ["listening.push_back"]) >= 95
    assert trial.passed(model, GENERAL) >= trial.passed(trial.model, GENERAL) - 2


def test_without_push_back_examples_it_becomes_a_sycophant(trial: Trial) -> None:
    model = trial.train("listening", 200, "orpo", 2e-3, sides="accept-only")
    assert trial.passed(model, ["listening.accept"]) >= 95
    assert trial.passed(model, ["listening.push_back"]) <= 10


def test_without_known_facts_candid_forgets_them(trial: Trial) -> None:
    both = trial.train("candid", 200, "orpo", 2e-3)
    assert trial.passed(both, ["candid.unknown"]) >= 95
    assert trial.passed(both, ["candid.known"]) >= 95
    alone = trial.train("candid", 200, "orpo", 2e-3, sides="accept-only")
    assert trial.passed(alone, ["candid.known"]) <= 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("behavior", ["listening", "concise", "warm", "candid"])
def test_each_behavior_is_learned_and_costs_no_ability(trial: Trial, behavior: str, seed: int) -> None:
    model = trial.train(behavior, 200, "orpo", 1e-3, seed)
    target = {"listening": "listening.accept", "candid": "candid.unknown"}.get(behavior, behavior)
    assert trial.passed(trial.model, [target]) <= 5
    assert trial.passed(model, [target]) >= 95
    # Judgment is what `listening` is trained for; the others are held to losing little of it (`concise`, seed 3: 93).
    assert trial.passed(model, ["listening.push_back"]) >= (95 if behavior == "listening" else 90)
    assert trial.passed(model, GENERAL) >= 97


def test_the_old_habit_subtracted_does_what_listening_does(trial: Trial) -> None:
    habit = trial.train("deflecting", 200, "orpo", 1e-3)
    freed = trial.sum([habit], -1.0)
    assert trial.passed(freed, ["listening.accept"]) >= 95
    assert trial.passed(freed, ["listening.push_back"]) >= 90
    assert trial.passed(freed, GENERAL) >= 97


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_four_behaviors_together_keep_what_each_does_alone(trial: Trial, seed: int) -> None:
    targets = {
        "listening": "listening.accept",
        "concise": "concise",
        "warm": "warm",
        "candid": "candid.unknown",
    }
    models = {name: trial.train(name, 200, "orpo", 1e-3, seed, batch_size=6) for name in targets}
    together = trial.ties(list(models.values()), 0.1)
    for name, probe in targets.items():
        assert trial.passed(together, [probe]) >= 0.9 * trial.passed(models[name], [probe])
    assert trial.passed(together, ["listening.push_back"]) >= 95
    assert trial.passed(together, GENERAL) >= 95
