"""What `persona serve` settles before vLLM is started: the address, the environment, the export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from personality.composition.opening import composer_of
from personality.manifests.errors import UsageError
from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.serving.exports import export_for_server, exports_folder
from personality.serving.served import certificate_in
from personality.serving.server_state import ServerState
from personality.serving.steering_table import load
from personality.serving.vllm_environment import find_vllm
from personality.serving.vllm_server import LOCAL_HOSTS, ServerOptions, check_port, has_plugin

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ServingPlan:
    """What to start.

    Attributes:
        options: of vLLM.
        folder: the export.
        exports: folder for the server's record and log.
        warnings: what a user should know first.
    """

    options: ServerOptions
    folder: Path
    exports: Path
    warnings: tuple[str, ...]


def prepare(
    repository: Repository,
    version: Version,
    *,
    host: str,
    port: int,
    vllm: Path | None,
    dtype: str | None,
    max_length: int | None,
    positions: bool,
    plugin: bool,
    bake_unproven: bool,
    extra: tuple[str, ...],
    on_stage: Callable[[str], None],
) -> ServingPlan:
    """Settle all that a server needs, cheapest first: nothing is built for a port that is taken.

    Args:
        repository: where.
        version: what to serve.
        host, port: to listen at.
        vllm: its environment; None to look for it.
        dtype: in which to compute; None for the base's.
        max_length: of prompt and reply, tokens; None for the model's own.
        positions: steer by where a token is, even when this version does not.
        plugin: load the plugin where it is installed.
        bake_unproven: bake steering vectors too that nobody proved, without the plugin.
        extra: more arguments of `vllm serve`.
        on_stage: told what is being done.

    Raises:
        PersonaError: when the port is taken, vLLM is not there, or the version cannot be exported.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"`{dtype}` is no dtype to serve in", f"one of {', '.join(DTYPES)}")
    exports = exports_folder(repository)
    own = ServerState.running(exports, port)
    if own is not None:
        raise UsageError(
            f"`persona serve` (process {own.pid}) serves {own.label} at {own.url} already",
            f"`persona deploy {version.label} --server {own.url}` switches it; another port: `--port {port + 1}`",
        )
    check_port(host, port)
    environment = find_vllm(vllm)
    warnings = []
    if plugin and not has_plugin(environment):
        plugin = False
        warnings.append(
            f"this package is not installed in {environment}: serving stock vLLM, with steering in the weights where "
            "that is exact, and its development routes for deploys"
        )
    if host not in LOCAL_HOSTS:
        warnings.append(
            f"whoever reaches {host}:{port} and has no need of a key, or has it, can switch the version; give "
            "`-- --api-key KEY`, and put a proxy before it that passes `/v1` only"
            if plugin
            else f"whoever reaches {host}:{port} can call any method of vLLM's workers: its development routes are on, "
            "and no key guards them; put a proxy before it that passes `/v1` only"
        )
    folder, _ = export_for_server(repository, version, plugin=plugin, bake_unproven=bake_unproven, on_stage=on_stage)
    certificate = certificate_in(folder)
    table = load(folder / certificate.steering_file) if certificate and certificate.steering_file else None
    options = ServerOptions(
        environment,
        host=host,
        port=port,
        dtype=dtype or str(composer_of(repository, version.personality).layer_dtype).removeprefix("torch."),
        max_length=max_length,
        plugin=plugin,
        positions=plugin and (positions or (table is not None and table.positional)),
        extra=extra,
    )
    return ServingPlan(options, folder, exports, tuple(warnings))
