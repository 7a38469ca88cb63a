"""One model in memory that takes on one personality after another; nothing is written to disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from personality.composition.composer import Composer
from personality.composition.opening import composer_of
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.model import load_composed, load_model, load_tokenizer
from personality.vectors.steering.hooks import steered


class ChangingModel:
    """The repository's base, loaded once, when it is needed first.

    From one personality to the next only the tensors are composed and put into the model whose recipe changes.
    Where the model's parameters are not the checkpoint's tensors (experts that a class stacks), it is loaded anew.

    Args:
        repository: where.
    """

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self._model: Any = None
        self._tokenizer: Any = None
        self._holds: dict[str, tuple[Any, ...]] = {}
        """The recipe of each tensor in the model; those that are not there are the base's."""

    @contextlib.contextmanager
    def taking(self, personality: Personality) -> Iterator[tuple[Any, Any]]:
        """The model as a personality, weights and steering, inside the block; and its tokenizer.

        Args:
            personality: any recipe on the repository's base; it need not be a version.

        Raises:
            IncompatibleError, NotFoundError, CorruptError: when it cannot be composed.
        """
        composer = self._composer(personality)
        if self._model is None:
            self._tokenizer = load_tokenizer(composer.base.folder)
            self._model = load_model(composer.base.folder)
        parameters = dict(self._model.named_parameters())
        if not _has_tensors(parameters, composer):
            yield load_composed(composer), self._tokenizer
            return
        self._put(composer, parameters)
        with steered(self._model, composer.steering, rounding=composer.layer_dtype):
            yield self._model, self._tokenizer

    def _put(self, composer: Composer, parameters: dict[str, Any]) -> None:
        """Make the model's weights the composer's."""
        for name in {**self._holds, **dict.fromkeys(composer.touched)}:
            recipe = composer.recipe_of(name)
            if recipe != self._holds.get(name, ()):
                self._holds[name] = _UNKNOWN  # until the whole tensor is there
                parameters[name].data.copy_(composer.tensor(name))
                self._holds[name] = recipe
        self._holds = {name: recipe for name, recipe in self._holds.items() if recipe}

    def _composer(self, personality: Personality) -> Composer:
        return composer_of(self.repository, personality)


_UNKNOWN = ("unknown",)


def _has_tensors(parameters: dict[str, Any], composer: Composer) -> bool:
    return all(
        name in parameters and tuple(parameters[name].shape) == composer.specs[name].shape for name in composer.touched
    )
