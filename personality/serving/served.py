"""What a server says that it serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from personality.builds.certificate import Certificate
from personality.manifests.errors import PersonaError
from personality.serving.client import Client, ServedModel, ServerError
from personality.serving.server_state import ServerState

Way = Literal["plugin", "reload", "none"]
_UNSET = "default"  # what vLLM calls weights that nobody named


@dataclass(frozen=True)
class Served:
    """A server's own account; nothing of it is verified.

    Attributes:
        model: what `/v1/models` tells.
        way: how it can be switched: by the `plugin`, by vLLM's development routes (`reload`), or `none`.
        version: id of the version; empty when the server does not tell.
        label: its label; may be empty.
        base: the base's fingerprint; empty when the server does not tell.
        folder: model folder as the server's machine sees it; empty when that is not known.
        dtype: in which it computes; empty when it does not tell.
        steering: what the plugin adds; None for nothing, or without it.
        switching: whether it is being switched now.
        broken: why it answers nothing any more, in the plugin's words; empty when all is well.
        state: of the `persona serve` that supervises it, where that runs on this machine.
    """

    model: ServedModel
    way: Way
    version: str = ""
    label: str = ""
    base: str = ""
    folder: str = ""
    dtype: str = ""
    steering: dict[str, Any] | None = None
    switching: bool = False
    broken: str = ""
    state: ServerState | None = None

    @property
    def readable_folder(self) -> Path | None:
        """The folder, where this machine sees it too."""
        path = Path(self.folder) if self.folder else None
        return path if path and (path / Certificate.file_name).is_file() else None

    @property
    def name(self) -> str:
        """What to call the version for people."""
        return self.label or self.version[:16] or "an unknown version"


def what_serves(client: Client) -> Served:
    """Ask a server what it serves.

    Raises:
        ServerError: when it cannot be reached, or is no server of this kind.
    """
    model = client.model()
    state = ServerState.beside(Path(model.folder), client.url) if model.folder else None
    found = _of_plugin(client, model, state) or _of_stock(client, model, state)
    return found or _named_by_folder(Served(model, "none", folder=model.folder, dtype=state.dtype if state else ""))


def _of_plugin(client: Client, model: ServedModel, state: ServerState | None) -> Served | None:
    told = _if_there(client, "/persona/version")
    if not isinstance(told, dict) or "model_folder" not in told:
        return None
    return Served(
        model,
        "plugin",
        version=told.get("version") or "",
        label=told.get("label") or "",
        base=told.get("base") or "",
        folder=told.get("model_folder") or "",
        dtype=told.get("dtype") or (state.dtype if state else ""),
        steering=told.get("steering"),
        switching=bool(told.get("switching")),
        broken=told.get("broken") or "",
        state=state,
    )


def _of_stock(client: Client, model: ServedModel, state: ServerState | None) -> Served | None:
    told = _if_there(client, "/weight_info")
    if not isinstance(told, dict) or "weight_version" not in told:
        return None
    version = str(told["weight_version"])
    dtype = state.dtype if state else _dtype_of(client)
    started_with = Path(model.folder)
    if version == _UNSET:
        return _named_by_folder(Served(model, "reload", folder=model.folder, dtype=dtype, state=state))
    # The server tells the folder that it was started with; versions switched to later lie beside it, or the supervisor
    # knows.
    candidates = [Path(state.folder)] if state else []
    candidates += [started_with, started_with.parent / version[:16], started_with.parent / f"{version[:16]}-baked"]
    for folder in candidates:
        certificate = certificate_in(folder)
        if certificate and certificate.version == version:
            return _named_by_folder(Served(model, "reload", folder=str(folder), dtype=dtype, state=state))
    return Served(model, "reload", version=version, dtype=dtype, state=state)


def _named_by_folder(served: Served) -> Served:
    certificate = certificate_in(Path(served.folder)) if served.folder else None
    if certificate is None:
        return served
    return Served(
        served.model,
        served.way,
        version=certificate.version,
        label=certificate.label,
        base=certificate.base,
        folder=served.folder,
        dtype=served.dtype,
        state=served.state,
    )


def certificate_in(folder: Path) -> Certificate | None:
    """The certificate of a folder; None where there is no readable one."""
    try:
        return Certificate.read(folder / Certificate.file_name)
    except (PersonaError, OSError):
        return None


def _dtype_of(client: Client) -> str:
    try:
        told = client.ask("GET", "/server_info", query={"config_format": "json"})
        return str(told["vllm_config"]["model_config"]["dtype"]).removeprefix("torch.")
    except (ServerError, KeyError, TypeError):
        return ""


def _if_there(client: Client, path: str) -> Any:
    """The answer of a route that not every server has."""
    try:
        return client.ask("GET", path)
    except ServerError as error:
        if error.status in (404, 405):
            return None
        raise
