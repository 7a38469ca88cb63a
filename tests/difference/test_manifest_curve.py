from __future__ import annotations

from pathlib import Path

from personality.difference.manifest_curve import manifest_curves
from personality.manifests.manifest import Making, Manifest
from personality.manifests.personality_record import Personality, Use
from personality.manifests.repository import Repository
from personality.manifests.steering_record import Calibration, DosePoint, SteeringRecord
from tests.difference.made import BASE


def store(root: Path, behavior: str, letter: str, scales: tuple[float, ...]) -> Use:
    """A steering vector's manifest whose curve has points at these scales."""
    curve = tuple(
        DosePoint(
            scale=scale,
            kl_95=1.0,
            perplexity=2.0,
            repetition=scale / 10,
            coherent=scale < 2,
            probes={f"{behavior}.it": scale / 4, "general.sums": 1.0},
        )
        for scale in scales
    )
    manifest = Manifest(
        id=letter * 64,
        behavior=behavior,
        number=1,
        kind="steering",
        encoding="directions",
        base=BASE,
        tensors={"layer.1": "F32 [4]"},
        bytes=16,
        norm=1.0,
        making=Making(how="extract"),
        steering=SteeringRecord(
            positions="all",
            mode="add",
            layers=(1,),
            calibration=Calibration(tokens=9, kl_95=1.0, text="x", curve=curve, coherent_to=1.0),
        ),
        created="2026-01-01T00:00:00Z",
    )
    (root / "manifests").mkdir(exist_ok=True)
    (root / f"manifests/{manifest.id}.json").write_bytes(manifest.to_bytes())
    return Use(behavior=behavior, number=1, vector=manifest.id, scale=0.5)


def test_curves_of_the_vectors_in_use(tmp_path: Path) -> None:
    candid, warm = store(tmp_path, "candid", "a", (2.0, 0.5, 1.0)), store(tmp_path, "warm", "b", ())
    gone = Use(behavior="gone", number=1, vector="c" * 64, scale=1.0)
    before = Personality(base=BASE, uses=(candid,))
    after = Personality(base=BASE, uses=(candid.model_copy(update={"scale": -1.0}), gone, warm))
    (curve,) = manifest_curves(Repository(tmp_path), before, after)  # no curve, no manifest: nothing to show
    assert curve.label == "candid@1"
    assert curve.scales == (0.5, 1.0, 2.0)
    assert curve.responses == {
        "candid.it": (0.125, 0.25, 0.5),
        "general.sums": (1.0, 1.0, 1.0),
        "repetition": (0.05, 0.1, 0.2),
    }
    assert curve.coherent_to == 1.0
    assert (curve.before, curve.after) == (0.5, -1.0)
    assert manifest_curves(Repository(tmp_path), Personality(base=BASE), Personality(base=BASE)) == []
