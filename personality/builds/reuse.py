"""What a build can take over from another version's: shards and tensors that have the same recipe, hence the same bits.

Nothing is derived from the other build. Every tensor follows from the base and its own recipe; where that recipe is the
same in both versions, so are the bytes (`Composer.recipe_of`), and a file is shared or copied instead of made again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from personality.composition.composer import Composer
from personality.manifests.atomic import sync
from personality.manifests.digest_cache import remembered
from personality.manifests.errors import PersonaError
from personality.manifests.tensor_file import TensorFile, TensorSpec, digest_file

FILE_DIGEST = "file"
"""Under what a file's SHA-256 is remembered."""


class OtherBuild:
    """A finished build of another version on the same base, made in the same environment.

    Args:
        folder: where it lies.
        digests: SHA-256 by file name, from its record.
        cache: file of remembered digests.
        theirs: composes that version.
        ours: composes what is to be written.
    """

    def __init__(self, folder: Path, digests: Mapping[str, str], cache: Path, theirs: Composer, ours: Composer) -> None:
        self._folder = folder
        self._digests = digests
        self._cache = cache
        touched = {*theirs.touched, *ours.touched}
        # What neither touches is as quickly copied from the base; it only counts for whole shards.
        self._copied = {name for name in touched if theirs.recipe_of(name) == ours.recipe_of(name)}
        self._same = self._copied | (ours.specs.keys() - touched)
        self._files: dict[str, TensorFile] = {}
        self.taken_bytes = 0

    @property
    def tensors(self) -> list[str]:
        """Composed tensors that are the same in both."""
        return sorted(self._copied)

    def take_shard(self, target: Path, specs: Sequence[TensorSpec]) -> str | None:
        """Put a whole shard in place when the other build has just that one: as a link, or else as a copy.

        Args:
            target: the new file.
            specs: its tensors, in order.

        Returns:
            Its SHA-256; None when it has to be written.
        """
        source = self._folder / target.name
        if not all(spec.name in self._same for spec in specs) or not any(spec.name in self._copied for spec in specs):
            return None
        file = self._open(target.name)
        if file is None or list(file.specs.values()) != list(specs):
            return None
        try:
            os.link(source, target)
        except OSError:  # a file system without links
            shutil.copyfile(source, target)
            sync(target)
        sync(target.parent)
        self.taken_bytes += sum(spec.nbytes for spec in specs)
        return self._digests[target.name]

    def blocks_of(self, name: str, shard: str) -> Iterator[memoryview] | None:
        """A tensor's bytes; None when the other build does not have them in a shard of this name."""
        if name not in self._copied:
            return None
        file = self._open(shard)
        if file is None or name not in file.specs:
            return None
        self.taken_bytes += file.specs[name].nbytes
        return file.blocks_of(name)

    def _open(self, shard: str) -> TensorFile | None:
        """A shard of the other build, if it is still what was written."""
        path = self._folder / shard
        if shard not in self._files and shard in self._digests:
            with contextlib.suppress(PersonaError, OSError):
                found = remembered(self._cache, FILE_DIGEST, [path], lambda: digest_file(path))
                if found == self._digests[shard]:
                    self._files[shard] = TensorFile(path)
        return self._files.get(shard)
