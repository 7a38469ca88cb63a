"""Where vLLM is installed: an environment of its own, since it holds transformers to older releases than this program.

This program never imports vLLM; it runs that environment's Python and `vllm` command.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from personality.manifests.errors import NotFoundError

VARIABLE = "PERSONA_VLLM"
_HINT = (
    "install it in an environment of its own (`python -m venv ENV`, `ENV/bin/pip install vllm`), then give that "
    f"folder: `--vllm ENV`, or `export {VARIABLE}=ENV`"
)


@dataclass(frozen=True)
class VllmEnvironment:
    """An environment that has vLLM.

    Attributes:
        python: its interpreter.
        command: its `vllm` command.
    """

    python: Path
    command: Path

    def __str__(self) -> str:
        return str(self.python.parent.parent)


def find_vllm(given: Path | None = None) -> VllmEnvironment:
    """The environment to use: the one given, else `PERSONA_VLLM`, else the one whose `vllm` is on the PATH, else ours.

    Args:
        given: an environment's folder, its Python, or its `vllm` command.

    Raises:
        NotFoundError: when there is none, or what was given is none.
    """
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is not None:
        found = _environment(named)
        if found is None:
            source = "" if given else f" ({VARIABLE})"
            raise NotFoundError(f"there is no vLLM in {named}{source}: no `bin/vllm` beside `bin/python`", _HINT)
        return found
    on_path = shutil.which("vllm")
    for candidate in ([Path(on_path)] if on_path else []) + [Path(sys.executable)]:
        found = _environment(candidate)
        if found is not None:
            return found
    raise NotFoundError("vLLM was not found: it is neither on the PATH nor in this environment", _HINT)


def _environment(path: Path) -> VllmEnvironment | None:
    # A link to an interpreter elsewhere is still this environment's: links are not followed.
    folder = path / "bin" if path.is_dir() else path.parent
    python, command = folder / "python", folder / "vllm"
    return VllmEnvironment(python.absolute(), command.absolute()) if python.exists() and command.exists() else None
