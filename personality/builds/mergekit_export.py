"""`export --to mergekit`: the recipe of a version as a YAML for mergekit, with the models that it merges."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version as installed
from pathlib import Path

import torch
from torch import Tensor

from personality.builds.export_folder import ExportRecord, check_free, digests_of, write_record
from personality.builds.mergekit_recipe import base_reference, check_carried, description, recipe_of
from personality.builds.new_folder import new_folder
from personality.builds.writer import DEFAULT_SHARD_BYTES, Progress, write_checkpoint
from personality.composition.composer import Composer
from personality.composition.opening import composer_of
from personality.manifests.atomic import write_bytes
from personality.manifests.errors import CorruptError, IncompatibleError, PersonaError
from personality.manifests.personality_record import Composition, Personality, Use
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import TensorSpec
from personality.manifests.version import Version
from personality.vectors.checkpoint import Checkpoint, listing
from personality.vectors.tensors import tensor_bytes
from personality.versions.history import History

TARGET = "mergekit"
RECIPE = "mergekit.yaml"
_UNDECIDED = 0.05
"""Greatest share of elements that may differ where a method keeps or elects: where magnitudes are equal or sums cancel,
the two programs decide otherwise (docs/composition.md); bfloat16 vectors have many equal magnitudes."""


@dataclass(frozen=True)
class MergeAgreement:
    """What mergekit made of the recipe, beside our composition.

    Attributes:
        mergekit: its version.
        elements: compared.
        equal: share of them with the same bits.
        outside: share that is apart by more than one unit in the last place and a millionth of the tensor's largest.
        greatest_difference: of two elements.
    """

    mergekit: str
    elements: int
    equal: float
    outside: float
    greatest_difference: float


@dataclass(frozen=True)
class MergekitExport:
    """A finished recipe.

    Attributes:
        path: its folder.
        models: folder of each use's model, relative to `path`, by the use as text.
        agreement: of mergekit's merge with the version.
        left_out: steering uses that it has nothing of, as text.
        run: the command that merges.
    """

    path: Path
    models: dict[str, str]
    agreement: MergeAgreement
    left_out: tuple[str, ...]
    run: str

    def as_json(self) -> dict[str, object]:
        """The export's facts as JSON data."""
        return {
            "path": str(self.path),
            "recipe": RECIPE,
            "models": self.models,
            "agreement": asdict(self.agreement),
            "left_out": list(self.left_out),
            "run": self.run,
        }


class _Tuned:
    """The base with one vector at scale 1, as mergekit wants its models: what is changed is float32, so that taking the
    base away again gives the vector back; the rest is the base's own.

    Args:
        composer: of that vector alone.
    """

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        self._touched = set(composer.touched)
        self.folder = composer.folder
        self.specs = {
            name: TensorSpec(name, "F32", spec.shape) if name in self._touched else spec
            for name, spec in composer.specs.items()
        }

    def tensor(self, name: str) -> Tensor:
        """A tensor."""
        base = self._composer.base.tensor(name)
        return base.float() + self._composer.delta(name) if name in self._touched else base

    def blocks_of(self, name: str) -> Iterator[memoryview]:
        """A tensor's bytes, piece by piece."""
        return iter([tensor_bytes(self.tensor(name))]) if name in self._touched else self._composer.blocks_of(name)


def export_mergekit(
    repository: Repository,
    version: Version,
    path: Path,
    *,
    force: bool = False,
    without_steering: bool = False,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    on_progress: Callable[[Progress], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> MergekitExport:
    """Write a recipe for mergekit and one model for each vector, run mergekit on it, and compare with the version.

    A layer range lies in the model: outside it, that model is the base.

    Args:
        repository: where.
        version: what to export.
        path: the folder to make.
        force: replace an earlier recipe at that path.
        without_steering: leave steering vectors out, which is not how the version answers.
        shard_bytes: greatest size of a weights file.
        on_progress: told of every tensor.
        on_stage: told what is being done.

    Raises:
        IncompatibleError: when mergekit has no such recipe, would lose tensors of the base, or the version steers.
        CorruptError, PersonaError: when mergekit fails, or does not make the version; then nothing is kept.
    """
    told = on_stage or (lambda stage: None)
    check_free(path, TARGET, force=force)
    label = History(repository).label(version)
    composer = composer_of(repository, version.personality)
    steering = {item.label for item in composer.steering}
    if steering and not without_steering:
        raise IncompatibleError(
            f"mergekit merges weights, and {label} also steers ({', '.join(sorted(steering))})",
            "train the behavior into the weights (`persona promote`), or leave it out: `--without-steering`",
        )
    # mergekit adds in the order of its models; ours is that of the vectors' ids.
    active = [use for use in version.personality.uses if use.scale != 0 and use.label not in steering]
    uses = sorted(active, key=lambda use: use.vector)
    if not uses:
        raise IncompatibleError(f"{label} changes no weights: there is nothing to merge", "use the base itself")
    recipe = recipe_of(composer.composition, uses)
    dtype = check_carried(composer)
    base = version.personality.base
    reference = base_reference(base.source, base.revision, composer.folder)
    models = {str(use): f"models/{use.behavior}-{use.number}" for use in uses}
    with new_folder(path) as folder:
        for use in uses:
            told(f"writing the model of {use.label}")
            target = folder / models[str(use)]
            target.mkdir(parents=True)
            alone = composer_of(repository, _alone(version.personality, use))
            write_checkpoint(_Tuned(alone), target, shard_bytes=shard_bytes, on_progress=on_progress)
        data = description(recipe, reference, [f"./{models[str(use)]}" for use in uses], dtype)
        write_bytes(folder / RECIPE, _yaml(data, label).encode())
        told("running mergekit and comparing")
        agreement = _merge_and_compare(composer.without_steering(), folder, decides=recipe.decides)
        record = ExportRecord(
            target=TARGET,
            version=version.id,
            personality=version.personality.id,
            base=base.fingerprint,
            facts=asdict(agreement),
            files=digests_of(folder),
        )
        write_record(folder, record)
    return MergekitExport(path, models, agreement, tuple(sorted(steering)), f"cd {path} && mergekit-yaml {RECIPE} OUT")


def _alone(personality: Personality, use: Use) -> Personality:
    """One use at scale 1, in its layers."""
    return Personality(
        base=personality.base, composition=Composition(), uses=(use.model_copy(update={"scale": 1.0, "density": None}),)
    )


def _yaml(data: dict[str, object], label: str) -> str:
    from mergekit.config import MergeConfiguration

    text: str = MergeConfiguration.model_validate(data).to_yaml()
    return f"# {label}; run in this folder: mergekit-yaml {RECIPE} OUT\n{text}\n"


def _merge_and_compare(composer: Composer, folder: Path, *, decides: bool) -> MergeAgreement:
    """Run mergekit on the folder as a user would, and compare every tensor of the result."""
    number = installed("mergekit")
    out = folder / "merged"
    command = [sys.executable, "-m", "mergekit.scripts.run_yaml", RECIPE, out.name, "--no-copy-tokenizer"]
    done = subprocess.run(
        [*command, "--quiet", "--no-write-model-card"], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise PersonaError(f"mergekit {number} fails on the recipe: {last}", "nothing was kept; use `--to vllm`")
    merged = Checkpoint(out)
    ours, theirs = ({spec.name: str(spec) for spec in item.specs.values()} for item in (composer, merged))
    if ours != theirs:
        differing = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
        raise _another_model(number, f"{listing(differing)} are missing, new or of another dtype or shape")
    found = _compared(composer, merged, number)
    shutil.rmtree(out)
    if found.outside > (_UNDECIDED if decides else 0):
        raise _another_model(
            number, f"{found.outside:.2%} of the elements differ, by up to {found.greatest_difference:.2g}"
        )
    return found


def _another_model(number: str, what: str) -> CorruptError:
    return CorruptError(
        f"mergekit {number} makes another model of the recipe than this version: {what}",
        "nothing was kept; export the weights themselves: `--to vllm`",
    )


def _compared(composer: Composer, merged: Checkpoint, number: str) -> MergeAgreement:
    elements = equal = outside = 0
    greatest = 0.0
    for name in composer.specs:
        ours, theirs = composer.tensor(name), merged.tensor(name)
        first, second = ours.double(), theirs.double()
        apart = (first - second).abs()
        larger = torch.maximum(first.abs(), second.abs())
        # A unit in the last place is at most eps times the value; what float32 sums lose goes with the tensor's size.
        bound = larger * torch.finfo(ours.dtype).eps + 1e-6 * float(larger.max()) if larger.numel() else larger
        elements += ours.numel()
        equal += int((first == second).sum())
        outside += int((apart > bound).sum())
        greatest = max(greatest, float(apart.max()) if apart.numel() else 0.0)
    return MergeAgreement(number, elements, equal / max(1, elements), outside / max(1, elements), greatest)
