"""Writing the hand-editable files: what they must say to describe a personality."""

from __future__ import annotations

from personality.manifests import behavior_file, config
from personality.manifests.behavior_file import BehaviorFile
from personality.manifests.errors import CorruptError
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.versions.recipe import vector_label


def working_texts(repository: Repository, personality: Personality) -> dict[str, str | None]:
    """The hand-editable files so that they describe a personality; what already does is left as it is.

    Args:
        repository: where.
        personality: what they are to say.

    Returns:
        Text by path; None for a file that is to go.
    """
    texts: dict[str, str | None] = {}
    settings = repository.text(config.FILE_NAME) or ""
    if repository.config().composition.effective() != personality.composition.effective():
        texts[config.FILE_NAME] = config.with_composition(settings, personality.composition)
    for name in sorted({*repository.behavior_names(), *(use.behavior for use in personality.uses)}):
        path = f"behaviors/{name}.toml"
        text = _readable_text(repository, path)
        use = personality.use_of(name)
        if use is not None:
            texts[path] = behavior_file.with_use(text, use, vector_label(repository, use))
        elif text is not None and BehaviorFile.from_text(text, path).use is not None:
            texts[path] = behavior_file.without_use(text)
        elif text is not None:
            texts[path] = text
    return texts


def _readable_text(repository: Repository, path: str) -> str | None:
    """A behavior file's text; where it cannot be read, the last text that the operation log knows and that can.

    What is replaced so stays in the log: `undo` brings the unreadable text back too.
    """
    logged = [
        text
        for op in reversed(repository.operations())
        for c in op.changes
        if c.path == path
        for text in (c.after, c.before)
    ]
    for text in (repository.text(path), *logged):
        if text is None:
            continue
        try:
            BehaviorFile.from_text(text, path)
        except CorruptError:
            continue
        return text
    return None
