"""An exported folder in vLLM itself, held against what the version answers."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from personality.builds.certificate import Check
from personality.builds.reference import REPLY_TOKENS, Reference, Row, compare
from personality.manifests.errors import CorruptError, PersonaError
from personality.serving.engine import Engine, without_paths
from personality.serving.vllm_environment import VllmEnvironment
from personality.vectors.base import model_config

_FIND_PLUGIN = (
    "from importlib.metadata import entry_points; entry_points(group='vllm.general_plugins')['persona'].load()"
)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_BFLOAT16_ONLY = ("linear_attention", "recurrent", "mamba")
"""Layer types that vLLM computes in bfloat16 only (on a processor it refuses others)."""


def check_folder(
    folder: Path,
    reference: Reference,
    environment: VllmEnvironment,
    *,
    plugins: Sequence[str] = (),
    variables: dict[str, str] | None = None,
    serve_with: Sequence[str] = (),
    engine: Engine | None = None,
    what: str = "the version",
) -> Check:
    """Load a folder with vLLM and compare its answers with the reference's.

    It computes in float32, where two engines agree to 1e-4 nats, except for models that vLLM has in bfloat16 alone.

    Args:
        folder: the export.
        reference: what it should answer.
        environment: where vLLM is.
        plugins: of vLLM to load, by name; none is stock vLLM.
        variables: environment variables for them.
        serve_with: arguments of `vllm serve` that the folder needs, such as `--model-impl transformers`.
        engine: one that runs already, with these plugins; None to start one and end it.
        what: what is compared, for the record.

    Raises:
        CorruptError: when vLLM cannot load the folder, or its answers are others.
    """
    dtype = engine_dtype(folder)
    with contextlib.ExitStack() as stack:
        running = engine or stack.enter_context(Engine(environment, plugins=plugins, variables=variables))
        try:
            loaded = running.load(folder, dtype=dtype, **_options(folder), **_arguments(serve_with))
            rows = [
                Row(
                    prompt=prompt,
                    reply=tuple(found["reply"]),
                    log_probabilities=tuple(found["log_probabilities"]),
                    greedy=tuple(found["greedy"]),
                )
                for prompt, found in zip(
                    reference.prompts, running.answers(reference.prompts, REPLY_TOKENS), strict=True
                )
            ]
        except PersonaError as error:
            raise CorruptError(f"vLLM cannot run the exported folder: {error.message}", error.hint) from error
    same = compare(reference, rows)
    name = f"vLLM {loaded['vllm']}{' with the plugin' if plugins else ''}"
    allowed = reference.allowed(dtype)
    if not same.greatest_difference <= allowed:
        raise CorruptError(
            f"{name} does not answer as {what} does: log-probabilities differ by up to "
            f"{same.greatest_difference:.2g} nats (allowed in {dtype}: {allowed:.2g}), greedy tokens agree at "
            f"{same.greedy:.1%} of {same.positions} positions",
            "vLLM left a tensor out, found one missing, or computes this architecture otherwise than transformers; "
            f"nothing says which, so look at what is special in the base's config.json, or try another vLLM than that "
            f"in {environment}",
        )
    return Check(
        engine=name,
        what=what,
        dtype=dtype,
        greatest_difference=same.greatest_difference,
        greedy=same.greedy,
        positions=same.positions,
        allowed=allowed,
    )


def plugin_in(environment: VllmEnvironment) -> bool:
    """Whether an environment's vLLM would find this program's plugin."""
    asked = subprocess.run(
        [str(environment.python), "-P", "-c", _FIND_PLUGIN], capture_output=True, env=without_paths(), check=False
    )
    return asked.returncode == 0


def engine_dtype(folder: Path) -> str:
    """In which vLLM is to compute a folder's model: the most exact that it takes, `float32` or `bfloat16`."""
    config = model_config(folder)
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config
    kinds = text.get("layer_types") or text.get("layers_block_type") or ()
    return "bfloat16" if any(str(kind).startswith(_BFLOAT16_ONLY) for kind in kinds) else "float32"


def _options(folder: Path) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for asking by token ids."""
    found: dict[str, Any] = {}
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        found["skip_tokenizer_init"] = True
    if "vision_config" in model_config(folder):
        found["limit_mm_per_prompt"] = {"image": 0, "video": 0}
    return found


def _arguments(serve_with: Sequence[str]) -> dict[str, Any]:
    """Command-line arguments (`--name value` each) as those of `vllm.LLM`."""
    pairs: Iterator[str] = iter(serve_with)
    return {name.removeprefix("--").replace("-", "_"): value for name, value in zip(pairs, pairs, strict=True)}
