"""A personality as a recipe of mergekit's, and which of the base's tensors mergekit would carry through."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from personality.composition.composer import Composer
from personality.manifests.composition_methods import METHODS
from personality.manifests.errors import IncompatibleError
from personality.manifests.personality_record import Composition, Use
from personality.vectors.checkpoint import Checkpoint, listing

_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True)
class Recipe:
    """What mergekit is told.

    Attributes:
        method: its name for it.
        shared: parameters of the merge.
        each: parameters of each model, in the order of the uses.
        decides: whether elements are kept or dropped by comparisons, which roundings can turn.
    """

    method: str
    shared: dict[str, Any]
    each: tuple[dict[str, float], ...]
    decides: bool = False


def recipe_of(composition: Composition, uses: Sequence[Use]) -> Recipe:
    """The recipe that gives what this program composes.

    Args:
        composition: the personality's.
        uses: those that take part, at other scales than 0.

    Raises:
        IncompatibleError: when mergekit has no such recipe.
    """
    scales = tuple(use.scale for use in uses)
    weights = tuple({"weight": scale} for scale in scales)
    if composition.method == "linear":
        return Recipe("task_arithmetic", {"normalize": False, "lambda": 1.0}, weights)
    if composition.method == "ties":
        return _ties(composition, uses)
    settings = composition.parameters
    if composition.method in ("breadcrumbs", "breadcrumbs_ties"):
        divided = settings["normalize"] == "weighted"
        if divided:
            _check_positive(scales, f"persona method {composition.method} --normalize sum")
        each = tuple(
            {"weight": use.scale, "gamma": settings["gamma"], "density": _density(use, settings["density"])}
            for use in uses
        )
        shared = {"normalize": divided, "rescale": settings["rescale"], "lambda": settings["lambda"]}
        return Recipe(composition.method, shared, each, decides=True)
    if composition.method == "slerp":
        return Recipe("slerp", {"t": scales[0]}, tuple({} for _ in uses))
    if composition.method in ("nearswap", "sce", "ram", "ramplus_tl", "model_stock"):
        if set(scales) != {1.0}:
            raise IncompatibleError(
                f"mergekit's `{composition.method}` has no weights; the scales are "
                f"{', '.join(f'{scale:g}' for scale in scales)}",
                f"use scale 1, or {_WAY_OUT}",
            )
        return Recipe(composition.method, dict(settings), tuple({} for _ in uses), decides=True)
    raise IncompatibleError(f"mergekit has no recipe for this version: {_why_not(composition)}", _WAY_OUT)


_WAY_OUT = "export the weights: `--to vllm`"


def _why_not(composition: Composition) -> str:
    if composition.method in ("tsv_merge", "iso_c"):
        return f"it has no `{composition.method}`"
    if METHODS[composition.method].random:
        return f"`{composition.method}` draws at random, and mergekit's numbers are not those of the seed"
    return f"a scale means another thing to its `{composition.method}` (docs/composition.md)"


def _density(use: Use, otherwise: float) -> float:
    return otherwise if use.density is None else use.density


def _check_positive(scales: Sequence[float], instead: str) -> None:
    if min(scales) < 0:
        raise IncompatibleError(
            "`--normalize weighted` divides by the sizes of the scales; mergekit divides by the scales themselves, "
            "which turns the sign of a negative one",
            f"use positive scales, or `{instead}`; or {_WAY_OUT}",
        )


def _ties(composition: Composition, uses: Sequence[Use]) -> Recipe:
    scales = tuple(use.scale for use in uses)
    densities = tuple(_density(use, composition.density) for use in uses)
    if composition.trim_scope == "vector" and min(densities) < 1:
        raise IncompatibleError(
            "this version trims each vector as a whole (`--trim-scope vector`), mergekit every tensor by itself",
            "compose per tensor: `persona method ties --trim-scope tensor`, which is another version; or export the "
            "weights: `--to vllm`",
        )
    divided, lam, weights = composition.normalize != "sum", composition.lam, scales
    if composition.normalize == "weighted":
        _check_positive(scales, "persona method ties --normalize sum")
    elif composition.normalize == "mean":
        if len(set(scales)) > 1:
            raise IncompatibleError(
                "`--normalize mean` divides by the number of vectors that agree; mergekit can do that for equal scales "
                f"only, here they are {', '.join(f'{scale:g}' for scale in scales)}",
                "give all behaviors one scale, or `persona method ties --normalize sum`, or export with `--to vllm`",
            )
        # Weights of 1 make mergekit's divisor the number of those that agree; the common scale goes into its factor.
        lam, weights = composition.lam * scales[0], tuple(1.0 for _ in uses)
    each = tuple({"weight": weight, "density": density} for weight, density in zip(weights, densities, strict=True))
    return Recipe("ties", {"normalize": divided, "lambda": lam}, each, decides=True)


def description(recipe: Recipe, base: str, models: Sequence[str], dtype: str) -> dict[str, Any]:
    """What mergekit reads, as data.

    Args:
        recipe: how to merge.
        base: folder or model id.
        models: folder of each use.
        dtype: of the result, safetensors' name; sums are float32.
    """
    return {
        "merge_method": recipe.method,
        "base_model": base,
        "dtype": "float32",
        "out_dtype": _DTYPES[dtype],
        "parameters": recipe.shared,
        "models": [
            {"model": model, **({"parameters": each} if each else {})}
            for model, each in zip(models, recipe.each, strict=True)
        ],
    }


def check_carried(composer: Composer) -> str:
    """Have mergekit plan the base, and make sure that no tensor would be lost, renamed or rounded.

    Args:
        composer: of the version.

    Returns:
        The dtype that all of the base's tensors have.

    Raises:
        IncompatibleError: otherwise.
    """
    way_out = "export the weights themselves: `--to vllm` or `--to hf` keep every tensor"
    name = f"mergekit {version('mergekit')}"
    dtypes: dict[str, list[str]] = {}
    for tensor, spec in composer.specs.items():
        dtypes.setdefault(spec.dtype, []).append(tensor)
    usual = max(dtypes, key=lambda dtype: len(dtypes[dtype]))
    other = [tensor for dtype, tensors in dtypes.items() if dtype != usual for tensor in tensors]
    if other or usual not in _DTYPES:
        shown = f"{listing(other)} of another dtype than {usual}" if other else f"tensors in {usual}"
        raise IncompatibleError(f"{name} writes all tensors in one 16- or 32-bit dtype; the base has {shown}", way_out)
    planned = _planned(composer.base, name, way_out)
    lost = [tensor for tensor in composer.specs if tensor not in planned]
    made = [tensor for tensor in planned if tensor not in composer.specs]
    if lost or made:
        more = f", and would write {listing(made)} that the base does not have" if made else ""
        raise IncompatibleError(
            f"{name} would drop {listing(lost)} of the base's {len(composer.specs)} without a word{more}", way_out
        )
    return usual


def _planned(base: Checkpoint, name: str, way_out: str) -> list[str]:
    """The tensors that mergekit would write for a merge on this base; nothing is merged."""
    from mergekit.architecture import get_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache, SaveTensor
    from mergekit.options import MergeOptions
    from mergekit.plan import MergePlanner

    reference = {"model": {"path": str(base.folder)}}
    options = MergeOptions(quiet=True)
    with _silence():
        try:
            config = MergeConfiguration.model_validate(
                {"merge_method": "linear", "models": [{"model": reference, "parameters": {"weight": 1.0}}]}
            )
            (model,) = config.referenced_models()
            architecture = get_architecture_info(config, options)
            tasks = MergePlanner(config, architecture, options, model.config()).plan_to_disk("nowhere")
        except Exception as error:  # whatever it stumbles over, it cannot merge this base
            raise IncompatibleError(f"{name} cannot plan a merge of this base: {error}", way_out) from error
        finally:
            LoaderCache().loaders.clear()  # it would hold the files of a base that changes open and known
    return [task.tensor_name for task in tasks if isinstance(task, SaveTensor)]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep mergekit's remarks off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def base_reference(source: str, revision: str, folder: Path) -> str:
    """How mergekit finds the base: a model id with its commit, else the folder.

    Raises:
        IncompatibleError: for a folder whose name mergekit would take apart.
    """
    if revision:
        return f"{source}@{revision}"
    text = str(folder)
    if "@" in text or "+" in text:
        raise IncompatibleError(
            f"mergekit takes the `@` or `+` in {text} for a revision or an adapter", "move the base to another folder"
        )
    return text
