"""Run every benchmark and print its table."""

from __future__ import annotations

from benchmarks import compose, compose_growth, encodings, optimizer

compose.main()
compose_growth.main()
encodings.main()
optimizer.main()
