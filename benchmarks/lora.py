"""Adding adapters up into one: PEFT's `add_weighted_adapter` and this program, against the exact sum of their products.

`python -m benchmarks.lora [--hidden 512 --layers 8 --rank 16] [--without-playground]`. Random adapters on a random
Llama, and adapters that the playground trains with `--lora`. The error is ‖found − Σ s_i ΔW_i‖ / ‖Σ s_i ΔW_i‖ over all
tensors.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.table import show
from personality.builds.lora_export import export_lora
from personality.composition.low_rank_sum import truncate_sum
from personality.making.training_job import TrainingJob
from personality.making.training_run import train_behavior
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.model import load_model, quiet_transformers
from personality.playground.repository import general_file, make_playground
from personality.vectors.training.settings import make_settings
from personality.versions import changes

SCALES = (0.8, 0.6, 0.5)
COLUMNS = ("", "rank", "relative error", "s")
_ROUNDS = 3


def layers_of(model: Any) -> dict[str, Any]:
    from peft.tuners.lora import Linear

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


def products(layer: Any, names: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
    """B (scaled) and A of each adapter that changes the layer."""
    return [
        (layer.lora_B[name].weight.data * (scale * layer.scaling[name]), layer.lora_A[name].weight.data)
        for name, scale in zip(names, SCALES, strict=False)
        if name in layer.lora_A
    ]


def error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    off = sum(float((found[name].double() - exact[name]).square().sum()) for name in exact)
    return float((off / sum(float(tensor.square().sum()) for tensor in exact.values())) ** 0.5)


def timed(work: Callable[[int], None]) -> float:
    seconds = []
    for turn in range(_ROUNDS):
        started = time.perf_counter()
        work(turn)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


@torch.no_grad()
def rows_of(model: Any, names: Sequence[str], rank: int) -> list[tuple[str, ...]]:
    """One row for each way of adding up the adapters that a PEFT model holds."""
    layers = layers_of(model)
    exact = {
        name: torch.stack([left.double() @ right.double() for left, right in products(layer, names)]).sum(0)
        for name, layer in layers.items()
    }
    rows = []
    scales = list(SCALES[: len(names)])
    for kind in ("linear", "ties", "svd", "cat"):
        more = {"density": 0.5} if kind == "ties" else {"svd_full_matrices": False} if kind == "svd" else {}

        def add(turn: int, kind: str = kind, more: dict[str, Any] = more) -> None:
            model.add_weighted_adapter(list(names), scales, f"{kind}{turn}", combination_type=kind, **more)

        seconds = timed(add)
        found = {name: layer.get_delta_weight(f"{kind}0") for name, layer in layers.items()}
        rows.append(
            (f"PEFT `{kind}`", f"{model.peft_config[f'{kind}0'].r}", f"{error(found, exact):.2g}", f"{seconds:.2f}")
        )
        for turn in range(_ROUNDS):
            model.delete_adapter(f"{kind}{turn}")
    for limit in (rank, rank * len(names)):
        made: dict[str, Any] = {}

        def truncate(turn: int, limit: int = limit, made: dict[str, Any] = made) -> None:
            made.update({name: truncate_sum(products(layer, names), limit) for name, layer in layers.items()})

        seconds = timed(truncate)
        off = error({name: item.b.double() @ item.a.double() for name, item in made.items()}, exact)
        rows.append(("this program", f"{limit}", f"{off:.2g}", f"{seconds:.2f}"))
    return rows


def random_adapters(hidden: int, layers: int, rank: int) -> Any:
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4,
    )  # fmt: skip
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, init_lora_weights=False)
    model = get_peft_model(transformers.LlamaForCausalLM(config), lora, adapter_name="0")
    for index in range(1, len(SCALES)):
        model.add_adapter(str(index), lora)
    return model


def trained_adapters(root: Path, rank: int) -> tuple[Any, list[str]]:
    """Three behaviors trained with `--lora` on the playground, each exported by itself."""
    from peft import PeftModel

    repository: Repository = make_playground(root / "play", probe_rows=12).repository
    names = ["listening", "warm", "concise"]
    model = None
    for behavior in names:
        job = TrainingJob(
            behavior=behavior,
            data=repository.root / f"data/{behavior}.jsonl",
            general=repository.root / general_file(behavior),
            settings=make_settings(lora_rank=rank, batch_size=6, max_length=256),
            probe_rows=0,
        )
        train_behavior(repository, job)
        version = changes.add(repository, VectorLabel(behavior), 1.0).version
        folder = root / behavior
        export_lora(repository, version, folder)
        changes.remove(repository, behavior)
        if model is None:
            model = PeftModel.from_pretrained(load_model(repository.root / "base"), str(folder), adapter_name=behavior)
        else:
            model.load_adapter(str(folder), adapter_name=behavior)
    return model, names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--without-playground", action="store_true")
    options = parser.parse_args()
    quiet_transformers()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = random_adapters(options.hidden, options.layers, options.rank)
        title = f"Three random adapters of rank {options.rank}, {len(layers_of(model))} tensors, width {options.hidden}"
        show(title, COLUMNS, rows_of(model, ["0", "1", "2"], options.rank))
        if not options.without_playground:
            model, names = trained_adapters(root, 8)
            show("Three adapters of rank 8, trained on the playground", COLUMNS, rows_of(model, names, 8))


if __name__ == "__main__":
    main()
