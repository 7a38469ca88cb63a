"""`persona ablate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, find_version, open_repository
from personality.cli.output import Output, percent
from personality.cli.tables import change_text

if TYPE_CHECKING:
    from personality.searching.ablation import Ablation, Account


@examples(
    "persona ablate v4",
    "persona ablate head --by-layers 0-1,2-3 --samples 32",
    "persona ablate v4 --goal push_back --goal general --json",
)
def ablate(
    version: Annotated[str, typer.Argument(help="v4, a tag, or the beginning of an id.")] = "head",
    goal: Annotated[
        list[str] | None,
        typer.Option(
            help="What to account for: a behavior, `push_back`, `general`, or one probe.",
            show_default="the behaviors in use, push_back and general",
        ),
    ] = None,
    by_layers: Annotated[
        str, typer.Option(help="Take every vector apart by layers: A-B,C-D; the rest is one part.", show_default="no")
    ] = "",
    samples: Annotated[
        int, typer.Option(min=4, help="Orders in which more than 4 parts join; up to 4 all are counted.")
    ] = 24,
    seed: Annotated[int, typer.Option(help="Of these orders.")] = 0,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of each probe.", show_default="all")] = None,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Show who causes what: what each vector adds to every measure, and what the version loses without it.

    The Shapley value is what a vector adds, averaged over all orders in which the vectors can join; the values add up
    to the difference between version and base.
    """
    from personality.manifests.personality_record import LayerRange
    from personality.searching.ablation import ablate as take_apart

    out = Output("ablate", as_json=as_json)
    repository = open_repository(directory)
    ranges = [LayerRange.parse(part) for part in by_layers.split(",")] if by_layers else []
    history, found = find_version(out, repository, version)
    done = 0
    with out.progress("measure") as advance:

        def on_coalition(number: int) -> None:
            nonlocal done
            done = number

        ablation = take_apart(
            repository,
            found,
            goals=goal or (),
            ranges=ranges,
            samples=samples,
            seed=seed,
            rows=rows,
            on_coalition=on_coalition,
            on_probe=lambda step, steps, text: advance(step, steps, f"composition {done + 1}: {text}"),
        )
    out.result(_as_json(found.id, ablation), lambda: _show(out, history.label(found), ablation))


def _show(out: Output, label: str, found: Ablation) -> None:
    for account in found.accounts:
        ends = f"{percent(account.base.value)} at the base, {percent(account.version.value)} at {label}"
        out.line(f"{account.goal.name}: {ends}", "bold")
        rows: list[tuple[str, ...]] = [
            (f"  {item.player}", change_text(item.shapley), change_text(item.left_out), item.effect)
            for item in account.contributions
        ]
        rows.append((f"  {label} − base", change_text(account.change), "", ""))
        out.table(["  ", ">adds (Shapley, 95% interval)", f">{label} − {label} without it", "effect"], rows)
        out.line()
    for account in found.accounts:
        out.line(_who(account))
    out.line(_how(found))


def _who(account: Account) -> str:
    """Such as `push_back: obeying@1 lowers it (−98.0)`."""
    shown = [item for item in account.contributions if item.effect != "no difference shown"]
    shown.sort(key=lambda item: -abs(item.shapley.value))
    words = [f"{item.player} {item.effect} it ({item.shapley.value * 100:+.1f})" for item in shown]
    return f"{account.goal.name}: {'; '.join(words) or 'no difference shown'}"


def _how(found: Ablation) -> str:
    if found.exact:
        return f"≈ no difference shown · points; exact, from all {found.coalitions} compositions"
    most = max(item.sampling_error for account in found.accounts for item in account.contributions)
    return (
        f"≈ no difference shown · points; from {found.coalitions} compositions in sampled orders, whose standard error "
        f"is at most {most * 100:.2g}"
    )


def _as_json(version: str, found: Ablation) -> dict[str, Any]:
    return {
        "version": version,
        "exact": found.exact,
        "compositions": found.coalitions,
        "goals": [
            {
                "goal": account.goal.name,
                "probes": list(account.goal.probes),
                "base": account.base.as_json(),
                "version": account.version.as_json(),
                "change": account.change.as_json(),
                "contributions": [
                    {
                        "use": item.player.label,
                        "layers": item.player.part,
                        "effect": item.effect,
                        "shapley": item.shapley.as_json(),
                        "left_out": item.left_out.as_json(),
                        "sampling_error": item.sampling_error,
                    }
                    for item in account.contributions
                ],
            }
            for account in found.accounts
        ],
    }
