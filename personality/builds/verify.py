"""`verify`: is everything what its name says? Reads every byte, passes no cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from personality.baking.bake import bake
from personality.baking.weights import Weights
from personality.builds.build import BuildRecord
from personality.builds.comparison import greatest_ulps
from personality.composition.composer import Composer
from personality.composition.opening import base_of, composer_of
from personality.manifests.atomic import TEMPORARY_PREFIX
from personality.manifests.errors import IncompatibleError, NotFoundError, PersonaError
from personality.manifests.names import inside
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import digest_file
from personality.manifests.version import Version
from personality.vectors.checkpoint import Checkpoint, listing
from personality.vectors.dtypes import COMPOSABLE
from personality.vectors.kept_magnitudes import check_magnitudes
from personality.vectors.steering.steering_file import open_steering
from personality.vectors.task_vector import open_task_vector
from personality.vectors.tensors import matrix_shape, row_blocks
from personality.versions.history import History

_BLOCK_ELEMENTS = 1 << 20
TOLERANCE_ULPS = 1
"""A rebuild on another machine may differ by so many units in the last place of the base's dtype."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        what: its name.
        status: `ok`, `missing`, `corrupt` (not what its own record says), `different` (whole, but not this version),
            or `within-tolerance` (a rebuild that differs by last bits).
        detail: figures, or what is wrong.
        hint: the way out.
    """

    what: str
    status: str
    detail: str = ""
    hint: str = ""

    @property
    def good(self) -> bool:
        """Whether nothing needs doing."""
        return self.status in ("ok", "within-tolerance")


def verify_repository(repository: Repository) -> Iterator[Finding]:
    """Check base, versions, vectors and builds, one finding each."""
    yield _checked("base", lambda: f"{len(base_of(repository, reread=True).specs)} tensors")
    yield _checked("versions", lambda: f"{len(History(repository).versions)} versions, ids and parents agree")
    yield _checked("operation log", lambda: f"{len(repository.operations())} operations")
    try:
        manifests = repository.manifests()
    except PersonaError as error:
        yield Finding("manifests", "corrupt", error.message, error.hint)
        manifests = []
    try:
        versions = repository.versions()
    except PersonaError:
        versions = {}  # said above
    base = None  # if it is not what it should be, that was said above
    with contextlib.suppress(PersonaError):
        base = base_of(repository)
    for manifest in manifests:

        def read(vector: str = manifest.id, label: str = manifest.label) -> str:
            found = open_task_vector(repository, vector, label, reread=True, base=base)
            if base is not None:  # without which the rows of some encodings cannot be read
                check_magnitudes(found, label)
            return f"{len(found.specs)} tensors"

        def read_directions(vector: str = manifest.id, label: str = manifest.label) -> str:
            return f"{len(open_steering(repository, vector, label, reread=True).tensors)} directions"

        yield _checked(manifest.label, read_directions if manifest.kind == "steering" else read)
    known = {manifest.id for manifest in manifests}
    for version in versions.values():
        for use in version.personality.uses:
            if use.vector not in known:
                yield Finding(
                    version.label,
                    "missing",
                    f"it uses {use.label}, whose manifest is gone",
                    "restore it: `git checkout -- manifests`",
                )
    for tag, target in repository.tags().items():
        if versions and target not in versions:
            yield Finding(
                f"tag {tag}",
                "missing",
                f"it points at {target[:12]}, which is gone",
                "restore `versions/`, or tag anew",
            )
    for folder in sorted((repository.local / "builds").glob("*")):
        if not folder.name.startswith(TEMPORARY_PREFIX):
            yield check_files(folder, f"build {folder.name}")


def _weights_of(composer: Composer, folder: Path) -> Weights:
    """What a folder of a version should hold; with steering baked in when it says so."""
    if composer.steering and (folder / BuildRecord.file_name).is_file():
        record = BuildRecord.read(folder / BuildRecord.file_name)
        if record.steering and record.steering.baked:
            return bake(composer, composer.steering, composer.layer_dtype, record.steering.route)
    return composer


def _same_bytes(weights: Weights, found: Checkpoint, name: str) -> bool:
    """Whether a folder's tensor is the composed one, byte for byte."""
    data = found.bytes_of(name)
    start = 0
    for block in weights.blocks_of(name):
        if block != data[start : start + len(block)]:
            return False
        start += len(block)
    return start == len(data)


def _ulps(weights: Weights, found: Checkpoint, name: str) -> int:
    """Greatest distance of a folder's tensor from the composed one, in units in the last place, block by block."""
    spec = weights.specs[name]
    if spec.dtype not in COMPOSABLE:
        return TOLERANCE_ULPS + 1
    shape = matrix_shape(spec.shape)
    wanted, other = weights.tensor(name).reshape(shape), found.tensor(name).reshape(shape)
    return max(
        greatest_ulps(wanted[start:stop], other[start:stop]) for start, stop in row_blocks(spec, _BLOCK_ELEMENTS)
    )


def _checked(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", check())
    except NotFoundError as error:
        return Finding(what, "missing", error.message, error.hint)
    except PersonaError as error:
        return Finding(what, "corrupt", error.message, error.hint)


def check_files(folder: Path, what: str) -> Finding:
    """Compare a written checkpoint with the digests that it carries."""
    try:
        record = BuildRecord.read(folder / BuildRecord.file_name)
    except PersonaError as error:
        return Finding(what, "corrupt", error.message, "build it again: `persona build VERSION --again`")
    for name, expected in sorted(record.files.items()):
        path = inside(folder, name)
        if not path.is_file():
            return Finding(what, "corrupt", f"{name} is missing", "build or export it again")
        if digest_file(path) != expected:
            return Finding(what, "corrupt", f"{name} is not what was written", "build or export it again")
    return Finding(what, "ok", f"{len(record.files)} files as written")


def verify_folder(repository: Repository, version: Version, folder: Path) -> Finding:
    """Compare a model folder with a version, composed now, tensor by tensor.

    Returns:
        `corrupt` when its files are not what was written, `ok` when every bit agrees, `within-tolerance` when
        last bits differ, `different` otherwise.
    """
    what = str(folder)
    if not folder.is_dir():
        hint = f"make it: `persona build {version.label}`, or give an export's folder"
        return Finding(what, "missing", "there is no such folder", hint)
    if (folder / BuildRecord.file_name).is_file():
        files = check_files(folder, what)
        if files.status != "ok":
            return files
    try:
        found = Checkpoint(folder)
    except PersonaError as error:
        return Finding(what, "corrupt", error.message, error.hint)
    composer = composer_of(repository, version.personality)
    try:
        weights = _weights_of(composer, folder)
    except IncompatibleError as error:
        detail = f"steering vectors are baked in there, those of {version.label} cannot be: {error.message}"
        return Finding(what, "different", detail, "this is another version's folder")
    wanted = weights.specs
    missing = [name for name in wanted if name not in found.specs]
    extra = [name for name in found.specs if name not in wanted]
    if missing or extra:
        return Finding(what, "different", f"{listing(missing)} missing, {listing(extra)} too many", "export it again")
    worst, changed = 0, []
    for name, spec in wanted.items():
        other = found.specs[name]
        if (other.dtype, other.shape) != (spec.dtype, spec.shape):
            return Finding(what, "different", f"`{name}` is {other}, the version has {spec}", "export it again")
        # 0.0 and -0.0 are no units apart and yet not the same bits.
        if not _same_bytes(weights, found, name):
            changed.append(name)
            worst = max(worst, _ulps(weights, found, name))
    if not changed:
        left_out = "; its steering vectors are not in it" if weights is composer and composer.steering else ""
        return Finding(what, "ok", f"all {len(wanted)} tensors agree bit for bit with {version.label}{left_out}")
    detail = f"{listing(changed)} differ by up to {worst} units in the last place"
    if worst <= TOLERANCE_ULPS:
        return Finding(what, "within-tolerance", f"rebuilt elsewhere: {detail}")
    return Finding(what, "different", detail, f"this is another version, or was edited; export {version.label} again")
