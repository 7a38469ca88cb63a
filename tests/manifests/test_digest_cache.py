from __future__ import annotations

import os
from pathlib import Path

from personality.manifests.digest_cache import remembered


def test_computed_once_until_a_file_is_touched(tmp_path: Path) -> None:
    file, cache = tmp_path / "weights", tmp_path / "local/cache.json"
    file.write_bytes(b"one")
    runs = []

    def compute() -> str:
        runs.append(1)
        return file.read_text()

    assert [remembered(cache, "w", [file], compute) for _ in range(3)] == ["one"] * 3
    assert len(runs) == 1
    assert remembered(cache, "other purpose", [file], compute) == "one"
    assert len(runs) == 2
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert remembered(cache, "w", [file], compute) == "two"
    assert len(runs) == 3
    assert remembered(None, "w", [file], compute) == "two"
    assert len(runs) == 4


def test_a_damaged_cache_costs_time_only(tmp_path: Path) -> None:
    file, cache = tmp_path / "weights", tmp_path / "cache.json"
    file.write_bytes(b"one")
    for content in (b"half {", b"\xff", b"[1]"):
        cache.write_bytes(content)
        assert remembered(cache, "w", [file], file.read_text) == "one"
    assert remembered(file / "no folder/cache.json", "w", [file], file.read_text) == "one"
