"""Models in memory: the base for training, and any version composed without writing a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from personality.composition.composer import Composer
from personality.manifests.errors import IncompatibleError
from personality.vectors.steering.hooks import attach

_TINY = 10_000_000  # parameters


def device() -> str:
    """`cuda` when there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def read_config(folder: Path) -> Any:
    """A model folder's configuration.

    Raises:
        IncompatibleError: when this transformers does not know the architecture.
    """
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, OSError) as error:
        raise IncompatibleError(
            f"transformers {transformers.__version__} cannot read the configuration in {folder}: {error}",
            "a newer architecture may need a newer transformers: `pip install -U transformers`",
        ) from error


def model_class(config: Any) -> Any:
    """The class that wrote the checkpoint, so that its keys are the model's own.

    Raises:
        IncompatibleError: when transformers has no such class.
    """
    import transformers

    names = getattr(config, "architectures", None) or []
    for name in names:
        found = getattr(transformers, name, None)
        if found is not None:
            return found
    try:
        return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise IncompatibleError(
            f"transformers {transformers.__version__} has no class for {', '.join(names) or type(config).__name__}",
            "a newer architecture may need a newer transformers: `pip install -U transformers`",
        ) from None


def load_tokenizer(folder: Path) -> Any:
    """A model folder's tokenizer.

    Raises:
        IncompatibleError: when there is none.
    """
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder))
    except (ValueError, OSError, KeyError) as error:
        raise IncompatibleError(
            f"there is no usable tokenizer in {folder}: {error}",
            "put the model's tokenizer files into that folder",
        ) from error


def load_model(folder: Path) -> Any:
    """A checkpoint folder as a float32 model in evaluation mode on the CPU or GPU."""
    quiet_transformers()
    config = read_config(folder)
    with _loading(folder):
        model = model_class(config).from_pretrained(str(folder), config=config, dtype=torch.float32)
    return model.to(device()).eval()


def load_composed(composer: Composer, dtype: torch.dtype = torch.float32) -> Any:
    """The composed version as a model in evaluation mode, weights and steering together; nothing is written to disk.

    The weights, and what steering vectors add, are rounded to the base's dtype first, as a checkpoint holds them.

    Args:
        composer: of the version.
        dtype: in which the model computes.

    Raises:
        IncompatibleError: when the model class lacks some of the weights.
    """
    quiet_transformers()
    folder = composer.base.folder
    config = read_config(folder)
    # Copies: a tensor that nothing changes is the memory-mapped base itself, and models are trained in place.
    weights = {name: composer.tensor(name).to(dtype, copy=True) for name in composer.base.specs}
    with _loading(folder):
        model, info = model_class(config).from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
        )
    tied = {"lm_head.weight"} if getattr(config, "tie_word_embeddings", False) else set()
    missing = set(info["missing_keys"]) - tied
    if missing:
        raise IncompatibleError(
            f"{folder} has no weights for {len(missing)} parameters of its model, such as `{sorted(missing)[0]}`",
            "the checkpoint is incomplete: fetch it again",
        )
    # from_pretrained reads the defaults of generation from a folder only.
    if model.can_generate() and (folder / "generation_config.json").is_file():
        import transformers

        model.generation_config = transformers.GenerationConfig.from_pretrained(str(folder))
    model = model.to(device()).eval()
    attach(model, composer.steering, rounding=composer.layer_dtype)
    return model


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Turn transformers' many ways of refusing weights into one error."""
    try:
        yield
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        raise IncompatibleError(
            f"transformers cannot load the weights in {folder} with its config.json: {str(error).splitlines()[0]}",
            "config.json and weights must belong together; fetch the model again",
        ) from error


@contextlib.contextmanager
def threads_for(model: Any) -> Iterator[None]:
    """Run the block with one thread when the model is tiny: its operations are shorter than waking a second thread."""
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in model.parameters()) < _TINY:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def quiet_transformers() -> None:
    """Keep transformers' bars and remarks off the terminal; errors still raise."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
