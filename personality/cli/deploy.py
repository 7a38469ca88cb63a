"""`persona deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, find_version, open_repository
from personality.cli.output import Output

ServerOption = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", help="Such as http://127.0.0.1:8000.", show_default=False),
]


@examples(
    "persona deploy v5 --server http://127.0.0.1:8000",
    "persona deploy v4",
    "persona deploy v5 --server http://gpu:8000 --vllm-folder /mnt/exports/v5",
)
def deploy(
    version: Annotated[str, typer.Argument(help="v4, a tag, or the beginning of an id.")],
    server: ServerOption = None,
    vllm_folder: Annotated[
        Path | None,
        typer.Option(help="The export's path as the server sees it, where that is another.", show_default=False),
    ] = None,
    wait: Annotated[float, typer.Option(min=0.0, help="Seconds that requests under way may take.")] = 30.0,
    bake_unproven: Annotated[
        bool, typer.Option("--bake-unproven", help="Without the plugin: bake steering vectors that are not proven too.")
    ] = False,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Switch a running server to a version, verify its answers, and switch back when they are not the version's.

    Without --server it is the one that `persona serve` runs from this repository.
    """
    from personality.serving.client import Client
    from personality.serving.deploying import deploy_version
    from personality.serving.server_state import server_url

    out = Output("deploy", as_json=as_json)
    repository = open_repository(directory)
    history, found = find_version(out, repository, version)
    result = deploy_version(
        repository,
        found,
        Client(server or server_url(repository.local / "serving")),
        seen_as=vllm_folder,
        wait_s=wait,
        bake_unproven=bake_unproven,
        on_stage=lambda stage: out.note(f"{stage}…"),
    )
    same, before = result.verification.agreement, result.before

    def human() -> None:
        out.line(f"{before.name} → {history.label(found)} in {result.seconds:.2f} s", "bold")
        out.line(f"  verified over HTTP: {result.verification}")
        if result.sharp is False:
            out.warn(
                f"{before.name} would pass too: in {result.verification.dtype or 'its dtype'} the two cannot be told "
                "apart by their answers"
            )
        if before.state is None:
            out.note("nobody on this machine supervises it: started again, it serves what it was started with")
        if before.version in history.versions:
            out.note(f"take it back: persona deploy {history.label(history.versions[before.version])}")

    data = {
        "version": found.id,
        "before": before.version,
        "way": before.way,
        "seconds": result.seconds,
        "greatest_difference": same.greatest_difference,
        "greedy": same.greedy,
        "allowed": result.verification.allowed,
        "dtype": result.verification.dtype,
        "sharp": result.sharp,
        "supervised": before.state is not None,
    }
    out.result(data, human)
