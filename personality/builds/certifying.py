"""Writing an export's certificate: what is in it, and what transformers and vLLM answered from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from personality.baking.baked_comparison import TOLERANCE
from personality.builds.certificate import Certificate, Check
from personality.builds.engine_check import check_folder, plugin_in
from personality.builds.reloaded import Reloaded
from personality.builds.steering_part import SteeringPart
from personality.environment import build_environment, tool_versions
from personality.manifests.atomic import write_bytes
from personality.manifests.repository import Repository
from personality.manifests.vector_store import vector_kind
from personality.manifests.version import Version
from personality.serving.steering_table import STEERING_FILE
from personality.serving.vllm_environment import VllmEnvironment
from personality.versions.history import History

NOT_STARTED = "vLLM itself was not started: the folder was loaded with transformers and compared"


def certify(
    repository: Repository,
    version: Version,
    folder: Path,
    part: SteeringPart,
    reloaded: Reloaded,
    *,
    vllm: VllmEnvironment | None,
    on_stage: Callable[[str], None],
) -> Certificate:
    """Write a folder's certificate; with vLLM, run it on the folder first.

    Args:
        repository: where.
        version: that was exported.
        folder: with everything else in it.
        part: what became of its steering.
        reloaded: what transformers answered.
        vllm: where vLLM is; None not to run it.
        on_stage: told what is being done.

    Raises:
        CorruptError: when vLLM cannot run the folder, or answers otherwise than the version.
    """
    certificate = _certificate(repository, version, part, reloaded)
    _write(certificate, folder)  # the plugin reads it
    if vllm is None:
        lacking: tuple[str, ...] = (NOT_STARTED,)
        if part.table is not None:
            lacking += ("the plugin was not asked: what it adds is compared by `--verify` alone",)
        certificate = certificate.model_copy(update={"not_verified": lacking})
    else:
        on_stage("running vLLM on it")
        check, lacking = _run(folder, part, reloaded, vllm)
        certificate = certificate.model_copy(
            update={
                "checks": (*certificate.checks, check),
                "not_verified": lacking,
                "versions": {**certificate.versions, "vllm": check.engine.split()[1]},
            }
        )
    _write(certificate, folder)
    return certificate


def _run(folder: Path, part: SteeringPart, reloaded: Reloaded, vllm: VllmEnvironment) -> tuple[Check, tuple[str, ...]]:
    """What vLLM answers, and what it was not asked."""
    if part.table is not None and reloaded.plain is not None and not plugin_in(vllm):
        check = check_folder(folder, reloaded.plain, vllm, what="the version without its steering vectors")
        return check, (
            f"the plugin was not asked: {vllm} does not have it (`{vllm.python} -m pip install --no-deps personality`)",
        )
    variables = {"PERSONA_STEERING": "positions"} if part.table and part.table.positional else {}
    check = check_folder(
        folder,
        reloaded.reference,
        vllm,
        plugins=("persona",) if part.table else (),
        variables=variables,
        serve_with=part.serve_with,
        what="the weights" if part.left_out else "the version",
    )
    effect = reloaded.effect
    if effect is not None and effect <= check.allowed:
        return check, (
            f"whether vLLM steers cannot be told: steering changes up to {effect:.2g} nats, {check.dtype} may lose "
            f"{check.allowed:.2g}",
        )
    return check, ()


def _certificate(repository: Repository, version: Version, part: SteeringPart, reloaded: Reloaded) -> Certificate:
    in_weights = [
        str(use)
        for use in version.personality.uses
        if use.scale != 0 and vector_kind(repository, use.vector, use.label) != "steering"
    ]
    steering = part.summary.uses if part.summary else ()
    if part.baked is not None:
        in_weights += [f"{use}: baked by the route `{part.baked.plan.route}`" for use in steering]
    checks = []
    tools = tool_versions()
    if reloaded.agreement is not None:
        same = reloaded.agreement
        checks.append(
            Check(
                engine=f"transformers {tools['transformers']}",
                what="the version" if part.baked or not steering else "the version without its steering vectors",
                dtype="float32",
                greatest_difference=same.greatest_difference,
                greedy=same.greedy,
                positions=same.positions,
                allowed=reloaded.compared.allowed if reloaded.compared else TOLERANCE,
            )
        )
    return Certificate(
        version=version.id,
        label=History(repository).label(version),
        base=version.personality.base.fingerprint,
        personality=version.personality.id,
        in_weights=tuple(in_weights),
        needs_plugin=steering if part.table else (),
        left_out=steering if part.left_out else (),
        steering_file=STEERING_FILE if part.table else "",
        serve_with=part.serve_with,
        reference=reloaded.reference,
        checks=tuple(checks),
        versions={**tools, **build_environment()},
    )


def _write(certificate: Certificate, folder: Path) -> None:
    write_bytes(folder / Certificate.file_name, certificate.to_bytes())
