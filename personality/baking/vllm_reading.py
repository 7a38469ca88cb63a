"""What vLLM does with a baked checkpoint, by route and architecture: as tried with vLLM 0.32.

vLLM has classes of its own for some architectures. For others it runs the class of transformers with its own layers
("Transformers backend"), by itself or with `--model-impl transformers`; that reads whatever transformers reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

How = Literal["own class", "backend", "asked", "dropped", "inexact", "not run"]
VERSION = "0.32"
ASK = ("--model-impl", "transformers")


@dataclass(frozen=True)
class Reading:
    """What becomes of baked vectors in vLLM.

    Attributes:
        how: `own class` and `backend`: it agrees with the model that hooks steer, without being told anything;
            `asked`: it does with `ASK`, and loses them without; `dropped`: it loses them without a word either way;
            `inexact`: it adds them, but does not compute this architecture as transformers does, steered or not;
            `not run`: it could not be tried.
        note: for the user; empty when there is nothing to say.
    """

    how: How
    note: str = ""

    @property
    def lost(self) -> bool:
        """Whether vLLM leaves the vectors out, whatever it is told."""
        return self.how == "dropped"

    @property
    def serve_with(self) -> tuple[str, ...]:
        """Arguments of `vllm serve` without which it leaves the vectors out."""
        return ASK if self.how == "asked" else ()


def _table(how: How, route: str, model_types: Iterable[str]) -> dict[tuple[str, str], How]:
    return {(route, model_type): how for model_type in model_types}


READINGS: dict[tuple[str, str], How] = {
    **_table("own class", "mlp-bias", ("granite", "granite_swa", "llama", "nemotron")),
    **_table("backend", "mlp-bias", ("arcee", "cwm", "helium", "jais2", "seed_oss", "smollm3")),
    **_table("asked", "mlp-bias", ("ernie4_5",)),
    **_table("dropped", "mlp-bias", ("minicpm3",)),
    **_table("inexact", "mlp-bias", ("doge",)),
    **_table("own class", "mlp-bias-for-vllm", ("mistral",)),
    **_table("own class", "existing-bias", ("gpt2", "gptj", "granite", "llama")),
    **_table("backend", "existing-bias", ("gpt_bigcode", "gpt_neox", "jais2", "phi", "starcoder2")),
    **_table("asked", "existing-bias", ("ernie4_5",)),
    **_table("inexact", "existing-bias", ("bloom",)),
    **_table("own class", "expert-bias", ("gpt_oss",)),
    **_table("own class", "relabeling", ("mistral", "qwen2")),
    **_table("own class", "swiglu-widening", ("gemma", "mistral", "qwen2", "qwen3", "qwen3_5_text")),
}
"""Everything else could not be tried: vLLM has no class for it, or its transformers does not know it."""
_NOTES: dict[How, str] = {
    "own class": f"vLLM {VERSION} was tried on a small model of this kind and agrees",
    "backend": f"vLLM {VERSION} was tried on a small model of this kind and agrees (it runs the class of transformers)",
    "asked": f"vLLM needs `{' '.join(ASK)}`: its own class leaves the vectors out without a word",
    "dropped": f"vLLM {VERSION} leaves the vectors out without a word",
    "inexact": f"vLLM {VERSION} adds the vectors, but its answers for this architecture differ from those of "
    "transformers, steered or not",
    "not run": f"vLLM {VERSION} could not be tried on this architecture: compare its answers with those of "
    "`persona ask`",
}


def reading_of(route: str, model_type: str) -> Reading:
    """What is known of vLLM for a route's checkpoints of an architecture."""
    how = READINGS.get((route, model_type), "not run")
    return Reading(how, _NOTES[how])
