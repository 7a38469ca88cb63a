"""Run every benchmark and print its table."""

from __future__ import annotations

from benchmarks import compose, optimizer

compose.main()
optimizer.main()
