"""What besides the recipe can move a bit: the build fingerprint and the versions of the tools."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from personality import __version__
from personality.manifests.canonical import digest


def build_environment(device: str = "cpu") -> dict[str, str]:
    """What the bits of a build can depend on: torch, processor and device.

    On the same environment the same version gives byte-identical shards.
    """
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": device,
    }


def build_fingerprint(environment: dict[str, str]) -> str:
    """Digest of a build environment."""
    return digest(environment)


def tool_versions() -> dict[str, str]:
    """Versions that a manifest keeps, so that a vector can be made again."""
    return {
        "personality": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "safetensors")},
    }
