"""`persona read`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from personality.cli.heat_map import show_heat_map
from personality.cli.options import DirectoryOption, JsonOption, examples, find_version, open_repository
from personality.cli.output import Output
from personality.manifests.errors import UsageError

if TYPE_CHECKING:
    from personality.reading.reading import Reading

_BEGINNING = 40  # letters of a turn in the table


@examples(
    'persona read "Please rename the logo." --as-turn --vectors candid,listening',
    "persona read --transcript chat.jsonl --vectors candid --version v4",
    "persona read - --vectors listening@2 --layers 10-20 --png map.png < letter.txt",
)
def read(
    text: Annotated[str, typer.Argument(help="What to read; - for standard input.", show_default=False)] = "",
    vectors: Annotated[str, typer.Option(help="Steering vectors, separated by commas.", show_default=False)] = "",
    file: Annotated[Path | None, typer.Option(help="A file with the text.", show_default=False)] = None,
    transcript: Annotated[
        Path | None,
        typer.Option(help="JSONL of messages, one a line: a table of turns, to watch for drift.", show_default=False),
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="With --transcript: also token by token.")] = False,
    as_turn: Annotated[
        bool, typer.Option("--as-turn", help="As a user's turn, up to where the reply begins; not as plain text.")
    ] = False,
    layers: Annotated[str, typer.Option(help="Only layers A-B, both included.", show_default="all")] = "",
    version: Annotated[str, typer.Option(help="Who reads: v4, a tag, head.", show_default="the base")] = "",
    png: Annotated[Path | None, typer.Option(help="Draw the map to this file.", show_default=False)] = None,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Show how far a text's activations lie along vectors' directions, token by token and layer by layer."""
    from personality.manifests.names import VectorLabel
    from personality.manifests.personality_record import LayerRange, Personality
    from personality.versions.recipe import find_steering

    out = Output("read", as_json=as_json)
    repository = open_repository(directory)
    names = [name.strip() for name in vectors.split(",") if name.strip()]
    if not names:
        raise UsageError("no vectors to read it on", "name them: `--vectors candid,listening`")
    manifests = [find_steering(repository, VectorLabel.parse(name)) for name in dict.fromkeys(names)]
    where = LayerRange.parse(layers) if layers else None
    if png is not None:
        from personality.making.sweep_plot import check_plot

        check_plot(png, "--png")
    if version:
        personality = find_version(out, repository, version)[1].personality
    else:
        personality = Personality(base=repository.config().base)
    if transcript is not None:
        from personality.reading.read import read_transcript
        from personality.reading.transcript import read_messages

        if text or file is not None or as_turn:
            raise UsageError("a transcript and a text at once", "read one after the other")
        reading = read_transcript(repository, personality, read_messages(transcript), manifests, layers=where)
    else:
        from personality.reading.read import read_text

        given = _text(text, file)
        reading = read_text(repository, personality, given, manifests, layers=where, as_turn=as_turn)
    if png is not None:
        from personality.reading.map_plot import plot_reading

        plot_reading(reading, png)

    def human() -> None:
        if reading.turns:
            _show_turns(out, reading)
        if tokens or not reading.turns:
            show_heat_map(out, reading)
        if png is not None:
            out.note(f"drawn: {png}")

    out.result({"version": version or "base", **reading.as_json()}, human)


def _text(text: str, file: Path | None) -> str:
    """The text from the command line, standard input or a file."""
    if bool(text) == (file is not None):
        raise UsageError(
            "two texts at once" if text else "nothing to read",
            'give one text: `persona read "…"`, `-` for standard input, `--file FILE` or `--transcript FILE`',
        )
    if file is not None:
        from personality.vectors.training.examples import read_data

        return read_data(file)
    return sys.stdin.read() if text == "-" else text


def _show_turns(out: Output, reading: Reading) -> None:
    rows = []
    for turn in reading.turns:
        beginning = " ".join(turn.content.split())
        cut = f"{beginning[:_BEGINNING]}…" if len(beginning) > _BEGINNING else beginning
        found = [item.figure(turn) for item in reading.vectors]
        figures = ["" if figure is None else f"{figure:+.3f}" for figure in found]
        rows.append((str(turn.number + 1), turn.role, str(turn.stop - turn.start), *figures, cut))
    out.table(["turn", "role", ">tokens", *(f">{item.label}" for item in reading.vectors), "begins"], rows)
    for item in reading.vectors:
        drift = reading.drift(item)
        if drift is not None:
            out.line(f"{item.label}: {drift:+.3f} from the first reply to the last")
    out.note(
        "cosines in the layers in which a vector acts: mean over a turn's tokens or, for a vector that acts where a "
        "reply is decided, there"
    )
