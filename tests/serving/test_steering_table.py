"""Steering tables: what the hooks would add, by layer and state of a token, and their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError
from personality.manifests.steering_record import Mode, Positions
from personality.serving.steering_table import SteeringTable, from_bytes, load, save, table_of, to_bytes
from personality.vectors.steering.injection import Injection
from personality.vectors.steering.steering_vector import Gate


def injection(layer: int, vector: Tensor, positions: Positions = "all", mode: Mode = "add") -> Injection:
    return Injection(layer, vector, positions, mode, label="candid@1")


def ones(value: float) -> Tensor:
    return torch.full((4,), value)


def test_rows_are_the_states_of_a_token() -> None:
    items = [injection(0, ones(1)), injection(0, ones(2), "response"), injection(2, ones(4), "decision")]
    table = table_of(items, 3, 4)
    assert table.table[:, :, 0].tolist() == [[1, 3, 3], [0, 0, 0], [0, 4, 0]]
    assert table.positional and table.acts
    assert not table_of(items[:1], 3, 4).positional
    assert not table_of([], 3, 4).acts


def test_sums_do_not_depend_on_the_order_and_are_rounded_once() -> None:
    parts = [replace(injection(1, ones(value)), label=f"{value}@1") for value in (1.0, 2.0**-9, 2.0**-9)]
    tables = [table_of(order, 2, 4, torch.bfloat16) for order in (parts, parts[::-1])]
    assert torch.equal(tables[0].table, tables[1].table)
    # Each of the small ones alone would be rounded away beside 1.
    assert float(tables[0].table[1, 0, 0]) == float(torch.tensor(1 + 2.0**-8, dtype=torch.float64).bfloat16())
    assert float(table_of(parts, 2, 4).table[1, 0, 0]) == 1 + 2.0**-8


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (injection(0, ones(1), mode="project"), "mode `project`"),
        (injection(0, ones(1), mode="norm-preserving"), "mode `norm-preserving`"),
        (replace(injection(0, ones(1)), gate=Gate(0, ones(1), 0.0)), "under a condition"),
        (injection(2, ones(1)), "layers 0-1"),
        (injection(0, torch.ones(5)), "width 5"),
    ],
)
def test_what_a_table_cannot_do_is_refused(item: Injection, reason: str) -> None:
    with pytest.raises(IncompatibleError, match=reason) as found:
        table_of([item], 2, 4)
    assert found.value.hint


def test_files_come_back_and_are_the_same_bytes(tmp_path: Path) -> None:
    table = replace(table_of([injection(0, torch.randn(4))], 2, 4), version="ab" * 32, label="v4")
    save(table, tmp_path / "t")
    found = load(tmp_path / "t")
    assert torch.equal(found.table, table.table)
    assert (found.version, found.label, found.digest) == (table.version, "v4", table.digest)
    assert to_bytes(found) == to_bytes(table) == (tmp_path / "t").read_bytes()
    assert replace(table, label="v5").digest == table.digest
    assert SteeringTable(table.table * 2).digest != table.digest


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    data = to_bytes(table_of([injection(0, ones(1))], 2, 4))
    for bad in (b"", b"short", data[:-1], data + b"\0", data.replace(b"persona", b"persone")):
        with pytest.raises(CorruptError, match="cannot be used"):
            from_bytes(bad)
    for tensor in (
        torch.ones(2, 4, 4),
        torch.ones(2, 3),
        torch.ones(2, 3, 4).double(),
        torch.full((2, 3, 4), torch.nan),
    ):
        with pytest.raises(CorruptError):
            from_bytes(to_bytes(SteeringTable(tensor)))
    with pytest.raises(NotFoundError):
        load(tmp_path / "none")
