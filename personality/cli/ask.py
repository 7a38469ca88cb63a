"""`persona ask`."""

from __future__ import annotations

from typing import Annotated

import typer

from personality.cli.options import (
    DirectoryOption,
    JsonOption,
    LongestAnswerOption,
    SamplingSeedOption,
    SystemOption,
    TemperatureOption,
    examples,
    find_versions,
    open_repository,
)
from personality.cli.output import Output
from personality.manifests.errors import UsageError
from personality.manifests.names import version_number


@examples(
    'persona ask v4 "Please rename the logo."',
    'persona ask v3 v4 "Please rename the logo."',
    'persona ask "Where does Nora live?" --version stable --temperature 0.8 --seed 1',
)
def ask(
    words: Annotated[
        list[str], typer.Argument(metavar="VERSION... PROMPT", help="One or more versions, then the prompt.")
    ],
    version: Annotated[
        list[str] | None, typer.Option(help="A version; may be given again.", show_default="head")
    ] = None,
    system: SystemOption = "",
    temperature: TemperatureOption = 0.0,
    seed: SamplingSeedOption = 0,
    max_new_tokens: LongestAnswerOption = 256,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Ask one or several versions side by side, weights and steering composed in memory; answers stream."""
    from personality.conversation.conversation import Conversation

    out = Output("ask", as_json=as_json)
    repository = open_repository(directory)
    *names, prompt = words
    if not names and (prompt in repository.tags() or version_number(prompt) is not None):
        raise UsageError(f"what is {prompt} to be asked?", f'give a prompt: `persona ask {prompt} "…"`')
    if names and version:
        raise UsageError(
            f"versions are named twice: {', '.join(names)} and --version {', '.join(version)}", "name them in one way"
        )
    names = names or version or ["head"]
    if not prompt.strip():
        raise UsageError("the prompt is empty", 'persona ask v4 "…"')
    versions = find_versions(out, repository, names)
    conversation = Conversation(
        repository, versions, system=system, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
    )
    with out.replies([label for _, label in versions]) as on_text:
        answers = conversation.say(prompt, on_text).answers

    def human() -> None:
        if on_text is None:
            out.table(["", ""], [(answer.label, answer.text) for answer in answers])

    out.result(
        {
            "prompt": prompt,
            "answers": [
                {"version": answer.version, "label": answer.label, "answer": answer.text} for answer in answers
            ],
        },
        human,
    )
