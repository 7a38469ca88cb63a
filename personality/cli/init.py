"""`persona init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from personality.cli.method import DensityOption, MethodOption, NormalizeOption, SeedOption, SettingOption
from personality.cli.options import DirectoryOption, JsonOption, enter, examples
from personality.cli.output import Output
from personality.manifests.errors import UsageError


@examples(
    "persona init --base Qwen/Qwen3-4B",
    "persona init --base ./models/llama --method ties",
    "persona init my-assistant --base Qwen/Qwen3-4B --revision main",
)
def init(
    base: Annotated[str, typer.Option(help="The pretrained model: a folder, or an id on the Hugging Face hub.")],
    directory: Annotated[Path, typer.Argument(help="Folder of the new repository.")] = Path(),
    revision: Annotated[str, typer.Option(help="Branch, tag or commit of a hub model.", show_default=False)] = "",
    method: MethodOption = "linear",
    density: DensityOption = None,
    normalize: NormalizeOption = None,
    seed: SeedOption = None,
    set_: SettingOption = None,
    as_json: JsonOption = False,
    in_directory: DirectoryOption = None,
) -> None:
    """Make a repository for personalities of one base. Its first version, v1, is the base alone."""
    from personality.cli.method import composition_from
    from personality.manifests.base_identity import BaseIdentity
    from personality.manifests.canonical import short
    from personality.manifests.personality_record import Composition
    from personality.manifests.repository import Repository
    from personality.vectors.base import TOKENIZER_FILES, fingerprint, locate
    from personality.vectors.checkpoint import Checkpoint
    from personality.vectors.quantization import check_not_quantized
    from personality.versions.changes import initialize
    from personality.versions.history import History

    enter(in_directory)
    out = Output("init", as_json=as_json)
    if revision and Path(base).expanduser().is_dir():
        raise UsageError(f"{base} is a folder, which has no revisions", "leave `--revision` out")
    root = directory.resolve()
    # What can be refused at once is refused before a large base is read.
    Repository.check_new(root)
    composition = composition_from(
        Composition(), method, density=density, normalize=normalize, seed=seed, settings=set_
    )
    # A relative base is meant relative to where the user stands, and kept relative to the repository if inside it.
    local = Path(base).expanduser()
    source = _relative(local.resolve(), root) if local.is_dir() else base
    folder, commit = locate(str(local.resolve()) if local.is_dir() else base, revision, Path.cwd())
    checkpoint = Checkpoint(folder)
    if method_named := check_not_quantized(checkpoint):
        out.warn(
            f"config.json of {folder} speaks of quantization ({method_named}), and none of its tensors is quantized: "
            "they are taken as they are"
        )
    out.note(f"reading {len(checkpoint.specs)} tensors of {folder}")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        out.warn(f"{folder} has no tokenizer: `train`, `ask` and `eval` need one, and exports will have none")
    found = fingerprint(checkpoint)
    identity = BaseIdentity(source=source, revision=commit or revision, fingerprint=found.id)
    repository = initialize(root, identity, composition, {})
    head = History(repository).head()

    def human() -> None:
        out.line(f"repository {root}", "bold")
        out.line(f"  base {source}, fingerprint {short(found.id)}, {len(checkpoint.specs)} tensors")
        out.line("  v1 is the base alone")
        out.note("next: `persona train NAME --data FILE --general FILE`, or `persona import NAME PATH`")

    out.result({"root": str(root), "base": identity.as_json(), "version": head.id, "label": "v1"}, human)


def _relative(folder: Path, root: Path) -> str:
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else str(folder)
