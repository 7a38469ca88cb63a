"""`persona export`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from personality.cli.options import (
    DeviceOption,
    DirectoryOption,
    JsonOption,
    ThreadsOption,
    examples,
    find_version,
    open_repository,
)
from personality.cli.output import Output, megabytes_per_second, percent, size
from personality.manifests.errors import UsageError

if TYPE_CHECKING:
    from personality.builds.certificate import Check
    from personality.making.exporting_vectors import VectorTarget
    from personality.manifests.repository import Repository
    from personality.manifests.version import Version
    from personality.serving.vllm_environment import VllmEnvironment

_OF_VERSIONS = ("hf", "vllm", "lora", "mergekit")
_OPTIONS = {
    "--steering": ("hf", "vllm"),
    "--without-steering": _OF_VERSIONS,
    "--route": ("hf", "vllm"),
    "--bake-unproven": ("hf", "vllm"),
    "--verify": ("hf", "vllm", "lora"),
    "--vllm": ("hf", "vllm", "lora"),
    "--shard-gb": ("hf", "vllm", "mergekit"),
    "--rank": ("lora",),
    "--threads": ("hf", "vllm"),
    "--device": ("hf", "vllm"),
}
"""Which options mean something for which targets."""


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
        Literal["hf", "vllm", "lora", "mergekit", "gguf-control-vector", "safetensors-directions", "persona-vectors"],
        typer.Option(help="What will load it: a version (hf, vllm, lora, mergekit), or one steering vector."),
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
    rank: Annotated[
        int | None, typer.Option(min=1, help="Greatest rank of an adapter (lora); what is needed unless told.")
    ] = None,
    shard_gb: Annotated[
        float | None, typer.Option(min=0.000001, help="Greatest size of a weights file, in GB; 5 unless told.")
    ] = None,
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
    in_directory: DirectoryOption = None,
) -> None:
    """Write a version as a model folder, reload it, and compare it with the version composed in memory.

    One steering vector can also be written as directions in a file, for llama.cpp and repeng (gguf-control-vector), for
    persona_vectors, or whole (safetensors-directions).
    """
    from personality.cli.export_targets import export_adapter, export_recipe
    from personality.composition.engine import Engine

    out = Output("export", as_json=as_json)
    repository = open_repository(in_directory)
    given = {
        "--steering": steering is not None,
        "--without-steering": without_steering,
        "--route": bool(route),
        "--bake-unproven": bake_unproven,
        "--verify": verify,
        "--vllm": vllm is not None,
        "--shard-gb": shard_gb is not None,
        "--rank": rank is not None,
        "--threads": threads is not None,
        "--device": device != "cpu",
    }
    _check_options(to, [name for name, here in given.items() if here])
    if to not in _OF_VERSIONS:
        target = cast("VectorTarget", to)
        _check_vector(repository, version, target)
        _export_vector(out, repository, version, target, directory, force=force)
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
    shard_bytes = int((5.0 if shard_gb is None else shard_gb) * 1e9)
    environment = _environment(vllm, verify=verify)
    history, found = find_version(out, repository, version)
    label = history.label(found)
    if to == "lora":
        export_adapter(
            out,
            repository,
            found,
            directory,
            label=label,
            rank=rank,
            force=force,
            without_steering=without_steering,
            vllm=environment,
        )
    elif to == "mergekit":
        export_recipe(
            out,
            repository,
            found,
            directory,
            label=label,
            force=force,
            without_steering=without_steering,
            shard_bytes=shard_bytes,
        )
    else:
        _export_model(
            out,
            repository,
            found,
            directory,
            label=label,
            target=to,
            force=force,
            steering="leave-out" if without_steering else steering or "bake",
            route=route or None,
            bake_unproven=bake_unproven,
            vllm=environment,
            shard_bytes=shard_bytes,
            engine=Engine(device, threads),
        )


def _export_model(
    out: Output, repository: Repository, version: Version, path: Path, *, label: str, target: str, **options: Any
) -> None:
    """Write a version as a model folder."""
    from personality.builds.export import as_json, export, serve_command

    started = time.monotonic()
    with out.progress("export") as advance:
        result = export(
            repository,
            version,
            target,
            path,
            **options,
            on_progress=lambda p: advance(p.done, p.total, megabytes_per_second(started, p.done)),
            on_stage=lambda stage: advance(0, 1, stage),
        )

    def human() -> None:
        out.line(f"{label} → {path}", "bold")
        for check in result.certificate.checks:
            out.line(f"  {_check_line(check)}")
        if result.steering and result.certificate.left_out:
            out.warn(str(result.steering))
        elif result.steering:
            effect = f"; steering itself changes up to {result.baked.effect:.2g} nats" if result.baked else ""
            out.line(f"  {result.steering}{effect}")
        for note in result.notes:
            out.line(f"  {note}")
        if target == "vllm":
            out.note(f"next: persona serve {label}, or {serve_command(result)}")

    out.result({"version": version.id, "target": target, **as_json(result)}, human)


def _environment(vllm: Path | None, *, verify: bool) -> VllmEnvironment | None:
    """Where the vLLM is that shall verify; None for none."""
    from personality.serving.vllm_environment import find_vllm

    if vllm is not None and not verify:
        raise UsageError("`--vllm` names the vLLM that shall verify", "add `--verify`, or leave it out")
    return find_vllm(vllm) if verify else None


def _check_line(check: Check) -> str:
    return (
        f"{check.engine}, {check.dtype}, beside {check.what} composed in memory: greatest |Δ log-probability| "
        f"{check.greatest_difference:.2g} nats, greedy tokens agree at {percent(check.greedy)} of {check.positions} "
        "positions"
    )


def _check_options(target: str, given: list[str]) -> None:
    """Refuse options that mean nothing for a target."""
    foreign = [name for name in given if target not in _OPTIONS[name]]
    if foreign and target not in _OF_VERSIONS:
        raise UsageError(
            f"`{foreign[0]}` is for versions, `--to {target}` writes one steering vector", "leave the option out"
        )
    if foreign:
        targets = " and ".join(f"`--to {name}`" for name in _OPTIONS[foreign[0]])
        raise UsageError(f"`{foreign[0]}` is for {targets}, and this is `--to {target}`", "leave the option out")


def _check_vector(repository: Repository, label: str, target: VectorTarget) -> None:
    """Refuse what is no steering vector."""
    from personality.manifests.names import VectorLabel

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
