"""What an export says of itself: what is in its weights, what a server must add, and against what it was checked."""

from __future__ import annotations

from typing import ClassVar

from personality.builds.comparison import Agreement
from personality.builds.reference import Reference
from personality.builds.writer import CERTIFICATE
from personality.manifests.record import Frozen, Record


class Check(Frozen):
    """One engine's answers beside the reference's.

    Attributes:
        engine: with its version, such as `vLLM 0.32.0`.
        what: what was compared, in words.
        dtype: in which the engine computed.
        greatest_difference: largest |Δ log-probability|, nats.
        greedy: share of positions with the same most likely token, 0 to 1.
        positions: how many were compared.
        allowed: greatest difference at which the two agree, nats.
    """

    engine: str
    what: str
    dtype: str
    greatest_difference: float
    greedy: float
    positions: int
    allowed: float

    @property
    def agreement(self) -> Agreement:
        """The figures alone."""
        return Agreement(self.greatest_difference, self.greedy, self.positions)


class Certificate(Record):
    """The record in an export's folder.

    Attributes:
        version: id of the version.
        label: its label where it was exported, such as `v4`.
        base: the base's fingerprint.
        personality: digest of what determines the version.
        in_weights: uses that the weights hold, such as `listening@1 × 0.8`; baked steering vectors with their route.
        needs_plugin: uses that the plugin must add while the model is served.
        left_out: uses that the folder has nothing of.
        steering_file: name of the file that the plugin reads; empty when nothing is left to it.
        serve_with: arguments without which vLLM would not read all of the weights.
        reference: what the version answers.
        checks: who was held against it.
        not_verified: what no engine was asked about, in words.
        versions: of the programs that made it.
    """

    noun: ClassVar[str] = "certificate"
    mend: ClassVar[str] = "export the version again"
    file_name: ClassVar[str] = CERTIFICATE

    version: str
    label: str
    base: str
    personality: str
    in_weights: tuple[str, ...]
    needs_plugin: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    steering_file: str = ""
    serve_with: tuple[str, ...] = ()
    reference: Reference
    checks: tuple[Check, ...] = ()
    not_verified: tuple[str, ...] = ()
    versions: dict[str, str]
