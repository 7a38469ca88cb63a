"""An exported version's folder as the server reads it: whose it is, what steers it, and whether it fits in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError
from personality.manifests.tensor_file import TensorFile
from personality.serving.steering_table import SteeringTable, load

CERTIFICATE = "persona-certificate.json"
BUILD_RECORD = "persona-build.json"
CERTIFICATE_KEYS = ("version", "label", "base", "personality", "steering_file", "needs_plugin", "serve_with")
"""What is read of a certificate: the class that writes it is not to be had inside vLLM."""
_INDEX = "model.safetensors.index.json"
_WHEREABOUTS = ("_name_or_path", "transformers_version")
_AGAIN = "export the version again: `persona export VERSION --to vllm FOLDER`"


class ExportedFolder:
    """A folder on the server's disk.

    Args:
        path: the folder. One without certificate is any model: `certificate` is None, nothing steers it.

    Raises:
        CorruptError: when a certificate is there and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.certificate: dict[str, Any] | None = None
        file = path / CERTIFICATE
        if file.is_file():
            self.certificate = _object(file)
            missing = [key for key in CERTIFICATE_KEYS if key not in self.certificate]
            if missing:
                raise CorruptError(f"{file} has no `{'`, `'.join(missing)}`", _AGAIN)

    def __getitem__(self, key: str) -> str:
        """A text of the certificate; empty without one."""
        return str(self.certificate[key]) if self.certificate else ""

    def steering(self) -> SteeringTable | None:
        """What the plugin adds; None when nothing is left to it.

        Raises:
            CorruptError: when the certificate names a file that is not there or not whole, or none for what it leaves
                to the plugin, or the file is another version's.
        """
        name = self["steering_file"]
        if not name:
            if self.certificate and self.certificate["needs_plugin"]:
                uses = ", ".join(self.certificate["needs_plugin"])
                raise CorruptError(f"{self.path} leaves {uses} to the plugin, and names no steering file", _AGAIN)
            return None
        if Path(name).name != name:
            raise CorruptError(f"{self.path} names the steering file {name!r}, which is outside of it", _AGAIN)
        try:
            found = load(self.path / name)
        except NotFoundError as error:
            raise CorruptError(error.message, _AGAIN) from None
        if found.version != self["version"]:
            raise CorruptError(
                f"{self.path / name} is of the version {found.version[:12] or 'none'}, the folder of "
                f"{self['version'][:12]}",
                _AGAIN,
            )
        return found

    def tensors(self) -> dict[str, str]:
        """Dtype and shape of every tensor by name, from the headers of the weights files.

        Raises:
            NotFoundError: when there are no weights.
            CorruptError: when a file is not whole, or the index names others than there are.
        """
        found: dict[str, str] = {}
        for file in self._files():
            found |= {spec.name: str(spec) for spec in TensorFile(file).specs.values()}
        index = self.path / _INDEX
        if index.is_file() and set(_object(index)["weight_map"]) != set(found):
            raise CorruptError(f"{index} and the files that it names hold other tensors", _AGAIN)
        return found

    def check_finite(self) -> None:
        """Read all weights, one tensor at a time, and check that no number is infinite or none.

        Engines pack what they load in ways that cannot be looked through afterwards.

        Raises:
            CorruptError: with the names of tensors that have such numbers.
        """
        from safetensors import safe_open

        bad = []
        for file in self._files():
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                    tensor = tensors.get_tensor(name)
                    # Smaller floats are quantized ones: not all of them can be compared.
                    if tensor.is_floating_point() and tensor.element_size() > 1 and not bool(tensor.isfinite().all()):
                        bad.append(name)
        if bad:
            raise CorruptError(f"{len(bad)} tensors of {self.path} are not finite: `{'`, `'.join(bad[:3])}`", _AGAIN)

    def _files(self) -> list[Path]:
        index = self.path / _INDEX
        names = sorted(set(_object(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
        if any(Path(name).name != name for name in names):
            raise CorruptError(f"{index} names files outside of the folder", _AGAIN)
        return [self.path / name for name in names]

    def weights(self) -> dict[str, str] | None:
        """SHA-256 of the weights files by name, as the build record tells; None when it does not."""
        file = self.path / BUILD_RECORD
        files = _object(file).get("files") if file.is_file() else None
        if not isinstance(files, dict):
            return None
        return {name: str(digest) for name, digest in files.items() if name.endswith(".safetensors")} or None

    def config(self) -> dict[str, Any]:
        """The model's configuration, less what tells where it came from."""
        found = _object(self.path / "config.json")
        return {key: value for key, value in found.items() if key not in _WHEREABOUTS}

    def check_successor(self, other: ExportedFolder) -> None:
        """Check that a server of this folder can go over to another without a restart.

        Raises:
            NotFoundError, CorruptError: when one of them is not whole.
            IncompatibleError: with what differs.
        """
        if not other.path.is_dir():
            raise NotFoundError(f"there is no folder {other.path} on the server's disk", "give a path that it can read")
        if self.certificate is None or other.certificate is None:
            bare = self.path if self.certificate is None else other.path
            raise IncompatibleError(f"{bare} has no {CERTIFICATE}: it tells no version and no base", _AGAIN)
        if self["base"] != other["base"]:
            raise IncompatibleError(
                f"{other.path} ({other['label']}) is made from the base {other['base'][:12]}, the server serves "
                f"{self['label']} of the base {self['base'][:12]}",
                "start another server for it",
            )
        if self.certificate["serve_with"] != other.certificate["serve_with"]:
            raise _needs_restart(other, f"it is served with {other.certificate['serve_with']}")
        here, there = self.config(), other.config()
        changed = sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
        if changed:
            raise _needs_restart(other, f"its configuration differs in `{'`, `'.join(changed)}`")
        mine, theirs = self.tensors(), other.tensors()
        names = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        if names:
            name = names[0]
            raise _needs_restart(
                other,
                f"{len(names)} tensors differ: `{name}` is {theirs.get(name, 'not there')}, the server has "
                f"{mine.get(name, 'none')}",
            )
        other.steering()


def _needs_restart(other: ExportedFolder, why: str) -> IncompatibleError:
    return IncompatibleError(
        f"the server cannot go over to {other['label']} while it runs: {why}",
        f"it needs a restart: stop the server and start it on {other.path}",
    )


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {file}", _AGAIN) from None
    except (OSError, ValueError) as error:
        raise CorruptError(f"{file} cannot be read: {error}", _AGAIN) from error
    if not isinstance(found, dict):
        raise CorruptError(f"{file} holds no JSON object", _AGAIN)
    return found
