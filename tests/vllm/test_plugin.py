"""The plugin inside the real engine: agreement with transformers' hooks, live changes, caches, batches, reloads."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from personality.builds.comparison import Agreement
from personality.builds.reference import REPLY_TOKENS, Reference, Row, compare, rows_of
from personality.manifests.errors import PersonaError
from personality.manifests.steering_record import Positions
from personality.model import load_model
from personality.playground.repository import base_folder
from personality.serving.engine import Engine
from personality.serving.plugin.exported_folder import CERTIFICATE
from personality.serving.steering_table import STEERING_FILE, save, table_of, to_bytes
from personality.serving.vllm_environment import VllmEnvironment
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import Injection
from tests.vllm.models import vllm_checkpoint

WIDTH, LAYERS = 64, 3
ALLOWED = 1e-4  # nats
MIXED: tuple[tuple[int, Positions], ...] = ((0, "all"), (1, "response"), (1, "decision"), (2, "decision"))


@pytest.fixture(scope="session")
def engine(vllm: VllmEnvironment) -> Iterator[Engine]:
    """vLLM with the plugin and steering that may depend on positions."""
    with Engine(vllm, plugins=("persona",), variables={"PERSONA_STEERING": "positions"}) as found:
        yield found


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vllm_checkpoint("llama", tmp_path_factory.mktemp("models") / "llama")


def injection(layer: int, positions: Positions, size: float = 0.4, width: int = WIDTH) -> Injection:
    generator = torch.Generator().manual_seed(layer)
    return Injection(layer, size * torch.randn(width, generator=generator), positions, "add", label=f"{positions}@1")


def mixed(width: int = WIDTH) -> list[Injection]:
    return [injection(layer, positions, width=width) for layer, positions in MIXED]


def steer(
    engine: Engine, items: Sequence[Injection], slot: str = "", *, layers: int = LAYERS, width: int = WIDTH
) -> Any:
    encoded = base64.b64encode(to_bytes(table_of(items, layers, width))).decode()
    found = engine.call("persona_set_steering", encoded, slot)
    engine.reset_prefix_cache()
    return found[0]


def clear(engine: Engine) -> None:
    engine.call("persona_clear_steering")
    engine.reset_prefix_cache()


def prompts(*lengths: int, vocabulary: int = 250) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def told(engine: Engine, rows: Sequence[Sequence[int]]) -> list[Row]:
    found = engine.answers(rows, REPLY_TOKENS)
    return [Row.model_validate({"prompt": row, **answer}) for row, answer in zip(rows, found, strict=True)]


def agreement(engine: Engine, model: Any, items: Sequence[Injection], rows: Sequence[Sequence[int]]) -> Agreement:
    """What the engine answers now beside transformers with hooks."""
    with steered(model, items):
        reference = Reference(rows=rows_of(model, rows), bfloat16_loss=0)
    return compare(reference, told(engine, rows))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "qwen2", "mistral", "granite", "gpt_oss"])
def test_it_does_what_hooks_do(engine: Engine, tmp_path: Path, kind: str) -> None:
    folder = vllm_checkpoint(kind, tmp_path / kind)
    model = load_model(folder)
    engine.load(folder)
    rows = prompts(9, 14, 30)
    base = told(engine, rows)
    assert agreement(engine, model, [], rows).greatest_difference < ALLOWED
    for items in ([injection(1, "all")], [injection(0, "response")], [injection(2, "decision")], mixed()):
        steer(engine, items)
        found = agreement(engine, model, items, rows)
        assert found.greatest_difference < ALLOWED and found.greedy == 1, (items[0].positions, found)
        moved = [
            abs(a - b)
            for x, y in zip(base, told(engine, rows), strict=True)
            for a, b in zip(x.log_probabilities, y.log_probabilities, strict=True)
        ]
        assert max(moved) > 0.05
    clear(engine)
    assert told(engine, rows) == base


def test_the_playground(engine: Engine) -> None:
    folder = base_folder()
    model = load_model(folder)
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    engine.load(folder)
    rows = prompts(12, 21, vocabulary=60)
    for items in ([injection(1, "all", width=width)], mixed(width)):
        steer(engine, items, layers=layers, width=width)
        found = agreement(engine, model, items, rows)
        assert found.greatest_difference < ALLOWED and found.greedy == 1


def test_gated_delta_layers_in_bfloat16(engine: Engine, tmp_path: Path) -> None:
    # vLLM has no float32 for them on a processor: what steering moves is compared, within what bfloat16 loses.
    folder = vllm_checkpoint("qwen3_5", tmp_path / "qwen3_5")
    engine.load(folder, dtype="bfloat16")
    model = load_model(folder).bfloat16()
    rows = prompts(9, 14, 30)
    unsteered = agreement(engine, model, [], rows)
    steer(engine, mixed())
    found = agreement(engine, model, mixed(), rows)
    without = agreement(engine, model, [], rows)
    assert found.greatest_difference < max(0.05, 3 * unsteered.greatest_difference)
    assert without.greatest_difference > 5 * found.greatest_difference


def test_nothing_of_stock_is_changed(engine: Engine, stock: Engine, llama: Path) -> None:
    rows = torch.tensor(prompts(24, 24))
    stock.load(llama)
    engine.load(llama)
    expected = stock.all_log_probabilities(rows)
    assert torch.equal(engine.all_log_probabilities(rows), expected)
    steer(engine, mixed())
    assert not torch.equal(engine.all_log_probabilities(rows), expected)
    steer(engine, [])  # scale 0
    assert torch.equal(engine.all_log_probabilities(rows), expected)
    clear(engine)
    assert torch.equal(engine.all_log_probabilities(rows), expected)


def test_requests_of_one_batch_are_steered_each_by_its_own_slot(engine: Engine, llama: Path) -> None:
    engine.load(llama)
    model = load_model(llama)
    sets: dict[str, list[Injection]] = {"": [], "warm": mixed(), "cold": [injection(1, "response", 1.0)]}
    rows = prompts(9, 14, 30, 11, 20, 7)
    names = ["warm", "", "cold", "warm", "cold", ""]
    for name in ("warm", "cold"):
        steer(engine, sets[name], name)
    expected = []
    for name, row in zip(names, rows, strict=True):
        with steered(model, sets[name]):
            expected.append(list(rows_of(model, [row])[0].reply))
    assert len({tuple(reply) for reply in expected}) > 3
    extra = [{"persona": name} if name else None for name in names]
    found = engine.generate(rows, REPLY_TOKENS, extra)
    assert [reply[: len(wanted)] for reply, wanted in zip(found, expected, strict=True)] == expected
    for wrong in ("nobody's", "", 3):
        with pytest.raises(PersonaError, match="slot"):
            engine.generate(rows[:1], 4, [{"persona": wrong}])
    engine.call("persona_clear_steering", "cold")
    with pytest.raises(PersonaError, match="no slot `cold`"):
        engine.generate(rows[:1], 4, [{"persona": "cold"}])
    assert engine.generate(rows, REPLY_TOKENS, [None] * 6) != found


def test_chunks_and_the_prefix_cache_change_nothing(engine: Engine, llama: Path) -> None:
    """Long prompts in pieces of 48 tokens; a second turn that contains the first one's prompt and reply."""
    engine.load(llama, max_length=512, max_num_batched_tokens=48, max_num_seqs=4, long_prefill_token_threshold=0)
    model = load_model(llama)
    items = [injection(0, "decision", 6.0), injection(1, "response", 1.5), injection(2, "all")]
    steer(engine, items)
    first = prompts(140, 200, 129, 128)
    found = agreement(engine, model, items, first)
    assert found.greatest_difference < ALLOWED and found.greedy == 1
    engine.reset_prefix_cache()
    replies = engine.generate(first, 90)
    with steered(model, items):
        assert [reply[:REPLY_TOKENS] for reply in replies] == [list(row.reply) for row in rows_of(model, first)]
    second = [
        [*prompt, *reply, *more] for prompt, reply, more in zip(first, replies, prompts(9, 30, 12, 5), strict=True)
    ]
    cached = engine.generate(second, 40)
    again = engine.generate(second, 40)
    engine.reset_prefix_cache()
    fresh = engine.generate(second, 40)
    assert cached == again == fresh
    # The same text as a prompt of its own, without anything computed before.
    with steered(model, items):
        assert [reply[:REPLY_TOKENS] for reply in fresh] == [list(row.reply) for row in rows_of(model, second)]


def test_slots_do_not_share_what_is_cached(engine: Engine, llama: Path) -> None:
    engine.load(llama, max_length=512)
    steer(engine, [injection(0, "all", 2.0)], "warm")
    row = prompts(300)
    warm: list[dict[str, Any] | None] = [{"persona": "warm"}]
    plain = engine.generate(row, 30)
    steered_reply = engine.generate(row, 30, warm)
    assert plain != steered_reply
    engine.reset_prefix_cache()
    assert engine.generate(row, 30, warm) == steered_reply
    assert engine.generate(row, 30) == plain


def test_steering_outlives_new_weights(engine: Engine, llama: Path, tmp_path: Path) -> None:
    other = vllm_checkpoint("llama", tmp_path / "other", seed=1)
    rows = prompts(9, 30)
    engine.load(llama)
    steer(engine, mixed())
    before = told(engine, rows)
    engine.ask({"call": "reload_weights", "args": [None, str(other)]})
    engine.reset_prefix_cache()
    assert agreement(engine, load_model(other), mixed(), rows).greatest_difference < ALLOWED
    engine.ask({"call": "reload_weights", "args": [None, str(llama)]})
    engine.reset_prefix_cache()
    assert told(engine, rows) == before
    assert engine.call("persona_weights")[0]["not_finite"] == []


def test_broken_weights_are_found_and_taken_back(engine: Engine, llama: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(llama, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][4] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    rows = prompts(9)
    engine.load(llama)
    steer(engine, mixed())
    before = told(engine, rows)
    engine.ask({"call": "reload_weights", "args": [None, str(broken)]})
    assert engine.call("persona_weights")[0]["not_finite"] == ["model.norm.weight"]
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(PersonaError):
        engine.ask({"call": "reload_weights", "args": [None, str(broken)]})
    engine.ask({"call": "reload_weights", "args": [None, str(llama)]})
    engine.reset_prefix_cache()
    assert told(engine, rows) == before


def test_adapters(engine: Engine, llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(3)
    adapted = get_peft_model(load_model(llama), LoraConfig(r=8, target_modules=["q_proj", "down_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = PeftModel.from_pretrained(load_model(llama), tmp_path / "adapter").merge_and_unload()
    engine.load(llama, enable_lora=True, max_lora_rank=8)
    rows = prompts(11, 11)
    everywhere = [injection(0, "all"), injection(2, "all")]
    steer(engine, everywhere)
    with torch.inference_mode(), steered(merged, everywhere):
        expected = merged(torch.tensor(rows)).logits.log_softmax(-1)[:, :-1]
    found = engine.all_log_probabilities(torch.tensor(rows), lora=tmp_path / "adapter")
    # An adapter is applied beside the weights, not added to them first.
    assert float((found - expected[..., : found.shape[-1]]).abs().max()) < 5 * ALLOWED
    steer(engine, mixed())
    with steered(merged, mixed()):
        replies = [list(row.reply) for row in rows_of(merged, rows)]
    assert engine.generate(rows, REPLY_TOKENS, lora=tmp_path / "adapter") == replies
    base = load_model(llama)
    with torch.inference_mode(), steered(base, everywhere):
        without = base(torch.tensor(rows)).logits.log_softmax(-1)[:, :-1]
    assert float((without - expected).abs().max()) > 0.1  # the adapter is no small thing
    with steered(base, mixed()):
        unadapted = [list(row.reply) for row in rows_of(base, rows)]
    assert engine.generate(rows, REPLY_TOKENS) == unadapted


def test_what_does_not_fit_is_refused(engine: Engine, llama: Path) -> None:
    engine.load(llama)
    with pytest.raises(PersonaError, match="4 layers of width 64; the model has 3 of width 64"):
        steer(engine, [], layers=4)
    with pytest.raises(PersonaError, match="cannot be used"):
        engine.call("persona_set_steering", base64.b64encode(b"nothing").decode())
    for number in range(7):
        steer(engine, [], f"slot-{number}")
    with pytest.raises(PersonaError, match="all slots are taken"):
        steer(engine, [], "one-more")
    engine.call("persona_clear_steering", "slot-3")
    assert "one-more" in steer(engine, [injection(0, "all")], "one-more")["slots"]


def test_an_export_is_steered_from_the_first_token_on(
    engine: Engine, vllm: VllmEnvironment, llama: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(llama, tmp_path / "v4")
    certificate = {
        "version": "v" * 64,
        "label": "v4",
        "base": "b" * 64,
        "personality": "p" * 64,
        "needs_plugin": ["candid@1 × 0.4"],
        "steering_file": STEERING_FILE,
        "serve_with": [],
    }
    (folder / CERTIFICATE).write_text(json.dumps(certificate))
    with pytest.raises(PersonaError, match="there is no file"):
        engine.load(folder)
    save(replace(table_of(mixed(), LAYERS, WIDTH), version="v" * 64), folder / STEERING_FILE)
    engine.load(folder)
    assert agreement(engine, load_model(llama), mixed(), prompts(9, 30)).greatest_difference < ALLOWED
    # A server for steering that is the same everywhere does not start on it, and takes what acts on all positions.
    with Engine(vllm, plugins=("persona",)) as everywhere:
        with pytest.raises(PersonaError, match="PERSONA_STEERING=positions"):
            everywhere.load(folder)
        items = [injection(0, "all"), injection(2, "all")]
        save(replace(table_of(items, LAYERS, WIDTH), version="v" * 64), folder / STEERING_FILE)
        everywhere.load(folder)
        assert agreement(everywhere, load_model(llama), items, prompts(9, 30)).greatest_difference < ALLOWED
        with pytest.raises(PersonaError, match="PERSONA_STEERING=positions"):
            steer(everywhere, mixed())


def compiled(vllm: VllmEnvironment, cache: Path, plugin: bool) -> Engine:
    variables = {"VLLM_CACHE_ROOT": str(cache), "PERSONA_STEERING": "positions"}
    return Engine(vllm, plugins=("persona",) if plugin else (), variables=variables)


def test_compiled_graphs_see_live_changes_and_are_not_mixed_up(
    vllm: VllmEnvironment, llama: Path, tmp_path: Path
) -> None:
    """The cache is filled without the plugin first; the second start with it uses what the first one compiled."""
    rows = prompts(9, 14, 30)
    model = load_model(llama)
    with compiled(vllm, tmp_path / "cache", plugin=False) as found:
        found.load(llama, enforce_eager=False)
        base = told(found, rows)
    artifacts = _artifacts(tmp_path / "cache")
    assert artifacts
    for start in range(2):
        with compiled(vllm, tmp_path / "cache", plugin=True) as found:
            found.load(llama, enforce_eager=False)
            assert compare(replace_margins(base), told(found, rows)).greatest_difference < ALLOWED
            for items in (mixed(), [injection(1, "all")], [], mixed()):
                steer(found, items)
                assert agreement(found, model, items, rows).greatest_difference < ALLOWED
        if start == 0:
            assert _artifacts(tmp_path / "cache") > artifacts
            artifacts = _artifacts(tmp_path / "cache")
    assert _artifacts(tmp_path / "cache") == artifacts


def replace_margins(rows: Sequence[Row]) -> Reference:
    return Reference(
        rows=tuple(row.model_copy(update={"margins": (1.0,) * len(row.greedy)}) for row in rows), bfloat16_loss=0
    )


def _artifacts(cache: Path) -> set[str]:
    """Folders of compiled graphs, by the hash that names them."""
    return {str(path.relative_to(cache)) for path in cache.rglob("rank_0_0")} | {
        str(path.parent.relative_to(cache)) for path in cache.rglob("model") if path.is_file()
    }
