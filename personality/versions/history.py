"""The versions of a repository: their order, their names, and which one is the newest."""

from __future__ import annotations

from personality.manifests.errors import CorruptError, NotFoundError, PersonaError, UsageError
from personality.manifests.names import MIN_ID_PREFIX, did_you_mean, is_id_prefix, version_number
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.manifests.transaction import now
from personality.manifests.version import Version


class History:
    """All versions as they were when this was made.

    Raises:
        CorruptError: when a version's parent is missing.
    """

    def __init__(self, repository: Repository) -> None:
        self.versions = repository.versions()
        self.tags = repository.tags()
        parents = {parent for version in self.versions.values() for parent in version.parents}
        missing = sorted(parents - set(self.versions))
        if missing:
            raise CorruptError(
                f"a version's parent {missing[0]} is missing from versions/",
                "restore it: `git checkout -- versions`",
            )
        self.tips = [version for version in self.versions.values() if version.id not in parents]

    def head(self, working: Personality | None = None) -> Version:
        """The newest version. After a git merge there can be several; then the one that the files describe.

        Args:
            working: what the files describe now.

        Raises:
            PersonaError: when several tips are equally new and the files describe none of them alone.
        """
        self._first()
        if len(self.tips) == 1:
            return self.tips[0]
        matching = [tip for tip in self.tips if working is not None and tip.personality.id == working.id]
        if len(matching) == 1:
            return matching[0]
        names = ", ".join(f"`{self.label(tip)}`" for tip in self.tips)
        raise PersonaError(
            f"there are several newest versions: {names}",
            "set the files in behaviors/ as they should be, then `persona save -m …` records a version with all "
            "of them as parents",
        )

    def _first(self) -> Version:
        """The version that the history begins with.

        Raises:
            CorruptError: when there is no version at all.
        """
        for version in self.versions.values():
            if not version.parents:
                return version
        raise CorruptError("the repository has no version", "restore `versions/`: `git checkout -- versions`")

    def label(self, version: Version) -> str:
        """`v4`, or `v4:3f9c` when two branches both made a v4."""
        twins = [other for other in self.versions.values() if other.number == version.number]
        return version.label if len(twins) == 1 else f"{version.label}:{version.id[:MIN_ID_PREFIX]}"

    def tags_of(self, version: Version) -> list[str]:
        """Tags that point at a version."""
        return [tag for tag, target in self.tags.items() if target == version.id]

    def find(self, name: str) -> Version:
        """The version that a name means: `v4`, `v4:3f9c`, a tag, the beginning of an id, `base` or `head`.

        Raises:
            NotFoundError: when none does, naming what is near.
            UsageError: when several do.
        """
        if name == "head":
            return self.head()
        if name == "base":
            return self._first()
        if name in self.tags and self.tags[name] in self.versions:
            return self.versions[self.tags[name]]
        label, _, prefix = name.partition(":")
        number = version_number(label)
        if number is not None:
            found = [v for v in self.versions.values() if v.number == number and v.id.startswith(prefix)]
        elif is_id_prefix(name):
            found = [v for v in self.versions.values() if v.id.startswith(name)]
        else:
            found = []
        if len(found) == 1:
            return found[0]
        if found:
            choices = " and ".join(f"{v.label} ({v.id[:MIN_ID_PREFIX]})" for v in found)
            raise UsageError(
                f"`{name}` means {choices}", f"say which: `{found[0].label}:{found[0].id[:MIN_ID_PREFIX]}`"
            )
        known = [self.label(version) for version in self.versions.values()] + list(self.tags)
        raise NotFoundError(f"there is no version `{name}`", did_you_mean(name, known))

    def children(self, version_id: str) -> list[Version]:
        """Versions that have this one as a parent."""
        return [version for version in self.versions.values() if version_id in version.parents]

    def next(self, personality: Personality, message: str, parents: list[Version]) -> Version:
        """A new version on top of its parents; it is not written here."""
        return Version.make(
            number=1 + max((parent.number for parent in parents), default=0),
            parents=tuple(sorted(parent.id for parent in parents)),
            personality=personality,
            message=message,
            time=now(),
        )
