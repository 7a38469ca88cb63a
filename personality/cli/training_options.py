"""Options of the verbs that train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

DATA, OBJECTIVE, WEIGHTS, WATCH, RUN = "Data", "Objective and optimizer", "What is trained", "Guards", "Run"
LIVE = "While a server answers"
"""Headings under which the help lists them."""

GeneralOption = Annotated[
    Path | None,
    typer.Option(help="JSONL of general examples, against forgetting.", show_default=False, rich_help_panel=DATA),
]
GeneralRatioOption = Annotated[
    float | None,
    typer.Option(help="General examples per example of the behavior.", show_default="0.25", rich_help_panel=DATA),
]
ExamplesOption = Annotated[
    int | None,
    typer.Option("--examples", min=1, help="Use only so many.", show_default="all", rich_help_panel=DATA),
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Leave out examples that were trained on before.", rich_help_panel=DATA)
]
AllowRepeatsOption = Annotated[
    bool, typer.Option("--allow-repeats", help="Train on examples a second time.", rich_help_panel=DATA)
]
MaxLengthOption = Annotated[
    int | None,
    typer.Option(help="Longest dialogue, in tokens.", show_default="2048", rich_help_panel=DATA),
]
MethodOption = Annotated[
    Literal["sft", "dpo", "orpo", "sft-dpo"] | None,
    typer.Option(help="Objective.", show_default="orpo", rich_help_panel=OBJECTIVE),
]
RateOption = Annotated[
    float | None,
    typer.Option(help="Peak learning rate.", show_default="by objective and model size", rich_help_panel=OBJECTIVE),
]
BetaOption = Annotated[float | None, typer.Option(help="DPO's beta.", show_default="0.01", rich_help_panel=OBJECTIVE)]
OrpoLambdaOption = Annotated[
    float | None,
    typer.Option(help="Weight of ORPO's odds ratio.", show_default="0.1", rich_help_panel=OBJECTIVE),
]
OptimizerOption = Annotated[
    Literal["apollo", "apollo-mini", "adamw"] | None,
    typer.Option(help="Optimizer.", show_default="apollo", rich_help_panel=OBJECTIVE),
]
RankOption = Annotated[
    int | None,
    typer.Option(help="Rank of Apollo's projection.", show_default="256", rich_help_panel=OBJECTIVE),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(help="Examples in a batch, general ones included.", show_default="5", rich_help_panel=OBJECTIVE),
]
SeedOption = Annotated[
    int | None, typer.Option(help="Of order and projections.", show_default="0", rich_help_panel=OBJECTIVE)
]
LoraOption = Annotated[
    int | None,
    typer.Option(min=1, help="Train adapters of this rank.", show_default=False, rich_help_panel=WEIGHTS),
]
PreflightOption = Annotated[
    bool, typer.Option("--preflight/--no-preflight", help="Diagnose first.", rich_help_panel=WATCH)
]
ForceOption = Annotated[bool, typer.Option("--force", help="Train even on no-go.", rich_help_panel=WATCH)]
GuardOption = Annotated[
    bool | None,
    typer.Option(
        "--guard/--no-guard",
        help="Stop at the first sign of collapse.",
        show_default="guard",
        rich_help_panel=WATCH,
    ),
]
LiveOption = Annotated[
    str,
    typer.Option(
        "--live", metavar="URL", help="Serve snapshots there while it trains.", show_default=False, rich_help_panel=LIVE
    ),
]
LiveEveryOption = Annotated[
    int | None,
    typer.Option(min=1, help="Steps between snapshots.", show_default="every checkup", rich_help_panel=LIVE),
]
LiveScaleOption = Annotated[float, typer.Option(help="Scale of the vector in training.", rich_help_panel=LIVE)]
LiveKeepOption = Annotated[
    bool, typer.Option("--live-keep", help="Leave the server on the last snapshot.", rich_help_panel=LIVE)
]
ProbeRowsOption = Annotated[
    int, typer.Option(min=0, help="Rows per probe measured before and after; 0 for none.", rich_help_panel=RUN)
]
