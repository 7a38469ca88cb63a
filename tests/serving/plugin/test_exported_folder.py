"""Exported folders as the server reads them: their steering, and which may follow which."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from personality.builds import writer
from personality.builds.certificate import Certificate
from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError
from personality.serving.plugin import exported_folder
from personality.serving.plugin.exported_folder import ExportedFolder
from personality.serving.steering_table import save
from tests.serving.plugin.folders import exported, table


def test_the_plugin_reads_what_the_certificate_writes() -> None:
    assert exported_folder.CERTIFICATE == writer.CERTIFICATE == Certificate.file_name
    assert exported_folder.BUILD_RECORD == writer.BUILD_RECORD
    assert set(exported_folder.CERTIFICATE_KEYS) <= set(Certificate.model_fields)


def test_a_folder_that_fits_and_folders_that_do_not(tmp_path: Path) -> None:
    served = exported(tmp_path / "served")
    served.check_successor(exported(tmp_path / "next", version="w"))
    with pytest.raises(IncompatibleError, match="made from the base c"):
        served.check_successor(exported(tmp_path / "foreign", base="c"))
    with pytest.raises(NotFoundError, match="no folder"):
        served.check_successor(ExportedFolder(tmp_path / "nowhere"))
    wider = exported(tmp_path / "wider")
    save_file({"weight": torch.ones(6, 4), "bias": torch.ones(4)}, wider.path / "model.safetensors")
    with pytest.raises(IncompatibleError, match=r"`weight` is F32 \[6, 4\], the server has F32 \[4, 4\]") as found:
        served.check_successor(wider)
    assert "restart" in found.value.hint
    other = exported(tmp_path / "other")
    (other.path / "config.json").write_text('{"hidden_size": 5}')
    with pytest.raises(IncompatibleError, match="`hidden_size`"):
        served.check_successor(other)
    with pytest.raises(IncompatibleError, match="served with"):
        served.check_successor(exported(tmp_path / "arguments", serve_with=["--model-impl", "transformers"]))
    short = exported(tmp_path / "short")
    (short.path / "model.safetensors").write_bytes((short.path / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(CorruptError, match="not a whole safetensors file"):
        served.check_successor(short)
    bare = exported(tmp_path / "bare")
    (bare.path / exported_folder.CERTIFICATE).unlink()
    with pytest.raises(IncompatibleError, match="tells no version"):
        served.check_successor(ExportedFolder(bare.path))


def test_the_steering_of_a_exported(tmp_path: Path) -> None:
    assert exported(tmp_path / "none").steering() is None
    with pytest.raises(CorruptError, match=r"leaves candid@1 × 0.5 to the plugin"):
        exported(tmp_path / "unnamed", needs_plugin=["candid@1 × 0.5"]).steering()
    found = exported(tmp_path / "named", steering_file="s.table")
    with pytest.raises(CorruptError, match="no file"):
        found.steering()
    steering = table(1.0)
    save(replace(steering, version="v1"), found.path / "s.table")
    loaded = found.steering()
    assert loaded is not None and loaded.digest == steering.digest
    save(replace(steering, version="w"), found.path / "s.table")
    with pytest.raises(CorruptError, match="is of the version w, the folder of v1"):
        found.steering()
    with pytest.raises(CorruptError, match="outside"):
        exported(tmp_path / "out", steering_file="../named/s.table").steering()


def test_weights_that_are_not_finite_are_found(tmp_path: Path) -> None:
    found = exported(tmp_path / "v1")
    found.check_finite()
    weight = torch.ones(4, 4, dtype=torch.bfloat16)
    weight[1, 2] = torch.inf
    save_file({"weight": weight, "bias": torch.ones(4)}, found.path / "model.safetensors")
    with pytest.raises(CorruptError, match=r"1 tensors of .* are not finite: `weight`"):
        found.check_finite()
