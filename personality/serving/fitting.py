"""Whether an export can take the place of what a server has loaded, asked before anything is touched."""

from __future__ import annotations

from pathlib import Path

from personality.builds.certificate import Certificate
from personality.manifests.errors import IncompatibleError
from personality.serving.plugin.exported_folder import ExportedFolder
from personality.serving.served import Served, certificate_in


def check_fits(folder: Path, certificate: Certificate, served: Served, previous: Path | None) -> None:
    """Refuse an export that a server cannot take.

    Args:
        folder: the export.
        certificate: its own.
        served: what the server says.
        previous: export of what serves now, where this machine sees one.

    Raises:
        IncompatibleError: another base; another configuration or other tensors, for which vLLM must be started anew; a
            version that needs the plugin, on a server without it; a server of which nothing is known.
        NotFoundError, CorruptError: when one of the folders is not whole.
    """
    if served.way == "none":
        raise IncompatibleError(
            "the server takes no versions: it has neither the plugin nor vLLM's development routes",
            f"start it with `persona serve {certificate.label}`; it can be switched from then on",
        )
    old = certificate_in(previous) if previous else None
    base = served.base or (old.base if old else "")
    if base and base != certificate.base:
        raise IncompatibleError(
            f"the server serves the base {base[:16]}, {certificate.label} is for the base {certificate.base[:16]}",
            "deploy to a server of that base, or start one: `persona serve VERSION --port …`; nothing was touched",
        )
    if certificate.needs_plugin and served.way != "plugin":
        raise IncompatibleError(
            f"{certificate.label} leaves {', '.join(certificate.needs_plugin)} to the plugin, which the server has not",
            "install this package beside vLLM and start the server with `persona serve`",
        )
    if previous is not None and old is not None:
        ExportedFolder(previous).check_successor(ExportedFolder(folder))
    elif served.way != "plugin" or not base:
        raise IncompatibleError(
            f"nothing is known of what the server serves: its folder {served.folder or '(which it does not tell)'} is "
            "no export that this machine can read",
            "start the server with `persona serve VERSION`, or from an export in a folder that both machines see",
        )
