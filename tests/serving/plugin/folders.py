"""Small exported folders and tables for tests of the plugin."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from personality.serving.plugin.exported_folder import CERTIFICATE, ExportedFolder
from personality.serving.steering_table import STEERING_FILE, SteeringTable, save, table_of
from personality.vectors.steering.injection import Injection

LAYERS, WIDTH = 2, 4


def table(value: float, *, positional: bool = False) -> SteeringTable:
    """A table that adds one number after the first layer."""
    item = Injection(0, torch.full((WIDTH,), value), "decision" if positional else "all", "add", label="candid@1")
    return table_of([item], LAYERS, WIDTH)


def exported(
    path: Path,
    *,
    version: str = "v1",
    base: str = "b",
    steering: SteeringTable | None = None,
    weights: float = 0.0,
    **changes: object,
) -> ExportedFolder:
    """Write a folder with a certificate, two tensors and a build record.

    Args:
        path: where; it must not be there.
        version: its id and label.
        base: the base's fingerprint.
        steering: what is left to the plugin.
        weights: the number that the tensors are full of.
        changes: of the certificate.
    """
    path.mkdir()
    fields = {
        "version": version,
        "label": version,
        "base": base,
        "personality": "p",
        "needs_plugin": ["candid@1 × 1"] if steering else [],
        "steering_file": STEERING_FILE if steering else "",
        "serve_with": [],
    }
    (path / CERTIFICATE).write_text(json.dumps(fields | changes))
    (path / "config.json").write_text(json.dumps({"hidden_size": WIDTH, "_name_or_path": path.name}))
    save_file({"weight": torch.full((4, 4), weights), "bias": torch.full((4,), weights)}, path / "model.safetensors")
    (path / "persona-build.json").write_text(json.dumps({"files": {"model.safetensors": f"digest of {weights}"}}))
    if steering:
        save(replace(steering, version=version, label=version), path / STEERING_FILE)
    return ExportedFolder(path)
