from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from personality.manifests.errors import DataError, UsageError
from personality.vectors.training.batches import BatchItem, collate, plan_batches
from personality.vectors.training.examples import Example, Message, digest_examples
from personality.vectors.training.objectives import log_odds_ratio, mean_log_probs, sft_loss
from personality.vectors.training.response import response_log_probs
from personality.vectors.training.run import Callbacks, TrainingReport, fine_tune
from personality.vectors.training.settings import TrainSettings
from personality.vectors.training.step_report import StepReport
from personality.vectors.training.tokens import encode_examples
from personality.vectors.training.watch import DivergedError

Examples = Callable[[int], list[Example]]
Maker = Callable[..., Any]


@pytest.fixture
def train(tokenizer: Any, pairs: Examples, generals: Examples, tmp_path: Path) -> Callable[..., TrainingReport]:
    """Train on 20 pairs and 5 general examples, or on what is given."""

    def run(model: Any, settings: TrainSettings | None = None, **changes: Any) -> TrainingReport:
        given = {"behavior": pairs(20), "general": generals(5), "work_dir": tmp_path, **changes}
        given["callbacks"] = Callbacks(on_step=given.pop("on_step", None))
        return fine_tune(model, tokenizer, settings=settings or TrainSettings(rank=8), **given)

    return run


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def margin(model: Any, tokenizer: Any, examples: list[Example]) -> float:
    """Mean log-odds ratio of chosen to rejected."""
    encoded = encode_examples(tokenizer, examples, 500, with_rejected=True)
    inputs = collate(BatchItem(tuple(encoded), ()), 0)
    with torch.no_grad():
        log_probs, mask, _ = response_log_probs(model, inputs, keep_logits=True)
    means = mean_log_probs(log_probs, mask)
    return float(log_odds_ratio(means[: len(examples)], means[len(examples) :]).mean())


def test_a_run_reports_what_it_did(
    llama: Maker, train: Callable[..., TrainingReport], pairs: Examples, generals: Examples
) -> None:
    steps: list[StepReport] = []
    report = train(llama(), on_step=steps.append)
    assert report.steps == len(steps) == 5
    assert [step.step for step in steps] == [1, 2, 3, 4, 5]
    assert {step.steps for step in steps} == {5}
    assert tuple(step.loss for step in steps) == report.losses
    assert len(report.margins) == 5
    assert report.losses[-1] < report.losses[0]
    assert all(loss > nll for loss, nll in zip(report.losses, report.nlls, strict=True))
    assert report.sides == {"accept": 13, "push_back": 7, "unlabeled": 0}
    assert (report.behavior_examples, report.general_examples) == (20, 5)
    assert report.behavior_digest == digest_examples(pairs(20))
    assert report.general_digest == digest_examples(generals(5))
    assert report.tokens == sum(step.tokens for step in steps) > 20 * 60
    assert report.settings.lr == 2e-3  # the default for a model of this size
    assert steps[0].lr == 2e-3
    assert 0 < steps[-1].lr < steps[1].lr
    # Rank 8 of 32 by 32 up to 64: far below the two full moments of AdamW.
    full = 8 * sum(value.numel() for name, value in weights(llama()).items() if name in report.trained)
    assert 0 < report.optimizer_bytes < full / 2


def test_steps_follow_the_plan(
    llama: Maker, train: Callable[..., TrainingReport], tokenizer: Any, pairs: Examples, generals: Examples
) -> None:
    behavior = [
        Example(pair.prompt, (Message("assistant", "a" * (3 * i + 1)),), pair.rejected)
        for i, pair in enumerate(pairs(20))
    ]
    steps: list[StepReport] = []
    train(
        llama(),
        TrainSettings(rank=8, seed=4),
        behavior=behavior,
        general=generals(40),
        on_step=steps.append,
    )
    plan = plan_batches(20, 40, batch_size=5, general_ratio=0.25, seed=4)
    own = encode_examples(tokenizer, behavior, 500, with_rejected=True)
    other = encode_examples(tokenizer, generals(40), 500, with_rejected=False)
    wanted = []
    for batch in plan:
        rows = [own[i].chosen for i in batch.behavior] + [other[i].chosen for i in batch.general]
        rows += [rejected for i in batch.behavior if (rejected := own[i].rejected) is not None]
        wanted.append(sum(len(row.ids) for row in rows))
    assert [step.tokens for step in steps] == wanted
    assert len(set(wanted)) > 1


@pytest.mark.parametrize(
    "kind",
    [(a, o) for a in ("llama", "qwen3", "moe") for o in ("apollo", "apollo-mini", "adamw")],
    ids="-".join,
)
def test_orpo_raises_the_chosen_answers_over_the_rejected(
    kind: tuple[str, Any],
    request: pytest.FixtureRequest,
    train: Callable[..., TrainingReport],
    tokenizer: Any,
    pairs: Examples,
) -> None:
    architecture, optimizer = kind
    model = request.getfixturevalue(architecture)()
    before, margin_before = weights(model), margin(model, tokenizer, pairs(20))
    report = train(model, TrainSettings(rank=8, optimizer=optimizer, lr=3e-3))
    assert margin(model, tokenizer, pairs(20)) > margin_before + 0.02
    assert report.losses[-1] < report.losses[0]
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == set(report.trained)
    # Embeddings and norms are frozen; packed experts and everything else is trained.
    assert all("embed" not in name and "norm" not in name and "lm_head" not in name for name in moved)
    if architecture == "moe":
        assert any(before[name].ndim == 3 for name in moved)


@pytest.mark.parametrize(
    ("settings", "extra"),
    [
        (TrainSettings(rank=8, train_norms=True), {"norm"}),
        (TrainSettings(rank=8, train_embeddings=True), {"embed", "lm_head"}),
    ],
)
def test_embeddings_and_norms_train_on_demand(
    qwen3: Maker, train: Callable[..., TrainingReport], settings: TrainSettings, extra: set[str]
) -> None:
    names = train(qwen3(), settings).trained
    for part in ("norm", "embed", "lm_head"):
        assert any(part in name for name in names) == (part in extra)


def test_tied_embeddings_are_frozen_once_and_for_all(qwen3: Maker, train: Callable[..., TrainingReport]) -> None:
    model = qwen3(tie_word_embeddings=True)
    before = weights(model)["model.embed_tokens.weight"]
    train(model)
    assert torch.equal(model.lm_head.weight, before)


def test_the_same_seed_gives_the_same_bits(moe: Maker, train: Callable[..., TrainingReport]) -> None:
    def run(seed: int) -> dict[str, torch.Tensor]:
        model = moe(attention_dropout=0.2)
        train(model, TrainSettings(rank=8, seed=seed))
        return weights(model)

    torch.manual_seed(1)
    first = run(5)
    torch.manual_seed(2)  # what happened before must not matter
    second = run(5)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], value) for name, value in run(6).items())


def test_general_examples_only_add_likelihood(
    llama: Maker, tokenizer: Any, pairs: Examples, generals: Examples, tmp_path: Path
) -> None:
    model = llama()
    settings = TrainSettings(rank=8, batch_size=5, lr=1e-9)
    report = fine_tune(model, tokenizer, pairs(4), generals(1), settings, work_dir=tmp_path)
    rows = [*pairs(4), *generals(1)]
    encoded = encode_examples(tokenizer, rows, 500, with_rejected=False)
    log_probs, mask, _ = response_log_probs(llama(), collate(BatchItem(tuple(encoded), ()), 0), keep_logits=True)
    nll = float(sft_loss(log_probs, mask).detach())
    ratio = torch.nn.functional.logsigmoid(torch.tensor(report.margins[0]))
    assert list(report.nlls) == pytest.approx([nll], abs=1e-5)
    assert list(report.margins) == pytest.approx([margin(llama(), tokenizer, pairs(4))], abs=1e-4)
    # Close, not equal: the mean of logsigmoid is not the logsigmoid of the mean.
    assert report.losses[0] == pytest.approx(nll - 0.1 * float(ratio), abs=1e-3)


def test_sft_needs_no_rejected_answers(llama: Maker, train: Callable[..., TrainingReport], generals: Examples) -> None:
    report = train(llama(), TrainSettings(method="sft", rank=8), behavior=generals(30)[10:])
    assert report.margins == ()
    assert report.losses == report.nlls
    assert report.losses[-1] < report.losses[0]


def test_the_model_comes_back_as_it_was_lent(qwen3: Maker, train: Callable[..., TrainingReport]) -> None:
    model = qwen3()
    frozen_by_hand = model.model.layers[0].mlp.up_proj.weight
    frozen_by_hand.requires_grad_(False)
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before = frozen_by_hand.clone()
    use_cache = model.config.use_cache
    report = train(model)
    assert use_cache is True
    assert model.config.use_cache is use_cache
    assert not model.training
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == required
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(frozen_by_hand, before)
    assert "model.layers.0.mlp.up_proj.weight" not in report.trained
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_checkpointing_changes_memory_and_not_the_result(llama: Maker, train: Callable[..., TrainingReport]) -> None:
    def active(model: torch.nn.Module) -> bool:
        return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())

    plain, recomputed = llama(), llama()
    during: list[bool] = []
    train(plain, TrainSettings(rank=8))
    train(
        recomputed,
        TrainSettings(rank=8, gradient_checkpointing=True),
        on_step=lambda step: during.append(active(recomputed)),
    )
    assert during == [True] * 5
    assert not active(recomputed)
    for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_run_is_silent_and_leaves_two_checkpoints(
    llama: Maker, train: Callable[..., TrainingReport], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    train(llama(), work_dir=work)
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in work.glob("*/*")) == ["checkpoint-4", "checkpoint-5"]


def test_nan_weights_stop_the_run_at_once(llama: Maker, train: Callable[..., TrainingReport]) -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    steps: list[StepReport] = []
    with pytest.raises(DivergedError, match="the loss is nan at step 1 of 5") as caught:
        train(model, on_step=steps.append)
    assert "--lr" in caught.value.hint
    assert steps == []
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_last_step_that_overflows_is_noticed(
    llama: Maker, train: Callable[..., TrainingReport], pairs: Examples, generals: Examples
) -> None:
    with pytest.raises(DivergedError, match="NaN or Inf"):
        train(llama(), TrainSettings(rank=8, lr=3e38), behavior=pairs(4), general=generals(1))


def test_what_a_callback_raises_ends_the_run(llama: Maker, train: Callable[..., TrainingReport]) -> None:
    def stop(step: StepReport) -> None:
        if step.step == 2:
            raise KeyboardInterrupt

    model = llama()
    with pytest.raises(KeyboardInterrupt):
        train(model, on_step=stop)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_interrupt_within_a_step_leaves_no_gradients(llama: Maker, train: Callable[..., TrainingReport]) -> None:
    def interrupt(gradient: torch.Tensor) -> None:
        raise KeyboardInterrupt

    model = llama()
    # Later layers have their gradients by then.
    model.model.layers[0].mlp.up_proj.weight.register_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(model)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_weights_below_float32_and_nothing_to_train_are_refused(
    llama: Maker, train: Callable[..., TrainingReport]
) -> None:
    with pytest.raises(UsageError, match=r"is torch.bfloat16, `weights` says float32") as caught:
        train(llama().bfloat16())
    assert "torch.float32" in caught.value.hint
    model = llama()
    model.requires_grad_(False)
    with pytest.raises(UsageError, match="nothing to train"):
        train(model)


def test_data_that_does_not_fit_is_refused_before_any_step(
    llama: Maker, train: Callable[..., TrainingReport], generals: Examples
) -> None:
    model = llama()
    before = weights(model)
    with pytest.raises(DataError, match=r"need 5 general ones at ratio 0\.25, there are 2"):
        train(model, general=generals(2))
    with pytest.raises(DataError, match="no rejected answer"):
        train(model, behavior=generals(20))
    with pytest.raises(DataError, match=r"tokens, the limit is 20"):
        train(model, TrainSettings(max_length=20))
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())


def test_twenty_five_examples_take_well_under_a_second(qwen3: Maker, train: Callable[..., TrainingReport]) -> None:
    model = qwen3(hidden_size=96, head_dim=24, num_key_value_heads=4, intermediate_size=256, num_hidden_layers=4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # The fastest of three: other work on the machine must not fail the test.
        assert min(train(model).seconds for _ in range(3)) < 1.0
    finally:
        torch.set_num_threads(threads)
