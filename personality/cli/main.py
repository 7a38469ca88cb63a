"""The `persona` command: the verbs, and what every failure looks like."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

from personality.cli import (
    ablate,
    add,
    ask,
    bisect,
    build,
    chat,
    check,
    demo,
    deploy,
    diff,
    dose,
    encode,
    eval_,
    export,
    extract,
    gc,
    gradients,
    import_,
    init,
    inside,
    log,
    method,
    playground,
    preflight,
    promote,
    read,
    redo,
    restore,
    revert,
    rm,
    save,
    scale,
    screen,
    serve,
    show,
    status,
    sweep,
    tag,
    train,
    tune,
    undo,
    vectors,
    verify,
    version,
)
from personality.cli.output import Output
from personality.manifests.errors import PersonaError

EXIT_INTERNAL = 70
EXIT_INTERRUPT = 130
EXIT_BROKEN_PIPE = 141

app = typer.Typer(
    name="persona",
    help="Version control for a language model's behavior.",
    epilog="Try it in two minutes: `persona demo`. A repository to play with: `persona playground DIR`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

# Name, function, and the heading under which `persona --help` lists it.
_VERBS = (
    ("init", init.init, "Start"),
    ("playground", playground.playground, "Start"),
    ("demo", demo.demo, "Start"),
    ("preflight", preflight.preflight, "Make vectors"),
    ("train", train.train, "Make vectors"),
    ("gradients", gradients.gradients, "Make vectors"),
    ("sweep", sweep.sweep, "Make vectors"),
    ("extract", extract.extract, "Make vectors"),
    ("import", import_.import_, "Make vectors"),
    ("encode", encode.encode, "Make vectors"),
    ("promote", promote.promote, "Make vectors"),
    ("vectors", vectors.vectors, "Make vectors"),
    ("add", add.add, "Change the personality"),
    ("scale", scale.scale, "Change the personality"),
    ("rm", rm.rm, "Change the personality"),
    ("method", method.method, "Change the personality"),
    ("save", save.save, "Change the personality"),
    ("check", check.check, "Change the personality"),
    ("status", status.status, "History"),
    ("log", log.log, "History"),
    ("show", show.show, "History"),
    ("diff", diff.diff, "History"),
    ("restore", restore.restore, "History"),
    ("revert", revert.revert, "History"),
    ("undo", undo.undo, "History"),
    ("redo", redo.redo, "History"),
    ("tag", tag.tag, "History"),
    ("ask", ask.ask, "Use"),
    ("chat", chat.chat, "Use"),
    ("eval", eval_.eval_, "Use"),
    ("inside", inside.inside, "Use"),
    ("read", read.read, "Use"),
    ("screen", screen.screen, "Use"),
    ("bisect", bisect.bisect, "Search"),
    ("ablate", ablate.ablate, "Search"),
    ("dose", dose.dose, "Search"),
    ("tune", tune.tune, "Search"),
    ("build", build.build, "Use"),
    ("export", export.export, "Use"),
    ("serve", serve.serve, "Serve"),
    ("deploy", deploy.deploy, "Serve"),
    ("verify", verify.verify, "Keep"),
    ("gc", gc.gc, "Keep"),
    ("version", version.version, "Keep"),
)
for _name, _function, _panel in _VERBS:
    # A negative scale is an argument, not an option: `persona scale listening -1`, `persona dose warm -1..1`.
    _settings = {"ignore_unknown_options": True} if _name in ("scale", "dose") else None
    app.command(_name, rich_help_panel=_panel, context_settings=_settings)(_function)


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version of this program.")] = False,
) -> None:
    """Version control for a language model's behavior: train, scale, compose, compare and export behaviors."""
    if show_version:
        version.version()
        raise typer.Exit


@functools.cache
def _command() -> Callable[..., object]:
    """The parser of all verbs; making it takes longer than most commands, and a process may run several."""
    return typer.main.get_command(app)


def main() -> None:
    """Run the command line; every way out has its exit code (see docs/cli.md)."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: as typed, without the program's name.
    """
    arguments = _hoist(arguments)
    verb = next((word for word in arguments if not word.startswith("-")), "")
    out = Output(verb, as_json="--json" in arguments)
    try:
        code = _dispatch(arguments, out)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        pass
    except SystemExit as stop:
        # What the parser and the console's library make of a broken pipe.
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
    # Whoever read our output has gone; keep the interpreter from complaining about it at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_BROKEN_PIPE


def _dispatch(arguments: list[str], out: Output) -> int:
    """Run the verb; every failure but a broken pipe is told here."""
    try:
        result = _command()(arguments, prog_name="persona", standalone_mode=False)
        if result == EXIT_INTERRUPT:  # what the parser makes of Ctrl-C
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except PersonaError as error:
        out.error(error.message, error.hint, kind=error.kind, exit_code=error.exit_code)
        return error.exit_code
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        out.error(
            "interrupted",
            "nothing half-written stays behind; run the command again",
            kind="interrupt",
            exit_code=EXIT_INTERRUPT,
        )
        return EXIT_INTERRUPT
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        hint = "check the path, its permissions and the room on the disk"
        out.error(f"{where}{error.strerror or error}", hint, kind="system", exit_code=1)
        return 1
    except Exception as error:
        return _unexpected(out, error)


def _unexpected(out: Output, error: Exception) -> int:
    """A usage error of the argument parser (exit code 2), or a bug of ours (70)."""
    format_message = getattr(error, "format_message", None)
    if format_message is not None and getattr(error, "exit_code", None) == 2:
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            return 2  # the help was printed
        path = context.command_path if context is not None else "persona"
        out.error(format_message(), f"`{path} --help` shows the usage and examples", kind="usage", exit_code=2)
        return 2
    traceback.print_exc()
    out.error(
        f"this is a bug in persona: {type(error).__name__}: {error}",
        "please report it with the lines above; the repository is safe: `persona status`",
        kind="internal",
        exit_code=EXIT_INTERNAL,
    )
    return EXIT_INTERNAL


def _hoist(arguments: list[str]) -> list[str]:
    """Allow `persona -C DIR --json VERB …`: move what stands before the verb behind it."""
    before: list[str] = []
    rest = list(arguments)
    while rest and rest[0] in ("-C", "--json"):
        before.append(rest.pop(0))
        if before[-1] == "-C" and rest:
            before.append(rest.pop(0))
    return [*rest[:1], *before, *rest[1:]]
