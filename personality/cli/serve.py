"""`persona serve`."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, find_version, open_repository
from personality.cli.output import Output

if TYPE_CHECKING:
    from personality.serving.supervisor import Ready


@examples(
    "persona serve v4",
    "persona serve stable --port 8080 --vllm ~/vllm-env",
    "persona serve v4 --max-model-len 4096 -- --tensor-parallel-size 2",
)
def serve(
    version: Annotated[str, typer.Argument(help="v4, a tag, or the beginning of an id.")] = "head",
    extra: Annotated[
        list[str] | None, typer.Argument(metavar="[-- VLLM OPTIONS]", help="Passed on to `vllm serve`.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8000,
    vllm: Annotated[
        Path | None,
        typer.Option(help="vLLM's environment; PERSONA_VLLM, or the one on the PATH, unless told.", show_default=False),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="In which vLLM computes: float32, bfloat16, float16; the base's.", show_default=False),
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Tokens of prompt and reply; the model's own limit.", show_default=False)
    ] = None,
    positions: Annotated[
        bool,
        typer.Option("--positions", help="Take versions later that steer the reply only, when this one does not."),
    ] = False,
    no_plugin: Annotated[
        bool, typer.Option("--no-plugin", help="Stock vLLM: steering is baked, deploys use its development routes.")
    ] = False,
    bake_unproven: Annotated[
        bool, typer.Option("--bake-unproven", help="Without the plugin: bake steering vectors that are not proven too.")
    ] = False,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Serve a version with vLLM until Ctrl-C: verified when it starts, started again when it dies.

    Other versions take its place with `persona deploy`.
    """
    from personality.serving.serving_plan import prepare
    from personality.serving.supervisor import Supervisor

    out = Output("serve", as_json=as_json)
    repository = open_repository(directory)
    history, found = find_version(out, repository, version)
    plan = prepare(
        repository,
        found,
        host=host,
        port=port,
        vllm=vllm,
        dtype=dtype,
        max_length=max_model_len,
        positions=positions,
        plugin=not no_plugin,
        bake_unproven=bake_unproven,
        extra=tuple(extra or ()),
        on_stage=lambda stage: out.note(f"{history.label(found)}: {stage}…"),
    )
    for warning in plan.warnings:
        out.warn(warning)

    shown = False

    def ready(now: Ready) -> None:
        nonlocal shown
        if shown:
            out.note(f"{now.state.label} serves again, verified, after {now.seconds:.0f} s")
            return
        shown = True
        _show(out, now)

    supervisor = Supervisor(plan.options, plan.folder, plan.exports, on_event=out.note, on_ready=ready)
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        supervisor.run(stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    out.note("stopped; nothing of vLLM runs on")


def _show(out: Output, ready: Ready) -> None:
    state, same = ready.state, ready.verification.agreement

    def human() -> None:
        out.line(f"{state.label} ready at {state.url} in {ready.seconds:.0f} s", "bold")
        out.line(f"  verified over HTTP: {ready.verification}")
        out.note(f"ask it: curl {state.url}/v1/chat/completions -H 'Content-Type: application/json' -d")
        out.note("""  '{"model": "persona", "messages": [{"role": "user", "content": "…"}]}'""")
        out.note(f"another version in its place: persona deploy VERSION --server {state.url} · end: Ctrl-C")

    data = {
        **state.as_json(),
        "seconds": ready.seconds,
        "greatest_difference": same.greatest_difference,
        "greedy": same.greedy,
        "allowed": ready.verification.allowed,
    }
    out.result(data, human)
    sys.stdout.flush()  # whoever reads a pipe waits for this line while the server runs on
