"""A snapshot as a server takes it: the newest version with the vector in training, composed and written."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

from personality.builds.build import write_build
from personality.builds.certificate import Certificate
from personality.builds.reference import reference_of
from personality.builds.steering_part import Choice, SteeringPart, steering_part
from personality.builds.writer import DEFAULT_SHARD_BYTES
from personality.composition.composer import Composer
from personality.composition.opening import base_of, steering_of
from personality.environment import tool_versions
from personality.manifests.atomic import write_bytes
from personality.manifests.personality_record import Personality, Use
from personality.manifests.repository import Repository
from personality.manifests.transaction import now
from personality.manifests.vector_store import vector_kind
from personality.manifests.version import Version
from personality.serving.steering_table import STEERING_FILE, save
from personality.vectors.adapter import is_adapter, store_adapter
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.difference import store_difference
from personality.vectors.stored import StoredTask
from personality.vectors.task_vector import open_task_vector


@dataclass(frozen=True)
class Taken:
    """A state of a run on the disk, not yet composed.

    Attributes:
        label: such as `live:listening:step-20`.
        step: after which it was taken.
        weights: folder with the trained weights, or the adapter, as transformers and PEFT write them.
    """

    label: str
    step: int
    weights: Path


class SnapshotExport:
    """Makes exports of one run's snapshots.

    A snapshot is a version that nobody recorded: the head with one more use, of the vector that the run would give if
    it ended now. That vector is stored as a finished run's is, rounded and all, but in a place of its own.

    Args:
        repository: where.
        head: the version that the vector in training is added to.
        behavior: in training; a vector of it that the head uses gives way.
        scale: of the vector in training.
        folder: for what is needed meanwhile.
        steering: what becomes of the head's steering vectors.

    Raises:
        IncompatibleError: the head's steering vectors cannot be carried so.
        NotFoundError, CorruptError: base or vectors are missing or damaged.
    """

    def __init__(
        self, repository: Repository, head: Version, behavior: str, scale: float, folder: Path, steering: Choice
    ) -> None:
        self._repository = repository
        self._head = head
        self._behavior = behavior
        self._scale = scale
        self._choice = steering
        self._scratch = Repository(folder / "scratch")
        self._others: Personality = head.personality.without(behavior)
        self._base = base_of(repository)
        self._vectors = {
            use.vector: open_task_vector(repository, use.vector, use.label, base=self._base)
            for use in self._others.uses
            if use.scale != 0 and vector_kind(repository, use.vector, use.label) != "steering"
        }
        self._steering = steering_of(repository, self._others)
        self._number = 1 + max((item.number for item in repository.manifests() if item.behavior == behavior), default=0)
        # What cannot be carried is told before anything is trained.
        self._part(head, Composer(self._base, self._others, self._vectors, self._steering))

    def write(self, taken: Taken, path: Path) -> str:
        """Write an export with its certificate.

        Args:
            taken: the snapshot.
            path: the folder to make.

        Returns:
            Id of the version.

        Raises:
            PersonaError: when it cannot be composed or written; nothing is left behind.
        """
        try:
            stored = self._store(taken.weights)
            use = Use(behavior=self._behavior, number=self._number, vector=stored.id, scale=self._scale)
            version = Version.make(
                number=self._head.number + 1,
                parents=(self._head.id,),
                personality=self._others.with_use(use),
                message=taken.label,
                time=now(),
            )
            vectors = {
                **self._vectors,
                stored.id: open_task_vector(self._scratch, stored.id, use.label, base=self._base),
            }
            self._export(version, Composer(self._base, version.personality, vectors, self._steering), taken.label, path)
            return version.id
        finally:
            shutil.rmtree(self._scratch.root, ignore_errors=True)

    def _store(self, weights: Path) -> StoredTask:
        self._scratch.local.mkdir(parents=True, exist_ok=True)
        if is_adapter(weights):
            return store_adapter(self._scratch, self._base, weights)
        return store_difference(self._scratch, self._base, Checkpoint(weights), trained_here=True)

    def _part(self, version: Version, composer: Composer) -> SteeringPart:
        # Whether the head's vectors are proven was asked when it was exported.
        return steering_part(self._repository, version, composer, "vllm", self._choice, bake_unproven=True)

    def _export(self, version: Version, composer: Composer, label: str, path: Path) -> None:
        part = self._part(version, composer)
        steered = part.summary.uses if part.summary else ()
        labels = {item.label for item in composer.steering}
        uses = [str(use) for use in version.personality.uses if use.scale != 0 and use.label not in labels]
        if part.baked:
            uses += [f"{use}: baked by the route `{part.baked.plan.route}`" for use in steered]
        certificate = Certificate(
            version=version.id,
            label=label,
            base=version.personality.base.fingerprint,
            personality=version.personality.id,
            in_weights=tuple(uses),
            needs_plugin=steered if part.table else (),
            steering_file=STEERING_FILE if part.table else "",
            serve_with=part.serve_with,
            reference=reference_of(composer),
            not_verified=("nothing read the folder before the server did",),
            versions=tool_versions(),
        )

        def finish(folder: Path) -> None:
            if part.table is not None:
                save(dataclasses.replace(part.table, label=label), folder / STEERING_FILE)
            write_bytes(folder / Certificate.file_name, certificate.to_bytes())

        write_build(
            self._repository,
            version,
            path,
            shard_bytes=DEFAULT_SHARD_BYTES,
            on_progress=None,
            finish=finish,
            composer=composer,
            baked=part.baked,
            steering_file=certificate.steering_file,
        )
