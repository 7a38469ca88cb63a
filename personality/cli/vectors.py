"""`persona vectors`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output, size
from personality.manifests.canonical import short

if TYPE_CHECKING:
    from personality.manifests.manifest import Manifest


@examples("persona vectors", "persona vectors -C ../assistant", "persona vectors --json")
def vectors(as_json: JsonOption = False, directory: DirectoryOption = None) -> None:
    """List the vectors of this repository."""
    from personality.versions.recipe import working_personality

    out = Output("vectors", as_json=as_json)
    repository = open_repository(directory)
    manifests = repository.manifests()
    in_use = {use.vector: use for use in working_personality(repository).uses}

    def human() -> None:
        if not manifests:
            out.note("no vectors yet: `persona train NAME --data FILE --general FILE`, or `persona import NAME PATH`")
            return
        rows = []
        for item in manifests:
            use = in_use.get(item.id)
            rows.append(
                (
                    item.label,
                    f"× {use.scale:g}" if use else "",
                    _made_by(item),
                    item.encoding,
                    size(item.bytes),
                    f"{item.residual.whole:.2g}" if item.residual is not None else "",
                    f"{item.norm:.3g}",
                    short(item.id),
                )
            )
        out.table(["vector", ">in use", "made by", "encoding", ">size", ">residual", ">norm", "id"], rows)

    out.result({"vectors": [item.as_json() for item in manifests]}, human)


def _made_by(item: Manifest) -> str:
    count = sum(data.examples for data in item.making.data if data.role == "behavior")
    if item.steering is not None:
        word = "proven" if item.steering.proven else "unproven"
        return f"{item.making.how}, {count} pairs, {word}" if count else f"{item.making.how}, {word}"
    return f"{item.making.how}, {count} examples" if count else f"{item.making.how} {item.making.source}"
