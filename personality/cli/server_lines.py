"""How `persona status --server` tells what a server serves."""

from __future__ import annotations

from pathlib import Path

from personality.cli.output import Output
from personality.manifests.errors import NotFoundError
from personality.manifests.repository import Repository

EXIT_OTHER = 3
_SOURCES = {
    "cache": "this repository's export",
    "computed": "this repository, computed now",
    "folder": "the certificate in the server's own folder",
}
_WAYS = {
    "plugin": "with the plugin",
    "reload": "stock vLLM, switched by its development routes",
    "none": "stock vLLM, cannot be switched",
}


def show_server(out: Output, url: str) -> int:
    """Ask a server, print what was found, and return the exit code."""
    from personality.serving.client import Client
    from personality.serving.server_status import server_status

    try:
        repository = Repository.discover(Path.cwd())
    except NotFoundError:
        repository = None
    client = Client(url)
    found = server_status(client, repository)
    served, verification = found.served, found.verification

    def human() -> None:
        out.line(f"{client.url} says it serves {found.label}", "bold")
        if served.version:
            out.line(f"  version      {served.version[:16]}")
        out.line(f"  folder       {served.folder or 'not told'}")
        steering = served.steering or {}
        beside = f"; steering beside the weights: {steering.get('label') or 'unnamed'}" if steering else ""
        out.line(f"  vLLM         {_WAYS[served.way]}{beside}; asked for as model `{served.model.name}`")
        if served.state is not None:
            out.line(f"  supervised   by process {served.state.pid}, started again {served.state.restarts} times")
        if served.switching:
            out.note("it is being switched right now")
        if verification is None:
            out.line(f"  not verified: {found.problem}", "yellow")
            return
        verdict = "it is what it claims" if verification.ok else f"IT IS NOT {found.label}"
        out.line(f"  {verdict}: {verification}", "" if verification.ok else "red")
        out.line(f"  compared with {_SOURCES[found.source or 'folder']}")
        if not verification.ok:
            out.note(f"put a version in its place: `persona deploy {found.label} --server {client.url}`")

    same = verification.agreement if verification else None
    data = {
        "url": client.url,
        "version": served.version or None,
        "label": found.label,
        "folder": served.folder or None,
        "way": served.way,
        "model": served.model.name,
        "steering": served.steering,
        "switching": served.switching,
        "supervisor": served.state.pid if served.state else None,
        "restarts": served.state.restarts if served.state else None,
        "verified": found.true,
        "greatest_difference": _finite(same.greatest_difference) if same else None,
        "greedy": same.greedy if same else None,
        "allowed": verification.allowed if verification else None,
        "source": found.source,
        "problem": found.problem,
    }
    out.result(data, human)
    return 0 if found.true else EXIT_OTHER


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None
