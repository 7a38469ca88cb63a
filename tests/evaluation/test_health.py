"""General text, coherence and the distance from the base, against what can be computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from personality.changing_model import ChangingModel
from personality.evaluation.evaluate import evaluate
from personality.evaluation.health import health_changes, health_rows, measure_health
from personality.evaluation.replies import reply_ids
from personality.evaluation.scores import encode, prompt_text
from personality.evaluation.suite import Row, general_text, read_suite
from personality.manifests.errors import DataError
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.versions.changes import add
from personality.versions.history import History


@pytest.fixture
def repository(repository_copy: Path) -> Repository:
    return Repository(repository_copy)


def personality(repository: Repository, scale: float) -> Personality:
    return add(repository, VectorLabel("listening"), scale).version.personality


def test_the_base_is_no_distance_from_itself_and_a_torn_model_is_far(repository: Repository) -> None:
    text, prompts = health_rows(repository, read_suite(repository))
    base = History(repository).head().personality
    changing = ChangingModel(repository)
    text, prompts = text[::3], prompts[::3]
    own = measure_health(changing, base, base, text, prompts)
    assert own.kl.value == own.kl_95.value == 0
    assert own.ended.value == 1
    assert own.distinct_1.value > 0.8
    mild = measure_health(changing, base, personality(repository, 1.0), text, prompts)
    torn = measure_health(changing, base, personality(repository, 12.0), text, prompts)
    assert 0 < mild.kl.value < 0.2 < torn.kl.value
    assert mild.kl.value <= mild.kl_95.value
    assert torn.nll.value > own.nll.value + 1
    assert torn.repetition.value > own.repetition.value + 0.1
    assert torn.distinct_2.value < own.distinct_2.value
    changes = health_changes(own, torn)
    assert changes["nll"].low > 0
    assert changes["nll"].value == pytest.approx(torn.nll.value - own.nll.value)
    assert not any(figure.shows_change for figure in health_changes(mild, mild).values())
    assert health_changes(own, measure_health(changing, base, base, text[:5], prompts)) == {}


@torch.inference_mode()
def test_figures_against_one_pass_by_hand(repository: Repository) -> None:
    """The divergence along the base's own reply and the likelihood of a text, token by token."""
    text = general_text(repository)[:1]
    base = History(repository).head().personality
    other = personality(repository, 2.0)
    changing = ChangingModel(repository)
    found = measure_health(changing, base, other, text, text)
    rows: list[torch.Tensor] = []
    for item in (base, other):
        with changing.taking(item) as (model, tokenizer):
            chat = [turn.as_json() for turn in text[0].prompt]
            head = encode(tokenizer, prompt_text(tokenizer, chat))
            if not rows:
                reply = reply_ids(model, tokenizer, [head], max_new_tokens=48)[0]
                reply = reply[: reply.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in reply else reply
            logits = model(input_ids=torch.tensor([head + reply])).logits[0, len(head) - 1 : -1]
            rows.append(logits.double().log_softmax(-1))
            whole = str(tokenizer.apply_chat_template([*chat, text[0].chosen[0].as_json()], tokenize=False))
            ids = encode(tokenizer, whole)
            scores = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
            gold = [-float(scores[at - 1, ids[at]]) for at in range(len(head), len(ids)) if at < len(ids)]
    kl = (rows[0].exp() * (rows[0] - rows[1])).sum(-1)
    assert found.kl.value == pytest.approx(float(kl.mean()), rel=1e-3)
    # The template may put white space behind the end of a turn, which is no part of the reply.
    stop = max(i for i in range(len(gold)) if ids[len(head) + i] == tokenizer.eos_token_id) + 1
    assert found.nll.value == pytest.approx(math.fsum(gold[:stop]) / stop, rel=1e-3)


def test_general_text_of_its_own(repository: Repository) -> None:
    path = repository.root / "suites/general.toml"
    path.write_text('text = "general.text.jsonl"\n' + path.read_text())
    file = repository.root / "suites/general.text.jsonl"
    file.write_text('{"text": "Mia lives in Northam. Tom likes red."}\n{"text": "Numbers come up every day."}\n')
    text, prompts = health_rows(repository, read_suite(repository, rows=2))
    assert [row.prompt for row in text] == [(), ()]
    assert len(prompts) == 20
    base = History(repository).head()
    evaluation = evaluate(repository, base, rows=2, health=True)
    assert evaluation.health is not None
    assert evaluation.health.nll.n == 2
    assert evaluation.health.kl.n == 20
    # Known figures are not measured again, other text is.
    assert evaluate(repository, base, rows=2, health=True) == evaluation
    file.write_text(json.dumps({"prompt": [{"role": "user", "content": "Hello."}], "completion": []}) + "\n")
    with pytest.raises(DataError, match=r"general\.text\.jsonl:1: "):
        evaluate(repository, base, rows=2, health=True)
    file.write_text(
        json.dumps(
            {"prompt": [{"role": "user", "content": "Hello."}], "chosen": [{"role": "assistant", "content": "Hi."}]}
        )
    )
    again = evaluate(repository, base, rows=2, health=True)
    assert again.health is not None
    assert again.health.digest != evaluation.health.digest
    assert again.results == evaluation.results
    file.write_text('{"words": 3}\n')
    with pytest.raises(DataError, match=r"general\.text\.jsonl:1: neither a text nor a prompt"):
        general_text(repository)


def test_without_general_text_nothing_is_measured(repository: Repository) -> None:
    (repository.root / "suites/general.toml").unlink()
    assert health_rows(repository, read_suite(repository)) == ([], [])
    assert evaluate(repository, History(repository).head(), behaviors=["listening"], rows=2, health=True).health is None
    assert Row(prompt=()).as_json() == {"prompt": [], "passes": "", "chosen": [], "rejected": []}
