"""Switching a running server from one folder to another: by the plugin, or by vLLM's own development routes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from personality.serving.client import Client, ServerError
from personality.serving.served import Way

LOADING_SECONDS = 1800.0
"""How long the weights of a large model may take to load."""


@dataclass(frozen=True)
class Target:
    """A folder to switch to.

    Attributes:
        folder: as the server's machine sees it.
        version: id of its version.
        label: its label.
    """

    folder: str
    version: str
    label: str


def switch(client: Client, way: Way, target: Target, back: Target | None, *, wait_s: float) -> None:
    """Switch a server; requests under way are finished on the version before, new ones wait.

    Args:
        client: of the server.
        way: how it can be switched.
        target: what to serve.
        back: what to load again when the target does not load; the plugin knows it itself.
        wait_s: how long requests under way may take, seconds.

    Raises:
        ServerError: when it failed; the server has then loaded `back` again, unless it died.
    """
    if way == "plugin":
        question = {"folder": target.folder, "wait_s": wait_s}
        client.ask("POST", "/persona/version", question, timeout=wait_s + LOADING_SECONDS)
        return
    _reload(client, target, back, wait_s)


def _reload(client: Client, target: Target, back: Target | None, wait_s: float) -> None:
    if client.ask("GET", "/is_paused").get("is_paused"):
        raise ServerError(
            f"{client.url} is paused: somebody else is switching it",
            f"wait for them; when there is nobody: `curl -X POST {client.url}/resume`",
            untouched=True,
        )
    try:
        client.ask("POST", "/pause", query={"mode": "wait", "clear_cache": "true"}, timeout=wait_s)
    except ServerError as error:
        _quietly_resume(client)
        error.untouched = True
        raise
    try:
        _load(client, target)
    except ServerError:
        if back is not None:
            _load_again(client, back)
        _quietly_resume(client)
        raise
    client.ask("POST", "/resume")


def _load(client: Client, target: Target) -> None:
    question = {"method": "reload_weights", "kwargs": {"weights_path": target.folder}}
    client.ask("POST", "/collective_rpc", question, timeout=LOADING_SECONDS)
    # Otherwise what was computed of a prompt's beginning by the old weights would be read by the new ones.
    if not client.ask("POST", "/reset_prefix_cache").get("success"):
        raise ServerError(f"{client.url} could not drop its prefix cache", "requests still hold it; try again")
    client.ask("POST", "/update_weight_version", {"new_version": target.version})


def _load_again(client: Client, back: Target) -> None:
    with contextlib.suppress(ServerError):  # whether it serves what it did is asked and told by who called
        _load(client, back)


def _quietly_resume(client: Client) -> None:
    with contextlib.suppress(ServerError):
        client.ask("POST", "/resume")
