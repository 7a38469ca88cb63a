"""Workbenches for several sets of probes that share one model in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from personality.changing_model import ChangingModel
from personality.evaluation.suite import Probe
from personality.evaluation.workbench import Workbench
from personality.manifests.personality_record import Personality

OnProbe = Callable[[int, int, str], None]


class SharedBench(Workbench):
    """A workbench that borrows its model.

    Args:
        lender: whose model takes on the personalities; it is loaded once, whoever needs it first.
        probes: what to measure.
        on_probe: see `measure`.

    Raises:
        DataError: when there are no probes.
    """

    def __init__(self, lender: ChangingModel, probes: Sequence[Probe], *, on_probe: OnProbe | None = None) -> None:
        super().__init__(lender.repository, probes, on_probe=on_probe)
        self._lender = lender

    @contextlib.contextmanager
    def taking(self, personality: Personality) -> Iterator[tuple[Any, Any]]:
        """As the lender's."""
        with self._lender.taking(personality) as taken:
            yield taken
