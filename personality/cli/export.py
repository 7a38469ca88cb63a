"""`persona export`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, find_version, open_repository
from personality.cli.output import Output, megabytes_per_second, percent, size
from personality.manifests.errors import UsageError

if TYPE_CHECKING:
    from personality.builds.certificate import Check
    from personality.making.exporting_vectors import VectorTarget
    from personality.manifests.repository import Repository


@examples(
    "persona export v4 --to vllm out/ --verify --vllm ~/vllm",
    "persona export stable --to hf out/ --shard-gb 2",
    "persona export v5 --to vllm out/ --steering plugin --force",
    "persona export candid@2 --to gguf-control-vector candid.gguf",
)
def export(
    version: Annotated[
        str, typer.Argument(help="v4, a tag, or the beginning of an id; for one vector its label, NAME@N.")
    ],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; for one vector, the file.")],
    to: Annotated[
        Literal["hf", "vllm", "gguf-control-vector", "safetensors-directions", "persona-vectors"],
        typer.Option(help="What will load it: a version (hf, vllm), or one steering vector."),
    ] = "hf",
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export in DIR.")] = False,
    steering: Annotated[
        Literal["bake", "plugin", "leave-out"] | None,
        typer.Option(help="Steering vectors: baked into the weights (unless told), left to the plugin, or left out."),
    ] = None,
    without_steering: Annotated[
        bool, typer.Option("--without-steering", help="The same as `--steering leave-out`.")
    ] = False,
    route: Annotated[str, typer.Option(help="Way of baking, by name; the first that fits unless told.")] = "",
    bake_unproven: Annotated[
        bool, typer.Option("--bake-unproven", help="Bake steering vectors too that are not proven as they are used.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Run vLLM on DIR; keep it only when it agrees.")] = False,
    vllm: Annotated[
        Path | None, typer.Option(metavar="ENV", help="Environment with vLLM, for `--verify`; else $PERSONA_VLLM.")
    ] = None,
    shard_gb: Annotated[
        float | None, typer.Option(min=0.000001, help="Greatest size of a weights file, in GB; 5 unless told.")
    ] = None,
    as_json: JsonOption = False,
    in_directory: DirectoryOption = None,
) -> None:
    """Write a version as a model folder, reload it, and compare it with the version composed in memory.

    One steering vector can also be written as directions in a file, for llama.cpp and repeng (gguf-control-vector), for
    persona_vectors, or whole (safetensors-directions).
    """
    from personality.builds.export import as_json as export_json
    from personality.builds.export import export as export_version
    from personality.builds.export import serve_command
    from personality.serving.vllm_environment import find_vllm

    out = Output("export", as_json=as_json)
    repository = open_repository(in_directory)
    if to != "hf" and to != "vllm":  # noqa: PLR1714  # a type checker sees what is left
        options = {
            "--steering": steering is not None,
            "--without-steering": without_steering,
            "--route": bool(route),
            "--bake-unproven": bake_unproven,
            "--verify": verify,
            "--vllm": vllm is not None,
            "--shard-gb": shard_gb is not None,
        }
        _check_vector(repository, version, to, [name for name, given in options.items() if given])
        _export_vector(out, repository, version, to, directory, force=force)
        return
    if "@" in version:
        raise UsageError(
            f"`{version}` is one vector, `--to {to}` writes a version",
            "give a version that uses it, or say what shall read the vector, such as `--to gguf-control-vector`",
        )
    if without_steering and steering not in (None, "leave-out"):
        raise UsageError(
            f"`--without-steering` and `--steering {steering}` exclude each other", "leave one of them out"
        )
    if vllm is not None and not verify:
        raise UsageError("`--vllm` names the vLLM that shall verify", "add `--verify`, or leave it out")
    environment = find_vllm(vllm) if verify else None
    history, found = find_version(out, repository, version)
    started = time.monotonic()
    with out.progress("export") as advance:
        result = export_version(
            repository,
            found,
            to,
            directory,
            force=force,
            steering="leave-out" if without_steering else steering or "bake",
            route=route or None,
            bake_unproven=bake_unproven,
            vllm=environment,
            shard_bytes=int((5.0 if shard_gb is None else shard_gb) * 1e9),
            on_progress=lambda p: advance(p.done, p.total, megabytes_per_second(started, p.done)),
            on_stage=lambda stage: advance(0, 1, stage),
        )

    def human() -> None:
        out.line(f"{history.label(found)} → {directory}", "bold")
        for check in result.certificate.checks:
            out.line(f"  {_check_line(check)}")
        if result.steering and result.certificate.left_out:
            out.warn(str(result.steering))
        elif result.steering:
            effect = f"; steering itself changes up to {result.baked.effect:.2g} nats" if result.baked else ""
            out.line(f"  {result.steering}{effect}")
        for note in result.notes:
            out.line(f"  {note}")
        if to == "vllm":
            out.note(f"next: persona serve {history.label(found)}, or {serve_command(result)}")

    out.result({"version": found.id, "target": to, **export_json(result)}, human)


def _check_line(check: Check) -> str:
    return (
        f"{check.engine}, {check.dtype}, beside {check.what} composed in memory: greatest |Δ log-probability| "
        f"{check.greatest_difference:.2g} nats, greedy tokens agree at {percent(check.greedy)} of {check.positions} "
        "positions"
    )


def _check_vector(repository: Repository, label: str, target: VectorTarget, options: list[str]) -> None:
    """Refuse what makes sense for versions only."""
    from personality.manifests.names import VectorLabel

    if options:
        raise UsageError(
            f"`{options[0]}` is for versions, `--to {target}` writes one steering vector", "leave the option out"
        )
    if "@" in label:
        return
    try:
        behavior = VectorLabel.parse(label).behavior
    except UsageError:
        known = False
    else:
        known = behavior not in repository.tags() or any(item.behavior == behavior for item in repository.manifests())
    if not known:
        raise UsageError(
            f"`{label}` is no vector, and `--to {target}` writes one steering vector",
            "give its label, NAME@N, such as `candid@2`: `persona vectors` lists them; a version is exported with "
            "`--to hf` or `--to vllm`",
        )


def _export_vector(
    out: Output, repository: Repository, label: str, target: VectorTarget, path: Path, *, force: bool
) -> None:
    """Write one steering vector as directions in a file."""
    from personality.making.exporting_vectors import export_vector
    from personality.manifests.names import VectorLabel
    from personality.vectors.steering.steering_vector import listed

    result = export_vector(repository, VectorLabel.parse(label), target, path, force=force)
    manifest = result.manifest

    def human() -> None:
        out.line(f"{manifest.label} → {path}", "bold")
        out.line(f"  directions of layers {listed(result.layers)}, {size(result.bytes)}, read back and equal")
        for note in result.notes:
            out.line(f"  {note}")

    data = {
        "vector": manifest.id,
        "label": manifest.label,
        "target": target,
        "file": str(path),
        "layers": list(result.layers),
        "bytes": result.bytes,
        "notes": list(result.notes),
    }
    out.result(data, human)
