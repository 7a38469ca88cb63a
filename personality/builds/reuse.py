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
from personality.manifests.atomic import sync, writing
from personality.manifests.digest_cache import remembered
from personality.manifests.tensor_file import TensorFile, TensorSpec, digest_file
from personality.vectors.checkpoint import Checkpoint

FILE_DIGEST = "file"
"""Under what a file's SHA-256 is remembered."""
_COPIED_BYTES = 1 << 22


class OtherBuild:
    """A finished build of another version on the same base, made in the same environment.

    Args:
        folder: where it lies.
        digests: SHA-256 by file name, from its record.
        cache: file of remembered digests.
        theirs: composes that version.
        ours: composes what is to be written.

    Attributes:
        common_bytes: size of the composed tensors that are the same in both.
        taken_bytes: how much was taken from it.

    Raises:
        PersonaError: when it cannot be read.
    """

    def __init__(self, folder: Path, digests: Mapping[str, str], cache: Path, theirs: Composer, ours: Composer) -> None:
        self._checkpoint = Checkpoint(folder)
        self._digests = digests
        self._cache = cache
        touched = {*theirs.touched, *ours.touched}
        # Single tensors that neither touches are as quickly copied from the base.
        self._copied = {name for name in touched if theirs.recipe_of(name) == ours.recipe_of(name)}
        self._same = self._copied | (ours.specs.keys() - touched)
        self._trusted: dict[Path, bool] = {}
        self.common_bytes = sum(ours.specs[name].nbytes for name in self._copied)
        self.taken_bytes = 0

    def take_shard(self, target: Path, specs: Sequence[TensorSpec]) -> str | None:
        """Put a whole shard in place when the other build has just that one: as a link, or else as a copy.

        Args:
            target: the new file.
            specs: its tensors, in order.

        Returns:
            Its SHA-256; None when it has to be written.

        Raises:
            PersonaError: when the disk is full.
        """
        if not all(spec.name in self._same for spec in specs):
            return None
        source = self._checkpoint.file_of(specs[0].name)
        if source.path.name != target.name or list(source.specs.values()) != list(specs) or not self._is_whole(source):
            return None
        try:
            os.link(source.path, target)
            sync(target.parent)
        except OSError:  # a file system without links
            try:
                opened = source.path.open("rb")
            except OSError:
                return None  # `gc` was faster
            with opened, writing(target, mode=0o444) as copy:
                shutil.copyfileobj(opened, copy, _COPIED_BYTES)
        self.taken_bytes += sum(spec.nbytes for spec in specs)
        return self._digests[target.name]

    def blocks_of(self, name: str) -> Iterator[memoryview] | None:
        """A tensor's bytes; None when it has to be composed."""
        if name not in self._copied:
            return None
        file = self._checkpoint.file_of(name)
        if not self._is_whole(file):
            return None
        self.taken_bytes += file.specs[name].nbytes
        return file.blocks_of(name)

    def _is_whole(self, file: TensorFile) -> bool:
        """Whether a shard of the other build is still what was written."""
        if file.path not in self._trusted:
            with contextlib.suppress(OSError):
                found = remembered(self._cache, FILE_DIGEST, [file.path], lambda: digest_file(file.path))
                self._trusted[file.path] = found == self._digests.get(file.path.name)
        return self._trusted.get(file.path, False)
